"""Volumes in the world: canonical orientation, resampling, intensity.

A volume is read in the file's own voxel order; `canonical` turns it to RAS+, and `slices_along` before it the world
where a network wants thick slices along an axis of its own. The network sees it on `network_grid`,
whose axes run along those of the canonical volume, so `resample_image` and `resample_labels` multiply each axis by a
matrix of its own.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from nibabel import Nifti1Header
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy.ndimage import find_objects

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

THICK = 1.5  # times the spacing within them, from which slices count as thick
TIE_BREAK = (1e-3, 2e-3, 4e-3)  # source voxels, see `shares`
PADDING_GAP = 0.1  # between a padding value and all others, relative to the range of these
MAX_VOXELS = 2**31  # of a volume that is resampled by nearest neighbour
PLANES_AT_ONCE = 16  # of a volume that is resampled


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie in the world."""

    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4) float64, voxel -> world, mm RAS
    header: Nifti1Header | None = None
    """Of the file that the grid was read from: its forms, codes and units, for label maps on the same grid."""

    @property
    def spacing_mm(self) -> np.ndarray:  # (3,) of the voxels along each axis
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_mm3(self) -> float:  # less than the product of its sides where the axes are sheared
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def turned(self, turn: np.ndarray) -> "Grid":
        """The same voxels in a world that was turned, or mirrored, by a matrix (4, 4)."""
        return replace(self, affine=turn @ self.affine)

    @property
    def world_from_normalised(self) -> np.ndarray:  # (4, 4) float64
        return self.affine @ voxel_from_normalised(self.shape)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image or a label map and where it lies."""

    data: np.ndarray  # (X, Y, Z)
    grid: Grid
    warnings: tuple[str, ...] = ()
    """A sentence on each thing about the file that may make results wrong."""
    name: str = "volume"
    """What messages call it: its file, where it has one."""
    others: tuple[np.ndarray, ...] = ()
    """Of an image of several channels the second and further ones, each (X, Y, Z); `data` is the first."""

    @property
    def channels(self) -> tuple[np.ndarray, ...]:  # each (X, Y, Z)
        return (self.data, *self.others)

    def with_channels(self, channels: Sequence[np.ndarray], grid: Grid | None = None) -> "Volume":
        """The same volume with other channels, each (X, Y, Z), on another grid where one is given."""
        first, *others = channels
        return replace(self, data=first, others=tuple(others), grid=grid or self.grid)


def voxels_apart(shape: Sequence[int], affine: np.ndarray, other: np.ndarray) -> float:
    """How far apart two affines (4, 4) put the corners of a grid of `shape`.

    This is the largest difference of any corner along any axis, in voxels of the first affine.
    """
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1.0)
    moved = transform(np.linalg.inv(affine) @ other, corners)
    return float(np.abs(moved - corners).max())


def canonical(volume: Volume) -> Volume:
    """The same volume with its voxel axes permuted and flipped to those closest to RAS+."""
    orientation = io_orientation(volume.grid.affine)
    channels = [apply_orientation(channel, orientation) for channel in volume.channels]
    return volume.with_channels(channels, _canonical_grid(volume.grid))


def nearest_axes(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of voxel axes, columns (3, 3), the patient's axis that `canonical` gives each, and the sign that it gives it."""
    affine = np.eye(4)
    affine[:3, :3] = directions
    orientation = io_orientation(affine)
    return orientation[:, 0].astype(int), orientation[:, 1]


def thick_axis(spacing_mm: Sequence[float] | np.ndarray, times: float = THICK) -> int | None:
    """The axis along which slices follow each other, as its spacing is more than so many times the others'; or None."""
    spacing = np.asarray(spacing_mm, np.float64)
    axis = int(spacing.argmax())
    return axis if spacing[axis] > times * np.delete(spacing, axis).max() else None


