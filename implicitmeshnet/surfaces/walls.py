"""Where an enclosed structure has a wall around it, by the network's voxel segmentation."""

import numpy as np

from implicitmeshnet.coordinates import transform
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.proximity import vertex_normals

WALL_MM = 0.5
"""The least thickness of a wall that the segmentation shows."""
STEP_MM = 0.5
REACH_MM = 6.0
"""Along the outward normal, within which a wall is looked for; more than two voxels of the coarsest networks."""


def walls_mm(
    meshes: np.ndarray,
    faces: np.ndarray,
    structures: Structures,
    classes: np.ndarray,
    voxel_from_world: np.ndarray,
    wall_mm: float = WALL_MM,
) -> np.ndarray:
    """How thick a wall there has to be at each vertex of meshes (S, V, 3) in mm: `wall_mm` or 0, float (S, V).

    It is `wall_mm` where, from a vertex of an enclosed structure outward, the first class of `classes` (X, Y, Z) that
    is not the structure's own is its encloser's. Where another follows, as at a valve, the two surfaces may be one.
    `voxel_from_world` (4, 4) places the classes.
    """
    found = np.zeros(meshes.shape[:2])
    depths = np.arange(0, REACH_MM + STEP_MM / 2, STEP_MM)
    for outer, inside in enumerate(structures.encloses):
        for inner in inside:
            normals = vertex_normals(meshes[inner], faces)
            rays = meshes[inner][:, None] + depths[:, None] * normals[:, None]  # (V, depths, 3)
            seen = _nearest(classes, transform(voxel_from_world, rays))
            others = ~structures.own(seen, inner)
            first = np.take_along_axis(seen, others.argmax(1)[:, None], 1)[:, 0]
            found[inner, others.any(1) & structures.own(first, outer)] = wall_mm
    return found


def _nearest(classes: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """The classes (X, Y, Z) at the nearest voxels to points (..., 3) in voxel coordinates; background beyond them."""
    index = np.rint(voxels).astype(int)
    within = ((index >= 0) & (index < classes.shape)).all(-1)
    index[~within] = 0
    values = classes[tuple(np.moveaxis(index, -1, 0))]
    return np.where(within, values, 0)
