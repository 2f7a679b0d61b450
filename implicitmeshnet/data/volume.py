"""Volumes in the world: canonical orientation, resampling, intensity.

A volume is read in the file's own voxel order; `canonical` turns it to RAS+. The network sees it on `network_grid`,
whose axes run along the canonical volume's, so `resample_image` and `resample_labels` are one matrix per axis.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from nibabel import Nifti1Header
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from scipy.ndimage import find_objects

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

TIE_BREAK = (1e-3, 2e-3, 4e-3)  # source voxels


@dataclass(frozen=True, eq=False)
class Grid:
    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4) float64, voxel -> world, mm RAS
    header: Nifti1Header | None = None
    """Of the file that the grid was read from: its forms, codes and units, for label maps on the same grid."""

    @property
    def spacing_mm(self) -> np.ndarray:  # (3,)
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def world_from_normalised(self) -> np.ndarray:  # (4, 4) float64
        return self.affine @ voxel_from_normalised(self.shape)


@dataclass(frozen=True, eq=False)
class Volume:
    data: np.ndarray  # (X, Y, Z)
    grid: Grid
    warnings: tuple[str, ...] = ()
    """A sentence on each thing about the file that may make results wrong."""
    name: str = "volume"
    """What messages call it: its file, where it has one."""


def voxels_apart(shape, affine, other) -> float:
    """How far apart two affines (4, 4) put the corners of a grid of `shape`, at most along an axis, in voxels of the
    first."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1.0)
    return float(np.abs(transform(np.linalg.inv(affine) @ other, corners) - corners).max())


def canonical(volume: Volume) -> Volume:
    """The same volume with its voxel axes permuted and flipped to those closest to RAS+."""
    orientation = io_orientation(volume.grid.affine)
    return replace(volume, data=apply_orientation(volume.data, orientation), grid=_canonical_grid(volume.grid))


def in_order_of(volume: Volume, grid: Grid) -> Volume:
    """The same volume with its voxel axes permuted and flipped to those closest to another grid's."""
    orientation = io_orientation(np.linalg.inv(grid.affine) @ volume.grid.affine)
    return replace(volume, data=apply_orientation(volume.data, orientation), grid=_turned(volume.grid, orientation))


def network_grid(grid: Grid, shape, spacing_mm: float, centre_mm=None) -> Grid:
    """The isotropic grid of `shape` along the axes of the volume's canonical orientation, around a world position (3,),
    by default its centre.

    It moves by up to half a voxel so that its middle voxel sits on one of the volume's: at the volume's own spacing
    voxels are then copied, where half-way between them images would blur and label borders tie.
    """
    source, shape = _canonical_grid(grid), np.array(shape)
    step, middle = spacing_mm / source.spacing_mm, (shape - 1) // 2  # step in source voxels
    around = (np.array(source.shape) - 1) / 2
    if centre_mm is not None:
        around = transform(np.linalg.inv(source.affine), np.asarray(centre_mm, np.float64))
    centred = around + step * (middle - (shape - 1) / 2)  # source voxel at the middle one
    snapped = np.ceil(centred - 0.501)  # to the nearest, half-way down whatever the rounding of affines
    affine = np.eye(4)
    affine[:3, :3] = source.affine[:3, :3] * step
    affine[:3, 3] = transform(source.affine, snapped - step * middle)
    return Grid(tuple(shape.tolist()), affine)


def resample_image(volume: Volume, target: Grid, background: float) -> np.ndarray:
    """The volume on the target grid, float32 (X, Y, Z): linear, anti-aliased where the target is coarser.

    Voxels whose centre lies more than half a source voxel outside the volume are `background`. Raises ValueError where
    the two grids' axes are not parallel.
    """
    weights, inside = _axis_weights(volume.grid, target)
    return np.where(inside, _apply(weights, volume.data.astype(np.float32, copy=False)), np.float32(background))


