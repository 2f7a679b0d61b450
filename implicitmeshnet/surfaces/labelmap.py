"""Meshes to masks and label maps on an image's grid, and what of them overlaps."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, find_objects

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid
from implicitmeshnet.ops import mesh2sdf, sample_trilinear, voxelize
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

Mesh = tuple[np.ndarray, np.ndarray]
"""Vertices (V, 3) in world mm RAS and faces (F, 3), counter-clockwise from outside."""
Box = tuple[slice, slice, slice]
Part = tuple[Box, np.ndarray]
"""A mask of a grid by its bounding box: where that is, and the bool array of what lies inside there."""
Depths = Callable[[np.ndarray, np.ndarray], np.ndarray]

LATTICE, LATTICE_MM = 48, 48.0
"""Where meshes overlap they are measured at so many nodes along each side of cubes of this size, or of smaller ones."""


def mesh_to_mask(vertices_mm: np.ndarray, faces: np.ndarray, grid: Grid) -> np.ndarray:
    """The voxels of `grid` whose centres lie inside a mesh in world mm RAS: bool (X, Y, Z)."""
    mask = np.zeros(grid.shape, dtype=bool)
    box, inside = _voxelize_in_box(vertices_mm, faces, grid)
    mask[box] = inside
    return mask


def meshes_to_labelmap(meshes: Sequence[Mesh], structures: Structures, grid: Grid) -> np.ndarray:
    """Label map int16 (X, Y, Z) on a grid of the structures' meshes, each vertices_mm (V, 3) and faces (F, 3).

    A voxel inside several meshes goes to the one in which it lies deepest, by the meshes' signed distances; ties go to
    the mesh that comes first. Where a mesh that encloses others wins, what lies in one of these too goes to that one,
    or to the one of them in which it lies deepest.
    """
    parts = [_voxelize_in_box(vertices_mm, faces, grid) for vertices_mm, faces in meshes]
    return _deepest_wins(parts, structures, grid, partial(_depths_in_meshes_mm, meshes, grid))


def masks_to_labelmap(masks: Sequence[np.ndarray], structures: Structures, grid: Grid) -> np.ndarray:
    """Label map int16 (X, Y, Z) on a grid of the structures' masks, each bool (X, Y, Z).

    A voxel in several masks goes to the one in which it lies deepest, by the distance in mm to the nearest voxel
    outside (the image's edge counts as outside); ties go to the mask that comes first.
    """
    parts = [_cut_to_box(mask) for mask in masks]
    return _deepest_wins(parts, structures, grid, partial(_depths_in_masks_mm, parts, grid))


def overlaps_ml(meshes: Sequence[Mesh], structures: Structures, grid: Grid) -> np.ndarray:
    """Volume (S, S) in ml that two of S meshes both claim, counted in a grid's voxels.

    For a mesh that encloses another it is what of the other sticks out of it.
    """
    parts = [_voxelize_in_box(vertices_mm, faces, grid) for vertices_mm, faces in meshes]
    overlaps = np.zeros((len(parts), len(parts)))
    for first, second in combinations(range(len(parts)), 2):
        _, (one, other) = _common_box(parts[first], parts[second])
        shared = np.count_nonzero(one & other)
        if second in structures.encloses[first]:
            shared = np.count_nonzero(parts[second][1]) - shared
        elif first in structures.encloses[second]:
            shared = np.count_nonzero(parts[first][1]) - shared
        overlaps[first, second] = overlaps[second, first] = shared * grid.voxel_mm3 / 1000
    return overlaps


def _deepest_wins(parts: Sequence[Part], structures: Structures, grid: Grid, depths_mm: Depths) -> np.ndarray:
    """The label map of the structures' masks, each a Part of the grid.

    `depths_mm` takes the voxels (N, 3) that several masks claim, and which claim them (S, N), to how deep they lie in
    these: (S, N), whatever elsewhere.
    """
    labels = np.zeros(grid.shape, np.int16, order="F")  # as files hold it; memory is taken where something is written
    claims = np.zeros(grid.shape, np.int16, order="F")  # how many masks hold each voxel
    values = np.array(list(structures.written.values()), np.int16)
    enclosing_first = sorted(range(len(parts)), key=lambda structure: -len(structures.encloses[structure]))
    for structure in enclosing_first:  # so that what is enclosed is painted over what encloses it
        box, inside = parts[structure]
        np.copyto(labels[box], values[structure], where=inside)
        claims[box] += inside
    for outer, enclosed in enumerate(structures.encloses):
        if len(enclosed) == 1:  # the one may lie in the other: no contest, and it is painted already
            box, (one, other) = _common_box(parts[outer], parts[enclosed[0]])
            claims[box] -= one & other
    around = _box_around(parts)
    contested = np.argwhere(claims[around].T > 1)[:, ::-1] + _starts(around)
    if len(contested):
        claimed = _claims(parts, contested)  # (S, N)
        depths = np.where(claimed, depths_mm(contested, claimed), -np.inf)
        labels[tuple(contested.T)] = values[_winners(depths, claimed, structures)]
    return labels


def _box_around(parts: Sequence[Part]) -> Box:
    """The smallest box that holds those of all masks which are not empty."""
    starts = [_starts(box) for box, inside in parts if inside.size]
    stops = [np.add(_starts(box), inside.shape) for box, inside in parts if inside.size]
    if not starts:
        return _box(np.zeros(3, int), np.zeros(3, int))
    return _box(np.min(starts, 0), np.max(stops, 0))


def _winners(depths: np.ndarray, claimed: np.ndarray, structures: Structures) -> np.ndarray:
    """The structure that each contested voxel goes to, int (N,), from depths and claims (S, N)."""
    winners = depths.argmax(0)  # the first of equals
    for outer, enclosed in enumerate(structures.encloses):
        if enclosed:
            inner = np.array(enclosed)
            to_inner = (winners == outer) & claimed[inner].any(0)
            deepest_inner = inner[depths[inner].argmax(0)]
            winners[to_inner] = deepest_inner[to_inner]
    return winners


def _cut_to_box(mask: np.ndarray) -> Part:
    """A mask (X, Y, Z) as its bounding box and what lies in it; an empty one has an empty box."""
    boxes = find_objects(mask.view(np.uint8))
    box = boxes[0] if boxes else (slice(0, 0),) * 3
    return box, mask[box]


def _common_box(*parts: Part) -> tuple[Box, list[np.ndarray]]:
    """Where the boxes of masks overlap, and each mask there."""
    starts = np.array([_starts(box) for box, _ in parts])
    stops = starts + [inside.shape for _, inside in parts]
    start = starts.max(0)
    stop = np.maximum(stops.min(0), start)  # none overlaps: an empty box
    masks = [inside[_box(start - own, stop - own)] for own, (_, inside) in zip(starts, parts, strict=True)]
    return _box(start, stop), masks


def _starts(box: Box) -> list[int]:
    return [ends.start for ends in box]


def _box(start: np.ndarray, stop: np.ndarray) -> Box:
    first, second, third = map(slice, start.tolist(), stop.tolist())
    return first, second, third


def _claims(parts: Sequence[Part], voxels: np.ndarray) -> np.ndarray:
    """Which of the masks hold each of the voxels (N, 3): bool (S, N)."""
    claimed = np.zeros((len(parts), len(voxels)), dtype=bool)
    for row, (box, inside) in zip(claimed, parts, strict=True):
        offset = voxels - _starts(box)
        within = ((offset >= 0) & (offset < inside.shape)).all(1)
        row[within] = inside[tuple(offset[within].T)]
    return claimed


def _depths_in_masks_mm(parts: Sequence[Part], grid: Grid, voxels: np.ndarray, claimed: np.ndarray) -> np.ndarray:
    """Distances to the nearest voxel outside each mask that claims a voxel: float32 (S, N)."""
    depths = np.zeros(claimed.shape, dtype=np.float32)
    for row, chosen, (box, inside) in zip(depths, claimed, parts, strict=True):
        if chosen.any():
            depth_mm = distance_transform_edt(np.pad(inside, 1), sampling=grid.spacing_mm)
            offset = voxels[chosen] - _starts(box) + 1
            row[chosen] = depth_mm[tuple(offset.T)]
    return depths


def _depths_in_meshes_mm(meshes: Sequence[Mesh], grid: Grid, voxels: np.ndarray, claimed: np.ndarray) -> np.ndarray:
    """How deep voxels lie in each mesh that claims them: float32 (S, N), mm.

    The exact distance is taken at the nodes of a lattice over the voxels, cube by cube of LATTICE_MM, and interpolated
    linearly: contested voxels are many, and lie close together.
    """
    points = transform(grid.affine, voxels.astype(np.float64))
    depths = np.zeros(claimed.shape, dtype=np.float32)
    for chosen in _cubes(points):
        low = points[chosen].min(0)
        high = points[chosen].max(0)
        middle = (low + high) / 2
        half_mm = max((high - low).max() / 2, 1.0)
        near = torch.from_numpy((points[chosen] - middle) / half_mm).float()[None]
        for structure in np.flatnonzero(claimed[:, chosen].any(1)).tolist():
            vertices_mm, faces = meshes[structure]
            centred = (np.asarray(vertices_mm, dtype=np.float64) - middle) / half_mm
            sdf = mesh2sdf(torch.from_numpy(centred).float(), _as_tensor(faces), LATTICE)
            depth_mm = -half_mm * sample_trilinear([sdf[None, None]], near)[0, :, 0].numpy()
            depths[structure, chosen] = depth_mm.round(3)  # so that rounding errors do not decide ties
    return depths


def _cubes(points_mm: np.ndarray) -> list[np.ndarray]:
    """Points (N, 3) sorted into cubes of LATTICE_MM: the indices of each cube's."""
    place = np.floor((points_mm - points_mm.min(0)) / LATTICE_MM).astype(int)
    number = np.ravel_multi_index(tuple(place.T), place.max(0) + 1)
    _, cube = np.unique(number, return_inverse=True)
    ends = np.cumsum(np.bincount(cube))[:-1]
    return np.split(np.argsort(cube, kind="stable"), ends)


def _voxelize_in_box(vertices_mm: np.ndarray, faces: np.ndarray, grid: Grid) -> Part:
    """The mesh's bounding box in a grid, and what lies inside the mesh there."""
    vertices = transform(np.linalg.inv(grid.affine), np.asarray(vertices_mm, dtype=np.float64))  # voxels
    if not np.isfinite(vertices).all():
        raise InputError("vertices: wanted finite coordinates, found NaN or infinity")
    start = np.clip(np.ceil(vertices.min(0)), 0, grid.shape).astype(int)
    stop = np.clip(np.floor(vertices.max(0)) + 1, start, grid.shape).astype(int)
    shape = (stop - start).tolist()
    if 0 in shape:
        return _box(start, stop), np.zeros(shape, dtype=bool)
    # With the axes turned round, so that the first lies innermost in memory, as in the files that label maps go to.
    turned = np.ascontiguousarray((vertices - start)[:, ::-1])
    inside = voxelize(torch.from_numpy(turned), _as_tensor(faces[:, ::-1]), shape[::-1])
    return _box(start, stop), inside.numpy().T


def _as_tensor(faces: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(faces), dtype=torch.int64)
