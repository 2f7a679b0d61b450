"""Random affine, smooth deformation and intensity changes, drawn from an explicit generator.

The order of the draws is part of the result: another order gives other samples for the same seed.
"""

from collections.abc import Sequence

import numpy as np
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


def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Warp and crop one padded case, then change its intensities.

    image (C, X', Y', Z') in [-1, 1] and label (X', Y', Z') integer, both with a margin around the network's `shape`,
    of voxels of so many mm along each axis; returns image (C, X, Y, Z) float32 and label (X, Y, Z) int64. Labels are
    interpolated as indicator functions and the largest wins. All channels are warped alike, and each changes its
    intensities by itself. The same generator state gives the same result on the same device.
    """
    grid = _warp_grid(image.shape[1:], shape, spacing_mm, generator).to(image.device)
    # One channel for each label value, because label values themselves cannot be interpolated.
    indicators = torch.stack([label == value for value in range(int(label.max()) + 1)])
    both = torch.cat([image.float(), indicators.float()])
    warped = F.grid_sample(both[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    channels = [_change_intensity(channel, generator) for channel in warped[: len(image)].split(1)]
    return torch.cat(channels), _largest(warped[len(image) :])


def _largest(channels: torch.Tensor) -> torch.Tensor:
    """The number of the largest of the channels (C, X, Y, Z), the first of equals: (X, Y, Z) int64.

    It is argmax(0), which takes ten times as long on a CPU.
    """
    number = torch.zeros_like(channels[0], dtype=torch.int64)
    largest = channels[0]
    for index in range(1, len(channels)):
        number = torch.where(channels[index] > largest, index, number)
        largest = torch.maximum(largest, channels[index])
    return number


def _warp_grid(
    padded_shape: Sequence[int],
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    generator: torch.Generator,
) -> torch.Tensor:
    """Where each voxel of `shape` is read in the padded volume: (1, X, Y, Z, 3), axes as grid_sample wants them."""
    matrix = _random_matrix(generator)
    shift = TRANSLATION * _uniform(generator, 3)
    field = _random_field(shape, generator)  # (X, Y, Z, 3)
    size = torch.tensor(shape)
    padded = torch.tensor(padded_shape)
    axes = [torch.linspace(-1, 1, n) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (X, Y, Z, 3)
    # Isotropic units, 1 for the half of the longest side, so that a rotation is one on any grid.
    sides = (size - 1) * torch.as_tensor(spacing_mm, dtype=torch.float64)
    half = (sides / sides.max()).float()
    warped = (points * half) @ matrix.T + shift + field
    # Back to the normalised coordinates of the network's grid, then of the padded volume around it.
    normalised = warped / half * (size - 1) / (padded - 1)
    return to_grid_sample(normalised)[None]


def _random_matrix(generator: torch.Generator) -> torch.Tensor:
    """Shear, a rotation about each axis and one scale: (3, 3)."""
    matrix = torch.eye(3) + SHEAR * _uniform(generator, 3, 3)
    angles = ROTATION_RAD * _uniform(generator, 3)
    for axis, angle in enumerate(angles.tolist()):
        matrix = matrix @ _rotation(axis, angle)
    return matrix * (1 + SCALE * _uniform(generator, 1))


def _random_field(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """A smooth displacement of each voxel, of the grid's half side: (X, Y, Z, 3)."""
    size = (1, 3, CONTROL_POINTS, CONTROL_POINTS, CONTROL_POINTS)
    control = DEFORMATION * torch.randn(size, generator=generator)
    # The mean of neighbouring control points is smoother; the factor keeps it about as large as it was drawn.
    padded = F.pad(control, (1,) * 6, mode="replicate")
    smooth = F.avg_pool3d(padded, 3, 1) * 3
    field = F.interpolate(smooth, tuple(shape), mode="trilinear", align_corners=True)[0]  # (3, X, Y, Z)
    return field.movedim(0, -1)


def _rotation(axis: int, angle: float) -> torch.Tensor:
    """The rotation about an axis by an angle in rad: (3, 3)."""
    following = (axis + 1) % 3
    last = (axis + 2) % 3
    skew = torch.zeros(3, 3)
    skew[following, last] = -angle
    skew[last, following] = angle
    return torch.linalg.matrix_exp(skew)


def _change_intensity(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An image in [-1, 1] under a random gamma, gain, offset and noise of random strength."""
    exponent = torch.tensor(GAMMA * _draw(generator)).exp().item()
    unit = ((image + 1) / 2).clamp(0, 1)  # a power needs numbers from 0 to 1
    bent = 2 * unit**exponent - 1
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    gain = 1 + GAIN * _draw(generator)
    offset = OFFSET * _draw(generator)
    strength = NOISE * abs(_draw(generator))
    return bent * gain + offset + strength * noise


def _draw(generator: torch.Generator) -> float:
    """A number in [-1, 1)."""
    return float(torch.rand((), generator=generator)) * 2 - 1


def _uniform(generator: torch.Generator, *size: int) -> torch.Tensor:
    """Numbers in [-1, 1)."""
    return torch.rand(size, generator=generator) * 2 - 1