def slices_along(grid: Grid, spacing_mm: float | Sequence[float]) -> np.ndarray:
    """A turn of the world, (4, 4), after which a volume's thick slices lie across the thick axis of such a spacing.

    Short-axis stacks lie anywhere between the patient's axes, and the nearest of these is another from one patient to
    the next; a network with thick voxels wants them across the slices. The other axes, and all signs, are the nearest
    to the patient's that remain. The turn takes axes to axes; it is the identity where either has no thick axis.
    """
    turn = np.eye(4)
    wanted = thick_axis(np.broadcast_to(spacing_mm, 3))
    found = thick_axis(grid.spacing_mm)
    if wanted is None or found is None:
        return turn
    directions = grid.affine[:3, :3] / grid.spacing_mm  # of the voxels' axes, in columns
    orders = [order for order in itertools.permutations(range(3)) if order[wanted] == found]
    order = max(orders, key=lambda order: np.abs(directions[:, order]).trace())
    nearest, _ = nearest_axes(directions)
    for axis, voxels in enumerate(order):
        # Turned, the voxels' axis is to keep the sign that it has along the axis that it goes to.
        agree = np.sign(directions[axis, voxels] * directions[nearest[voxels], voxels])
        turn[axis, :3] = 0
        turn[axis, nearest[voxels]] = agree or 1.0
    return turn


def turned_by(volume: Volume, turn: np.ndarray) -> Volume:
    """The same volume on its grid `turned`."""
    return replace(volume, grid=volume.grid.turned(turn))


def in_order_of(volume: Volume, grid: Grid) -> Volume:
    """The same volume with its voxel axes permuted and flipped to those closest to another grid's."""
    orientation = io_orientation(np.linalg.inv(grid.affine) @ volume.grid.affine)
    channels = [apply_orientation(channel, orientation) for channel in volume.channels]
    return volume.with_channels(channels, _turned(volume.grid, orientation))


def network_grid(
    grid: Grid,
    shape: Sequence[int],
    spacing_mm: float | Sequence[float],
    centre_mm: Sequence[float] | np.ndarray | None = None,
) -> Grid:
    """The grid of `shape` voxels along the axes of a volume's canonical orientation, of one spacing or one an axis.

    `grid` is the volume's. The new one lies around a world position `centre_mm` (3,), by default the volume's centre,
    moved by up to half a voxel so that its middle voxel sits on one of the volume's: at the volume's own spacing voxels
    are then copied. Half-way between the volume's voxels, images would blur and structures would tie along their
    borders.
    """
    source = _canonical_grid(grid)
    step = np.divide(spacing_mm, source.spacing_mm)  # in source voxels, along each axis
    around = (np.array(source.shape) - 1) / 2  # source voxel at the centre
    if centre_mm is not None:
        around = transform(np.linalg.inv(source.affine), np.asarray(centre_mm, np.float64))

    # The source voxel at the new grid's middle voxel, which lies beside its centre where a side is even. It is rounded
    # to the nearest, and down from half-way, with a margin for the rounding of affines.
    sides = np.array(shape)
    middle = (sides - 1) // 2
    beside = middle - (sides - 1) / 2
    snapped = np.ceil(around + step * beside - 0.501)

    affine = np.eye(4)
    affine[:3, :3] = source.affine[:3, :3] * step
    affine[:3, 3] = transform(source.affine, snapped - step * middle)
    return Grid(_three(sides), affine)


def resample_image(volume: Volume, target: Grid, background: float) -> np.ndarray:
    """A volume's first channel on the target grid, float32 (X, Y, Z): linear, anti-aliased where that is coarser.

    Voxels whose centre lies more than half a source voxel outside the volume are `background`. Raises ValueError where
    the two grids' axes are not parallel.
    """
    weights, inside = _axis_weights(volume.grid, target)
    resampled = _apply(weights, volume.data.astype(np.float32, copy=False))
    return np.where(inside, resampled, np.float32(background))


def covered(source: Grid, target: Grid) -> np.ndarray:
    """Which voxels of a target grid a volume's grid covers: bool (X, Y, Z).

    A voxel whose centre lies more than half a source voxel beyond the volume is not covered. Raises ValueError as
    `resample_image`.
    """
    return _axis_weights(source, target)[1]


