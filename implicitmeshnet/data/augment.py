"""Random affine, smooth deformation and intensity changes, drawn from an explicit generator.

The host draws a few hundred numbers a sample. What is large, the warp of each voxel, the noise and the labels, is made
of them on the device that holds the sample, and nothing here waits for that device. The order of the draws is part of
the result: another order gives other samples for the same seed.
"""

import itertools
import math
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
ALIKE = 1.25  # ratio of two sides of a grid up to which axes of one spacing change places


def augment(
    image: torch.Tensor,
    label: torch.Tensor,
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    generator: torch.Generator,
    any_orientation: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Warp and crop one padded case, then change its intensities.

    image (C, X', Y', Z') in [-1, 1] of any floating-point type and label (X', Y', Z') uint8, both on one device and
    with a margin around the network's `shape`, of voxels of so many mm along each axis; returns image (C, X, Y, Z)
    float32 and label (X, Y, Z) int64 on that device. Labels are interpolated as indicator functions and the largest
    wins, the smallest label of equals. All channels are warped alike, and each changes its intensities by itself.
    `generator` is the host's; the same state of it gives the same result on the same device. With `any_orientation` one
    of the grid's `orientations` comes first.
    """
    matrix = _random_matrix(generator)
    if any_orientation:
        turns = torch.from_numpy(orientations(shape, spacing_mm)).float()
        matrix = matrix @ turns[torch.randint(len(turns), (), generator=generator)]
    shift = TRANSLATION * uniform(generator, 3)
    control = control_points(image.shape[1:], shape, spacing_mm, matrix, shift, random_field(generator))
    seed = int(torch.randint(2**32, (), generator=generator))
    of_noise = torch.Generator(image.device).manual_seed(seed)
    grid = between_control_points(control.to(image.device, non_blocking=image.is_cuda), shape)  # (3, X, Y, Z)
    points = grid.movedim(0, -1)[None]
    warped = F.grid_sample(image.float()[None], points, mode="bilinear", padding_mode="border", align_corners=True)[0]
    channels = [_change_intensity(channel, generator, of_noise) for channel in warped]
    return torch.stack(channels), warp_label(label, grid)


def orientations(shape: Sequence[int], spacing_mm: Sequence[float] | np.ndarray) -> np.ndarray:
    """The ways to lay a grid's axes, signed permutations (N, 3, 3): all flips, and swaps of axes of one spacing whose
    sides are about as long."""
    spacing = np.asarray(spacing_mm)
    sides = np.array(shape) * spacing
    matrices = []
    for order in itertools.permutations(range(3)):
        ratios = np.maximum(sides[list(order)] / sides, sides / sides[list(order)])
        if not np.allclose(spacing[list(order)], spacing) or ratios.max() > ALIKE:
            continue
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrices.append(np.eye(3)[list(order)] * signs)
    return np.stack(matrices)


def control_points(
    padded_shape: Sequence[int],
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    matrix: torch.Tensor,
    shift: torch.Tensor,
    field: torch.Tensor,
) -> torch.Tensor:
    """Where control points over `shape` are read in the padded volume: (3, K, K, K), axes as grid_sample wants them.

    Each is moved by a matrix (3, 3) about the middle, a shift (3,) and a field (K, K, K, 3), both of the half of the
    grid's longest side. Between them the warp is trilinear, so it is what its affine part is, too.
    """
    size = torch.tensor(shape)
    padded = torch.tensor(padded_shape)
    axis = torch.linspace(-1, 1, CONTROL_POINTS)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)  # (K, K, K, 3)
    # Isotropic units, 1 for the half of the longest side, so that a rotation is one on any grid.
    sides = (size - 1) * torch.as_tensor(spacing_mm, dtype=torch.float64)
    half = (sides / sides.max()).float()
    warped = (points * half) @ matrix.T + shift + field
    # Back to the normalised coordinates of the network's grid, then of the padded volume around it.
    normalised = warped / half * (size - 1) / (padded - 1)
    return to_grid_sample(normalised).movedim(-1, 0)


def _random_matrix(generator: torch.Generator) -> torch.Tensor:
    """Shear, a rotation about each axis and one scale: (3, 3)."""
    matrix = torch.eye(3) + SHEAR * uniform(generator, 3, 3)
    angles = ROTATION_RAD * uniform(generator, 3)
    for axis, angle in enumerate(angles.tolist()):
        matrix = matrix @ rotation(axis, angle)
    return matrix * (1 + SCALE * uniform(generator, 1))


def random_field(generator: torch.Generator) -> torch.Tensor:
    """A smooth displacement of each control point, of the grid's half side: (K, K, K, 3)."""
    size = (1, 3, CONTROL_POINTS, CONTROL_POINTS, CONTROL_POINTS)
    control = DEFORMATION * torch.randn(size, generator=generator)
    # The mean of neighbouring control points is smoother; the factor keeps it about as large as it was drawn.
    padded = F.pad(control, (1,) * 6, mode="replicate")
    smooth = F.avg_pool3d(padded, 3, 1) * 3
    return smooth[0].movedim(0, -1)


def rotation(axis: int, angle: float) -> torch.Tensor:
    """The rotation about an axis by an angle in rad: (3, 3)."""
    following = (axis + 1) % 3
    last = (axis + 2) % 3
    skew = torch.zeros(3, 3)
    skew[following, last] = -angle
    skew[last, following] = angle
    return torch.linalg.matrix_exp(skew)


def between_control_points(control: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Control points (C, I, J, K) interpolated trilinearly: (C, X, Y, Z)."""
    x, y, z = shape
    channels, along_x, along_y, along_z = control.shape
    # Along the last two axes and then along the first, where the other is left as it is: on a CPU in less time than by
    # trilinear mode.
    planes = control.reshape(1, -1, along_y, along_z)
    planes = F.interpolate(planes, (y, z), mode="bilinear", align_corners=True)  # (1, C I, Y, Z)
    planes = planes.reshape(1, channels, along_x, y * z)
    return F.interpolate(planes, (x, y * z), mode="bilinear", align_corners=True).reshape(channels, x, y, z)


def _change_intensity(image: torch.Tensor, generator: torch.Generator, of_noise: torch.Generator) -> torch.Tensor:
    """An image (X, Y, Z) in [-1, 1] under a random gamma, gain, offset and noise of random strength.

    The first four are drawn by the host's `generator`, the noise by one of the image's device.
    """
    bend, stretch, lift, grain = uniform(generator, 4).tolist()
    gain = 1 + GAIN * stretch
    unit = ((image + 1) / 2).clamp_(0, 1)  # a power needs numbers from 0 to 1
    bent = unit.pow_(math.exp(GAMMA * bend))
    noise = torch.empty_like(image).normal_(generator=of_noise)
    scaled = bent.mul_(2 * gain).add_(OFFSET * lift - gain)
    return scaled.add_(noise, alpha=NOISE * abs(grain))


def warp_label(label: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The label (X', Y', Z') at the places of a grid (3, X, Y, Z) as grid_sample wants it: (X, Y, Z) int64.

    Each of the eight labels around a place has its trilinear weight, and that of the largest sum wins: what indicator
    functions of all labels would give, in time and memory that do not grow with their number.
    """
    corner, fractions = _cells(label.shape, grid)
    flat = label.flatten()
    if label.device.type != "cpu":
        return _heaviest_of_corners(flat, label.shape, corner, fractions).long().view(grid.shape[1:])
    # Most places have one label around them. To pick the others out would make the host wait for another device.
    warped = flat.index_select(0, corner)
    mixed = _differ_around(label).flatten().index_select(0, corner).nonzero().squeeze(1)
    warped[mixed] = _heaviest_of_corners(flat, label.shape, corner[mixed], fractions[:, mixed])
    return warped.long().view(grid.shape[1:])


def _cells(shape: Sequence[int], grid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Between which voxels of a volume of `shape` the places of a grid (3, X, Y, Z) lie.

    Returns the number of the first of the eight voxels around each, in a flat volume, (N,) int32, and how far each lies
    from there, (3, N) in voxels along each axis. Places beyond the volume are moved onto its border.
    """
    corner = torch.zeros((), dtype=torch.int32, device=grid.device)
    fractions = []
    for size, along in zip(shape, grid.flatten(1).unbind()[::-1], strict=True):
        position = ((along + 1) / 2 * (size - 1)).clamp_(0, size - 1)
        first = position.floor().clamp_(max=size - 2)
        fractions.append(position.sub_(first))
        corner = corner * size + first.int()
    return corner, torch.stack(fractions)


def _differ_around(label: torch.Tensor) -> torch.Tensor:
    """Whether the eight labels from each voxel of (X, Y, Z) up to the next along each axis differ: bool, its shape."""
    low = label
    high = label
    for axis in range(3):
        size = low.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, size), low.narrow(axis, 1, size))
        high = torch.maximum(high.narrow(axis, 0, size), high.narrow(axis, 1, size))
    return F.pad(low != high, (0, 1) * 3)


def _heaviest_of_corners(
    flat: torch.Tensor, shape: Sequence[int], corner: torch.Tensor, fractions: torch.Tensor
) -> torch.Tensor:
    """The label of the largest trilinear weight at places that `_cells` describes: (N,) of the type of the volume."""
    labels = []
    weights = []
    for x, y, z in itertools.product((0, 1), repeat=3):
        labels.append(flat.index_select(0, corner + (x * shape[1] + y) * shape[2] + z))
        along = [part if step else 1 - part for step, part in zip((x, y, z), fractions, strict=True)]
        weights.append(along[0] * along[1] * along[2])
    return _heaviest(torch.stack(labels), torch.stack(weights))


def _heaviest(labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Of labels (K, N) with weights (K, N) the label of the largest sum of weights in each column: (N,).

    Of equals it is the smallest label.
    """
    best = labels[0]
    most = torch.zeros_like(weights[0])
    for label in labels:
        total = torch.where(labels == label, weights, 0).sum(0)
        wins = (total > most) | ((total == most) & (label < best))
        best = torch.where(wins, label, best)
        most = torch.maximum(most, total)
    return best


def uniform(generator: torch.Generator, *size: int) -> torch.Tensor:
    """Numbers in [-1, 1)."""
    return torch.rand(size, generator=generator) * 2 - 1
