"""Meshes to masks and label maps on an image's grid, and what of them overlaps."""

from functools import partial
from itertools import combinations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, find_objects

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid
from implicitmeshnet.ops import mesh2sdf, sample_trilinear, voxelize
from implicitmeshnet.script import InputError

LATTICE, LATTICE_MM = 48, 48.0
"""Where meshes overlap they are measured at so many nodes along each side of cubes of this size, or of smaller ones."""


def mesh_to_mask(vertices_mm, faces, grid: Grid) -> np.ndarray:
    """The voxels of `grid` whose centres lie inside a mesh in world mm RAS: bool (X, Y, Z)."""
    mask = np.zeros(grid.shape, dtype=bool)
    box, inside = _voxelize_in_box(vertices_mm, faces, grid)
    mask[box] = inside
    return mask


def own_parts(masks, members) -> list[np.ndarray]:
    """Masks, bool (X, Y, Z), each without those that it holds beside its own; `members` are DataConfig.members."""
    return [
        mask & ~np.any([masks[index] for index in inner], axis=0) if inner else mask
        for mask, (_, *inner) in zip(masks, members, strict=True)
    ]


def meshes_to_labelmap(meshes, values, grid: Grid, members=None) -> np.ndarray:
    """Label map int16 (X, Y, Z) of several meshes, each (vertices_mm (V, 3), faces (F, 3)) with its value.

    A voxel inside several meshes goes to the one in which it lies deepest, by the meshes' signed distances; ties go to
    the mesh that comes first. `members` are DataConfig.members: where a mesh that holds others wins, what lies in one
    of these too goes to that one, or to the one of them in which it lies deepest.
    """
    parts = [_voxelize_in_box(vertices_mm, faces, grid) for vertices_mm, faces in meshes]
    return _deepest_wins(parts, values, grid, partial(_depths_in_meshes_mm, meshes, grid), members)


def overlaps_ml(meshes, grid: Grid, members) -> np.ndarray:
    """Volume (S, S) in ml that two of S meshes both claim, each (vertices_mm (V, 3), faces (F, 3)), on a grid's voxels.

    For a mesh that holds another, by `members` of DataConfig, it is what of the other sticks out of it.
    """
    parts = [_voxelize_in_box(vertices_mm, faces, grid) for vertices_mm, faces in meshes]
    voxel_ml = abs(np.linalg.det(grid.affine[:3, :3])) / 1000
    overlaps = np.zeros((len(parts), len(parts)))
    for first, second in combinations(range(len(parts)), 2):
        _, (one, other) = _common_box(parts[first], parts[second])
        shared = np.count_nonzero(one & other)
        if second in members[first]:
            shared = np.count_nonzero(parts[second][1]) - shared
        elif first in members[second]:
            shared = np.count_nonzero(parts[first][1]) - shared
        overlaps[first, second] = overlaps[second, first] = shared * voxel_ml
    return overlaps


def masks_to_labelmap(masks, values, grid: Grid) -> np.ndarray:
    """Label map int16 (X, Y, Z) of several masks, each bool (X, Y, Z) with its value.

    A voxel in several masks goes to the one in which it lies deepest, by the distance in mm to the nearest voxel
    outside (the image's edge counts as outside); ties go to the mask that comes first.
    """
    boxes = [(find_objects(mask.view(np.uint8)) or [(slice(0, 0),) * 3])[0] for mask in masks]
    parts = [(box, mask[box]) for box, mask in zip(boxes, masks, strict=True)]
    return _deepest_wins(parts, values, grid, partial(_depths_in_masks_mm, parts, grid))


def _deepest_wins(parts, values, grid: Grid, depths_mm, members=None) -> np.ndarray:
    """The label map of masks, each given in a box of the grid: slices, and the bool array there.

    `depths_mm` takes the voxels (N, 3) that several masks claim, and which claim them (S, N), to how deep they lie in
    these: (S, N), whatever elsewhere.
    """
    members = members or [[index] for index in range(len(parts))]
    owner, claims = np.full(grid.shape, -1, dtype=np.int16), np.zeros(grid.shape, dtype=np.int16)
    for index in sorted(range(len(parts)), key=lambda index: -len(members[index])):  # the enclosed last
        box, inside = parts[index]
        owner[box][inside] = index
        claims[box] += inside
    for outer, (_, *inner) in enumerate(members):
        if len(inner) == 1:  # it may lie there: no contest
            box, (one, other) = _common_box(parts[outer], parts[inner[0]])
            claims[box] -= one & other
    contested = np.argwhere(claims > 1)
    if len(contested):
        claimed = _claims(parts, contested)  # (S, N)
        depths = np.where(claimed, depths_mm(contested, claimed), -np.inf)
        deepest = depths.argmax(0)
        for outer, (_, *inner) in enumerate(members):
            if inner:
                to_inner = (deepest == outer) & claimed[inner].any(0)
                deepest[to_inner] = np.array(inner)[depths[inner].argmax(0)][to_inner]
        owner[tuple(contested.T)] = deepest
    return np.array([*values, 0], dtype=np.int16)[owner]


