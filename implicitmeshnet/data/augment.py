"""Random affine, smooth deformation and intensity changes, drawn from an explicit generator."""

import torch
import torch.nn.functional as F

from implicitmeshnet.coordinates import to_grid_sample

ROTATION_RAD = 0.26  # 15 degrees about each axis
SCALE = 0.15
SHEAR = 0.05
TRANSLATION = 0.1  # of the grid's half side
DEFORMATION = 0.06  # standard deviation at the control points, of the grid's half side
CONTROL_POINTS = 5  # along each axis
GAIN = 0.2
OFFSET = 0.15
GAMMA = 0.3  # of the logarithm of the exponent
NOISE = 0.05


def augment(image, label, shape, generator):
    """Warp and crop one padded case, then change its intensities.

    image (1, X', Y', Z') in [-1, 1] and label (X', Y', Z') integer, both with a margin around the network's `shape`;
    returns image (1, X, Y, Z) float32 and label (X, Y, Z) int64. Labels are interpolated as indicator functions and
    the largest wins. The same generator state gives the same result on the same device.
    """
    grid = _warp_grid(image.shape[1:], shape, generator).to(image.device)
    classes = int(label.max()) + 1
    indicators = F.one_hot(label.long(), classes).movedim(-1, 0)
    both = torch.cat([image.float(), indicators.float()])[None]
    warped = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    return _change_intensity(warped[:1], generator), warped[1:].argmax(0)


def _warp_grid(padded_shape, shape, generator):
    """Where each voxel of `shape` is read in the padded volume: (1, X, Y, Z, 3), axes as grid_sample wants them."""

    def uniform(*size):
        return torch.rand(size, generator=generator) * 2 - 1

    matrix = torch.eye(3) + SHEAR * uniform(3, 3)
    for axis, angle in enumerate((ROTATION_RAD * uniform(3)).tolist()):
        matrix = matrix @ _rotation(axis, angle)
    matrix = matrix * (1 + SCALE * uniform(1))
    matrix = torch.cat([matrix, (TRANSLATION * uniform(3))[:, None]], 1)
    size, padded = torch.tensor(shape), torch.tensor(padded_shape)
    control = DEFORMATION * torch.randn(1, 3, *[CONTROL_POINTS] * 3, generator=generator)
    control = F.avg_pool3d(F.pad(control, (1,) * 6, mode="replicate"), 3, 1) * 3  # smoother, about the same size
    field = F.interpolate(control, tuple(shape), mode="trilinear", align_corners=True)[0]  # (3, X, Y, Z)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (X, Y, Z, 3)
    half = (size - 1) / (size - 1).max()  # isotropic units, so that a rotation is one on any grid
    points = (points * half) @ matrix[:, :3].T + matrix[:, 3] + field.movedim(0, -1)
    return to_grid_sample(points / half * (size - 1) / (padded - 1))[None]


def _rotation(axis: int, angle: float):
    generator = torch.zeros(3, 3)
    following, last = (axis + 1) % 3, (axis + 2) % 3
    generator[following, last], generator[last, following] = -angle, angle
    return torch.linalg.matrix_exp(generator)


def _change_intensity(image, generator):
    def draw():
        return float(torch.rand((), generator=generator)) * 2 - 1

    unit = ((image + 1) / 2).clamp(0, 1) ** torch.tensor(GAMMA * draw()).exp().item()
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    return (2 * unit - 1) * (1 + GAIN * draw()) + OFFSET * draw() + NOISE * abs(draw()) * noise