def resample_labels(volume: Volume, target: Grid, structures: Structures) -> np.ndarray:
    """The class map of a label map on the target grid: uint8 (X, Y, Z), see `Structures`.

    Every structure's indicator is resampled like an image, background being the rest, and the largest share wins.
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
    """Each structure that is in a label map, by its number, and the share of each target voxel that it fills.

    Shares are float32 (X, Y, Z), the structure's indicator resampled like an image, 0 outside the volume. On grids that
    lie half a voxel apart every border would tie and be lost to the background (a tenth of a hippocampus), so the label
    map is sampled TIE_BREAK source voxels beside each target voxel's centre. Raises ValueError as `resample_image`.
    """
    classes = structures.class_map(volume.data)
    weights, inside = _axis_weights(volume.grid, target, TIE_BREAK)
    for structure, box in enumerate(find_objects(classes, len(structures))):
        if box is None:
            continue
        mask = structures.own(classes[box], structure).astype(np.float32)
        within_box = [matrix[:, part] for matrix, part in zip(weights, box, strict=True)]
        yield structure, np.where(inside, _apply(within_box, mask), np.float32(0))


def box_inside(volume: Grid, target: Grid) -> tuple[slice, slice, slice]:
    """The voxels of a volume whose centres lie within a target grid's outer faces; axes parallel, else ValueError."""
    matrix = _parallel(volume, target)
    box = []
    for axis, size in enumerate(target.shape):
        ends = matrix[axis, 3] + matrix[axis, axis] * np.array([-0.5, size - 0.5])
        first, last = np.ceil(ends.min().round(6)), np.floor(ends.max().round(6))
        box.append(slice(max(int(first), 0), max(int(last) + 1, 0)))
    return tuple(box)


def resample_nearest(volume: Volume, spacing_mm: float) -> Volume:
    """The volume with isotropic voxels along its own axes, over the same field of view to half a voxel, by nearest
    neighbour. Raises InputError where that leaves fewer than two voxels along an axis, or more than 2^31 in all."""
    affine, indices = volume.grid.affine.copy(), []
    counts = [round(side_mm / spacing_mm) for side_mm in volume.data.shape * volume.grid.spacing_mm]
    if min(counts) < 2 or math.prod(counts) > 2**31:
        raise InputError(f"volume: wanted 2 to 2^31 voxels at {spacing_mm:g} mm, found {counts}")
    for axis, (size, count) in enumerate(zip(volume.data.shape, counts, strict=True)):
        step = spacing_mm / volume.grid.spacing_mm[axis]
        first = (size - 1) / 2 - step * (count - 1) / 2  # in voxels of the volume
        indices.append(np.floor((first + step * np.arange(count)).round(6) + 0.5).clip(0, size - 1).astype(int))
        affine[:3, 3] += first * volume.grid.affine[:3, axis]
        affine[:3, axis] *= step
    data = np.ascontiguousarray(volume.data[np.ix_(*indices)])
    return Volume(data, Grid(tuple(data.shape), affine))


def resample_nearest_onto(volume: Volume, grid: Grid) -> Volume:
    """The volume on another grid, of any affine, by nearest neighbour in world coordinates.

    Voxels whose centre lies more than half a source voxel outside the volume are 0. Raises InputError where the grid
    has more than 2^31 voxels.
    """
    if math.prod(grid.shape) > 2**31:
        raise InputError(f"grid: wanted at most 2^31 voxels, found {list(grid.shape)}")
    to_source = np.linalg.inv(volume.grid.affine) @ grid.affine  # voxel to voxel
    size = np.reshape(volume.data.shape, (3, 1, 1))
    second, third = np.ogrid[: grid.shape[1], : grid.shape[2]]
    in_plane = to_source[:3, 1, None, None] * second + to_source[:3, 2, None, None] * third  # (3, Y, Z)
    data = np.zeros(grid.shape, volume.data.dtype)
    for index, plane in enumerate(data):
        start = to_source[:3, 0] * index + to_source[:3, 3]
        positions = (in_plane + start[:, None, None]).round(6)  # the same whatever the rounding of affines
        nearest = np.floor(positions + 0.5)
        inside = ((nearest >= 0) & (nearest < size)).all(0)
        plane[inside] = volume.data[tuple(nearest[:, inside].astype(int))]
    return Volume(data, grid)