def _common_box(*parts):
    """Where the boxes of masks overlap, and each mask there."""
    boxes = [box for box, _ in parts]
    common = tuple(
        slice(low := max(ends.start for ends in axis), max(low, min(ends.stop for ends in axis)))
        for axis in zip(*boxes, strict=True)
    )
    shift = [
        [slice(ends.start - own.start, ends.stop - own.start) for ends, own in zip(common, box, strict=True)]
        for box in boxes
    ]
    return common, [inside[tuple(part)] for part, (_, inside) in zip(shift, parts, strict=True)]


def _claims(parts, voxels) -> np.ndarray:
    """Which of the masks, each in its box, hold each of the voxels (N, 3): bool (S, N)."""
    claimed = np.zeros((len(parts), len(voxels)), dtype=bool)
    for row, (box, inside) in zip(claimed, parts, strict=True):
        offset = voxels - [part.start for part in box]
        within = ((offset >= 0) & (offset < inside.shape)).all(1)
        row[within] = inside[tuple(offset[within].T)]
    return claimed


def _depths_in_masks_mm(parts, grid: Grid, voxels, claimed):
    depths = np.zeros(claimed.shape, dtype=np.float32)
    for row, chosen, (box, inside) in zip(depths, claimed, parts, strict=True):
        if chosen.any():
            depth_mm = distance_transform_edt(np.pad(inside, 1), sampling=grid.spacing_mm)
            offset = voxels[chosen] - [part.start for part in box] + 1
            row[chosen] = depth_mm[tuple(offset.T)]
    return depths


def _depths_in_meshes_mm(meshes, grid: Grid, voxels, claimed):
    """Exact distances at the nodes of lattices over the voxels, cube by cube of LATTICE_MM, interpolated linearly."""
    points, depths = transform(grid.affine, voxels.astype(np.float64)), np.zeros(claimed.shape, dtype=np.float32)
    cubes = np.floor((points - points.min(0)) / LATTICE_MM).astype(int)
    _, cube = np.unique(np.ravel_multi_index(cubes.T, cubes.max(0) + 1), return_inverse=True)
    for chosen in np.split(np.argsort(cube, kind="stable"), np.cumsum(np.bincount(cube))[:-1]):
        low, high = points[chosen].min(0), points[chosen].max(0)
        middle, half_mm = (low + high) / 2, max((high - low).max() / 2, 1.0)
        near = torch.from_numpy((points[chosen] - middle) / half_mm).float()[None]
        for index in np.flatnonzero(claimed[:, chosen].any(1)):
            vertices, faces = meshes[index]
            vertices = torch.from_numpy((np.asarray(vertices, dtype=np.float64) - middle) / half_mm).float()
            sdf = mesh2sdf(vertices, torch.as_tensor(np.ascontiguousarray(faces), dtype=torch.int64), LATTICE)
            depth_mm = -half_mm * sample_trilinear([sdf[None, None]], near)[0, :, 0].numpy()
            depths[index, chosen] = depth_mm.round(3)  # so that rounding errors do not decide ties
    return depths


def _voxelize_in_box(vertices_mm, faces, grid: Grid):
    """The slices of the mesh's bounding box in `grid`, and the bool array of what lies inside the mesh there."""
    vertices = transform(np.linalg.inv(grid.affine), np.asarray(vertices_mm, dtype=np.float64))  # voxels
    if not np.isfinite(vertices).all():
        raise InputError("vertices: wanted finite coordinates, found NaN or infinity")
    start = np.clip(np.ceil(vertices.min(0)), 0, grid.shape).astype(int)
    stop = np.clip(np.floor(vertices.max(0)) + 1, start, grid.shape).astype(int)
    box = tuple(slice(*ends) for ends in zip(start, stop, strict=True))
    shape = (stop - start).tolist()
    if 0 in shape:
        return box, np.zeros(shape, dtype=bool)
    faces = torch.as_tensor(np.ascontiguousarray(faces), dtype=torch.int64)
    return box, voxelize(torch.from_numpy(vertices - start), faces, shape).numpy()
