"""A whole volume at a coarse spacing, in which the coarse pass looks, and where the fine network's box lies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.tissue_maps import Anatomy
from implicitmeshnet.data.volume import Grid, Volume, network_grid, resample_channels, shares
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

IGNORED = 2
"""The class of an overview's label where nothing is known."""
MAX_VOXELS = 2**24  # of an overview: a body of 2 m at 4 mm


@dataclass(frozen=True, eq=False)
class Overview:
    """A whole volume at a coarse spacing."""

    image: torch.Tensor  # (C, X, Y, Z) in [-1, 1], or tissue parts
    label: torch.Tensor | None  # (X, Y, Z) uint8: 1 where any structure is, or IGNORED
    grid: Grid
    anatomy: Anatomy | None = None  # where the image are tissue parts


def overview_of(image: Volume, labels: Volume | None, config: DataConfig) -> Overview:
    """The overview of a canonical volume of normalised intensity and of its label map, where there is one.

    It has at least three voxels along each axis, so that its middle one lies in the volume however thin that is. Raises
    InputError, which begins with the image's name, where the overview would have more than MAX_VOXELS.
    """
    spacing_mm = config.overview_spacing_mm
    sides_mm = image.data.shape * image.grid.spacing_mm
    shape = [max(3, math.ceil(side_mm / spacing_mm)) for side_mm in sides_mm]
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            f"{image.name}: data.overview_spacing_mm: wanted an overview of at most {MAX_VOXELS} voxels, found"
            f" {tuple(shape)} for {spacing_mm:g} mm"
        )
    grid = network_grid(image.grid, shape, spacing_mm)
    label = None if labels is None else torch.from_numpy(_coarse_label(labels, grid, config))
    resampled = resample_channels(image, grid, background=-1.0)
    return Overview(torch.from_numpy(resampled), label, grid)


def _coarse_label(labels: Volume, grid: Grid, config: DataConfig) -> np.ndarray:
    """Which voxels of an overview belong to the structures: uint8 (X, Y, Z), 1 where they do, IGNORED where more of a
    voxel is ignored than background.

    The structures' are the voxels of which they together fill more than half; and those of which one structure fills at
    least half as much as of the voxel that it fills most, so that even a structure that is smaller than a voxel, or
    lies between two, is there.
    """
    structures = Structures.of(config)
    total = np.zeros(grid.shape, np.float32)
    ignored = np.zeros(grid.shape, np.float32)
    label = np.zeros(grid.shape, np.uint8)
    for structure, share in shares(labels, grid, structures):
        if structure == len(structures):
            ignored = share
            continue
        total += share
        label |= share >= max(share.max() / 2, 1e-6)
    label |= total > 0.5
    background = 1 - total - ignored
    label[(label == 0) & (ignored > background)] = IGNORED
    return label


def label_centre_mm(labels: Volume, config: DataConfig) -> np.ndarray | None:
    """World position (3,) of the network's box around the structures of a canonical label map; None without any.

    Where the box cannot hold them all, each structure has the same worth, whatever its size.
    """
    structures = Structures.of(config)
    classes = structures.class_map(labels.data)
    counts = [np.zeros(size) for size in classes.shape]
    worths = [np.zeros(size) for size in classes.shape]
    for structure in range(len(structures)):
        mask = structures.own(classes, structure)
        total = max(np.count_nonzero(mask), 1)
        for axis in range(3):
            profile = _profile(mask, axis)
            counts[axis] += profile
            worths[axis] += profile / total
    return _box_centre_mm(counts, worths, labels.grid, config)


def mask_centre_mm(mask: np.ndarray, grid: Grid, config: DataConfig) -> np.ndarray | None:
    """World position (3,) of the network's box around a mask (X, Y, Z) on a grid; None where the mask is empty."""
    counts = [_profile(mask, axis) for axis in range(3)]
    return _box_centre_mm(counts, counts, grid, config)


def _box_centre_mm(
    counts: Sequence[np.ndarray], worths: Sequence[np.ndarray], grid: Grid, config: DataConfig
) -> np.ndarray | None:
    """Of the positions at which the network's box holds most worth, the nearest to the voxels' centroid.

    `counts` and `worths` hold for each of the grid's axes the number of voxels, and their worth, in each plane across
    it. None where there are no voxels.
    """
    if not counts[0].any():
        return None
    sides = np.multiply(config.shape, config.spacing_mm) / grid.spacing_mm  # of the box, in voxels of the grid
    centre = list(map(_best_middle, counts, worths, sides))
    return transform(grid.affine, np.array(centre))


def _best_middle(counts: np.ndarray, worths: np.ndarray, side: float) -> float:
    """The middle of the interval of `side` voxels that holds most of `worths`, nearest to the centroid of `counts`."""
    centroid = np.average(np.arange(len(counts)), weights=counts)
    edges = np.arange(len(worths) + 1) - 0.5
    share_below = np.concatenate([[0.0], np.cumsum(worths)]) / np.sum(worths)  # of all worth, below each edge

    # The share that an interval holds is piecewise linear in its start, so it is largest where the start or the end
    # lies on an edge of a voxel; the interval around the centroid is tried too, as it may hold as much.
    starts = np.concatenate([[centroid - side / 2], edges, edges - side])
    below_end = np.interp(starts + side, edges, share_below)
    held = below_end - np.interp(starts, edges, share_below)
    best = starts[held >= held.max() - 1e-6] + side / 2
    return best[np.argmin(np.abs(best - centroid))]


def _profile(mask: np.ndarray, axis: int) -> np.ndarray:
    """The number of voxels of a mask (X, Y, Z) in each plane across an axis."""
    return np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis}))