def normalise_intensity(data: np.ndarray, config: DataConfig) -> np.ndarray:
    """Map voxel values to [-1, 1], float32, clipped: the config's window in HU, or the volume's own percentiles.

    A volume whose percentiles coincide is mapped from its minimum and maximum, a constant one to -1.
    """
    if config.intensity == "window":
        low, high = config.level_hu - config.window_hu / 2, config.level_hu + config.window_hu / 2
    else:
        step = int(np.ceil((data.size / 2e6) ** (1 / 3)))  # of big volumes a regular subset will do
        low, high = map(float, np.percentile(data[::step, ::step, ::step], config.percentiles))
        if low == high:
            low, high = float(data.min()), float(data.max())
    if high - low < np.finfo(np.float32).tiny:  # of no meaning, and its inverse is infinite
        return np.full(data.shape, -1, np.float32)
    with np.errstate(over="ignore"):
        return np.clip((data.astype(np.float32) - low) * (2 / (high - low)) - 1, -1, 1)


def _canonical_grid(grid: Grid) -> Grid:
    return _turned(grid, io_orientation(grid.affine))


def _turned(grid: Grid, orientation) -> Grid:
    shape = np.empty(3, int)
    shape[orientation[:, 0].astype(int)] = grid.shape
    return Grid(tuple(shape.tolist()), grid.affine @ inv_ornt_aff(orientation, grid.shape))


def _axis_weights(source: Grid, target: Grid, shift=(0.0, 0.0, 0.0)):
    """One (target, source) matrix per axis, float32, and where the target lies inside, broadcast to (X, Y, Z).

    The volume is read `shift` source voxels beside the target's voxel centres.
    """
    matrix = _parallel(source, target)
    weights, inside = [], []
    for axis, (count, size) in enumerate(zip(source.shape, target.shape, strict=True)):
        step = matrix[axis, axis]
        positions = (step * np.arange(size) + matrix[axis, 3]).round(6)  # the same whatever the rounding of affines
        weights.append(_triangle_weights(positions + shift[axis], max(1.0, abs(step)), count))
        inside.append((positions >= -0.5) & (positions <= count - 0.5))
    return weights, inside[0][:, None, None] & inside[1][:, None] & inside[2]


def _parallel(source: Grid, target: Grid) -> np.ndarray:
    """The matrix from target to source voxels; ValueError where the grids' axes are not parallel."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    across = np.abs(matrix[:3, :3] - np.diag(matrix.diagonal()[:3])) @ np.array(target.shape)
    if across.max() > 1e-2:  # source voxels, over the whole grid
        raise ValueError(f"target: wanted axes parallel to the volume's, found them {across.max():.3g} voxels apart")
    return matrix


def _triangle_weights(positions, half_width: float, count: int) -> np.ndarray:
    """Weights (P, count) of a triangle around each position, the volume's border repeated; rows sum to 1.

    Where half_width is no integer, samples of a triangle are not balanced around its centre; the factor linear in the
    offset balances them, so that a linear ramp stays exact.
    """
    reach = int(np.ceil(half_width)) + 1
    positions = positions.clip(-0.5, count - 0.5)
    offset = np.arange(-reach, count + reach) - positions[:, None]
    weights = np.maximum(0, 1 - np.abs(offset) / half_width)
    first, second = ((weights * offset**power).sum(1, keepdims=True) for power in (1, 2))
    weights *= 1 - offset * first / np.maximum(second, 1e-12)
    weights /= weights.sum(1, keepdims=True)
    weights[:, reach] += weights[:, :reach].sum(1)
    weights[:, -reach - 1] += weights[:, -reach:].sum(1)
    return weights[:, reach:-reach].astype(np.float32)


def _apply(weights, data):
    """Multiply each axis of data by its matrix, the axes that shrink most first."""
    for axis in sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1]):
        data = np.moveaxis(np.tensordot(weights[axis], data, (1, axis)), 0, axis)
    return data