def resample_channels(volume: Volume, target: Grid, background: float) -> np.ndarray:
    """All channels of an image on the target grid, float32 (C, X, Y, Z), each as `resample_image`."""
    resampled = []
    for channel in volume.channels:
        resampled.append(resample_image(replace(volume, data=channel), target, background))
    return np.stack(resampled)


def resample_labels(volume: Volume, target: Grid, structures: Structures) -> np.ndarray:
    """The class map of a label map on the target grid: uint8 (X, Y, Z), see `Structures`.

    The mask of each structure, and of what is ignored, is resampled like an image; the background has what they leave
    of a voxel. Each voxel gets the class with the largest share of it. Ties go to the background, else to the structure
    that comes first.
    Raises ValueError as `resample_image`.
    """
    largest = np.zeros(target.shape, np.float32)
    total = np.zeros(target.shape, np.float32)
    classes = np.zeros(target.shape, np.uint8)
    for structure, share in shares(volume, target, structures):
        classes[share > largest] = structures.class_of(structure)
        np.maximum(largest, share, out=largest)
        total += share
    background = 1 - total
    return np.where(largest > background, classes, np.uint8(0))


def shares(volume: Volume, target: Grid, structures: Structures) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each structure that is in a label map, by its number, and the share of each target voxel that it fills.

    What is ignored comes last, where there is any, as if it were structure S of S. Shares are float32 (X, Y, Z), the
    structure's mask resampled like an image, 0 outside the volume. On grids that lie half a voxel apart, structure and
    background would tie along every border and the background would win, which would cost a tenth of a hippocampus; so
    the label map is sampled TIE_BREAK source voxels beside each target voxel's centre. Raises ValueError as
    `resample_image`.
    """
    classes = structures.class_map(volume.data)
    weights, inside = _axis_weights(volume.grid, target, TIE_BREAK)
    for structure, box in enumerate(find_objects(classes, structures.ignored_class)):
        if box is None:
            continue
        mask = structures.own(classes[box], structure).astype(np.float32)
        within_box = [matrix[:, part] for matrix, part in zip(weights, box, strict=True)]  # zeros elsewhere
        yield structure, np.where(inside, _apply(within_box, mask), np.float32(0))


def box_inside(volume: Grid, target: Grid) -> tuple[slice, slice, slice]:
    """The voxels of a volume whose centres lie within the outer faces of a target grid, as slices of its three axes.

    Raises ValueError where the two grids' axes are not parallel.
    """
    matrix = _parallel(volume, target)

    def along(axis: int) -> slice:
        outer_faces = np.array([-0.5, target.shape[axis] - 0.5])
        ends = matrix[axis, 3] + matrix[axis, axis] * outer_faces
        first = int(np.ceil(ends.min().round(6)))
        last = int(np.floor(ends.max().round(6)))
        return slice(max(first, 0), max(last + 1, 0))

    return along(0), along(1), along(2)


def resample_nearest(volume: Volume, spacing_mm: float) -> Volume:
    """The volume with isotropic voxels along its own axes, by nearest neighbour.

    It covers the same field of view to half a voxel. Raises InputError where that leaves fewer than two voxels along an
    axis, or more than 2^31 in all.
    """
    counts = [round(side_mm / spacing_mm) for side_mm in volume.data.shape * volume.grid.spacing_mm]
    if min(counts) < 2 or math.prod(counts) > MAX_VOXELS:
        raise InputError(f"volume: wanted 2 to 2^31 voxels at {spacing_mm:g} mm, found {counts}")
    affine = volume.grid.affine.copy()
    indices = []
    for axis, (size, count) in enumerate(zip(volume.data.shape, counts, strict=True)):
        step = spacing_mm / volume.grid.spacing_mm[axis]
        first = (size - 1) / 2 - step * (count - 1) / 2  # in voxels of the volume
        positions = (first + step * np.arange(count)).round(6)
        nearest = np.floor(positions + 0.5).clip(0, size - 1)
        indices.append(nearest.astype(int))
        affine[:3, 3] += first * volume.grid.affine[:3, axis]
        affine[:3, axis] *= step
    data = np.ascontiguousarray(volume.data[np.ix_(*indices)])
    return Volume(data, Grid(_three(counts), affine))


def resample_nearest_onto(volume: Volume, grid: Grid) -> Volume:
    """The volume on another grid, of any affine, by nearest neighbour in world coordinates.

    Voxels whose centre lies more than half a source voxel outside the volume are 0. Raises InputError where the grid
    has more than 2^31 voxels.
    """
    if math.prod(grid.shape) > MAX_VOXELS:
        raise InputError(f"grid: wanted at most 2^31 voxels, found {list(grid.shape)}")
    to_source = np.linalg.inv(volume.grid.affine) @ grid.affine  # voxel to voxel
    size = np.reshape(volume.data.shape, (3, 1, 1))
    second, third = np.ogrid[: grid.shape[1], : grid.shape[2]]
    steps = to_source[:3, :3, None, None]  # (3, 3, 1, 1)
    in_plane = steps[:, 1] * second + steps[:, 2] * third  # (3, Y, Z)
    data = np.zeros(grid.shape, volume.data.dtype)
    for index, plane in enumerate(data):
        start = to_source[:3, 0] * index + to_source[:3, 3]
        positions = in_plane + start[:, None, None]
        nearest = np.floor(positions.round(6) + 0.5)  # rounded first, so that the rounding of affines does not matter
        inside = ((nearest >= 0) & (nearest < size)).all(0)
        voxels = nearest[:, inside].astype(int)
        plane[inside] = volume.data[tuple(voxels)]
    return Volume(data, grid)


def normalise_intensity(data: np.ndarray, config: DataConfig, channel: int = 0) -> np.ndarray:
    """Map voxel values to [-1, 1], float32, clipped: the config's window in HU, or the volume's own percentiles.

    Which of the two is the rule of the image's `channel` that they are of. A volume whose percentiles coincide is
    mapped from its minimum and maximum, a constant one to -1.
    """
    low, high = _intensity_range(data, config, channel)
    if high - low < np.finfo(np.float32).tiny:  # so narrow a range means nothing, and its inverse would be infinite
        return np.full(data.shape, -1, np.float32)
    scale = 2 / (high - low)
    with np.errstate(over="ignore"):
        mapped = data.astype(np.float32)
        mapped -= low  # in place, as volumes may take much of the memory
        mapped *= scale
        mapped -= 1
    return np.clip(mapped, -1, 1, out=mapped)


def _intensity_range(data: np.ndarray, config: DataConfig, channel: int) -> tuple[float, float]:
    """The voxel values that become -1 and 1."""
    if config.intensity_rules[channel] == "window":
        half = config.window_hu / 2
        return config.level_hu - half, config.level_hu + half
    step = int(np.ceil((data.size / 2e6) ** (1 / 3)))  # a regular subset of about two million voxels is enough
    subset = _without_padding(data[::step, ::step, ::step])
    low, high = map(float, np.percentile(subset, config.percentiles))
    if low == high:
        return float(data.min()), float(data.max())
    return low, high


def _without_padding(values: np.ndarray) -> np.ndarray:
    """Values without the smallest where that is no measurement but what a scanner writes beyond its field of view.

    A CT's corners may hold -2000 or -3024 HU where air has -1024: nothing comes near it, as it would to the darkest
    tissue or to a background of 0.
    """
    least = values.min()
    others = values[values > least]
    if not others.size:
        return values
    gap = float(others.min()) - float(least)
    width = float(others.max()) - float(others.min())
    return others if gap > PADDING_GAP * width else values


def _canonical_grid(grid: Grid) -> Grid:
    return _turned(grid, io_orientation(grid.affine))


def _turned(grid: Grid, orientation: np.ndarray) -> Grid:
    """A grid with its axes permuted and flipped by an orientation (3, 2) of nibabel's."""
    shape = np.empty(3, int)
    shape[orientation[:, 0].astype(int)] = grid.shape
    return Grid(_three(shape), grid.affine @ inv_ornt_aff(orientation, grid.shape))


def _three(sizes: Iterable[int]) -> tuple[int, int, int]:
    """The three sizes of a grid as plain integers."""
    x, y, z = map(int, sizes)
    return x, y, z


def _axis_weights(
    source: Grid, target: Grid, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> tuple[list[np.ndarray], np.ndarray]:
    """One (target, source) matrix per axis, float32, and whether each target voxel lies inside, bool (X, Y, Z).

    The volume is sampled `shift` source voxels beside the target's voxel centres.
    """
    matrix = _parallel(source, target)
    weights = []
    inside = np.array(True)
    for axis, (count, size) in enumerate(zip(source.shape, target.shape, strict=True)):
        step = matrix[axis, axis]
        positions = step * np.arange(size) + matrix[axis, 3]
        positions = positions.round(6)  # so that the rounding of affines does not matter
        weights.append(_triangle_weights(positions + shift[axis], max(1.0, abs(step)), count))
        inside_along = (positions >= -0.5) & (positions <= count - 0.5)
        inside = inside[..., None] & inside_along
    return weights, inside


def _parallel(source: Grid, target: Grid) -> np.ndarray:
    """The matrix from target to source voxels; ValueError where the grids' axes are not parallel."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    off_diagonal = matrix[:3, :3] - np.diag(matrix.diagonal()[:3])
    across = np.abs(off_diagonal) @ np.array(target.shape)
    if across.max() > 1e-2:  # source voxels, over the whole grid
        raise ValueError(f"target: wanted axes parallel to the volume's, found them {across.max():.3g} voxels apart")
    return matrix


def _triangle_weights(positions: np.ndarray, half_width: float, count: int) -> np.ndarray:
    """Weights (P, count) of a triangle around each position, the volume's border repeated; rows sum to 1."""
    reach = int(np.ceil(half_width)) + 1  # voxels that the border is repeated for on either side
    positions = positions.clip(-0.5, count - 0.5)
    offset = np.arange(-reach, count + reach) - positions[:, None]
    weights = np.maximum(0, 1 - np.abs(offset) / half_width)

    # Where half_width is no integer, the samples of a triangle are not balanced around its centre. A factor linear in
    # the offset makes their first moment zero, so that a linear ramp stays exact.
    first = (weights * offset).sum(1, keepdims=True)
    second = (weights * offset**2).sum(1, keepdims=True)
    weights *= 1 - offset * first / np.maximum(second, 1e-12)
    weights /= weights.sum(1, keepdims=True)

    # The repeated border's weights go to the outermost voxels.
    weights[:, reach] += weights[:, :reach].sum(1)
    weights[:, -reach - 1] += weights[:, -reach:].sum(1)
    return weights[:, reach:-reach].astype(np.float32)


def _apply(weights: Sequence[np.ndarray], data: np.ndarray) -> np.ndarray:
    """Multiply each axis of a volume by its matrix, the axes that shrink most first, which saves work."""

    def shrinkage(axis: int) -> float:
        target, source = weights[axis].shape
        return target / source

    for axis in sorted(range(3), key=shrinkage):
        data = _multiply(weights[axis], data, axis)
    return data


def _multiply(matrix: np.ndarray, data: np.ndarray, axis: int) -> np.ndarray:
    """A matrix (T, N) times one axis of a volume, some planes at a time: so the whole is never copied.

    By torch: numpy's threads wait for each other after each plane, which takes ten times as long on a busy machine.
    """
    others = [other for other in range(data.ndim) if other != axis]
    across = max(others, key=lambda other: abs(data.strides[other]))
    planes = np.moveaxis(data, (across, axis), (0, 1))
    products = torch.empty(len(planes), len(matrix), planes.shape[2])
    for start in range(0, len(planes), PLANES_AT_ONCE):
        some = planes[start : start + PLANES_AT_ONCE]
        if min(some.strides) < 0:  # as flipped volumes have, and no tensor
            some = some.copy()
        factor = torch.from_numpy(matrix).expand(len(some), -1, -1)
        torch.bmm(factor, torch.from_numpy(some), out=products[start : start + PLANES_AT_ONCE])
    return np.moveaxis(products.numpy(), (0, 1), (across, axis))
