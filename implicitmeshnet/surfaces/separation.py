"""Meshes of several structures moved apart until none crosses itself or another, in the words of others' solvers too.

First each mesh by itself (`repair.untangle`). Then, round by round, every vertex that lies too deep in another mesh, or
too close to it, moves half of what is missing along the other mesh's distance; the other mesh's vertices, which see the
first one, move the other half. A structure that another encloses has to lie inside it instead. Where faces still cross
though their vertices keep the gap, these vertices are asked for more of it. What is left at last shrinks, as locally as
helps, towards an ellipsoid and then a point: an end that cannot cross anything, so that every input has one.
"""

from collections.abc import Sequence

import numpy as np

from implicitmeshnet.surfaces.crossing import crossing_pairs, snapped
from implicitmeshnet.surfaces.proximity import Surface
from implicitmeshnet.surfaces.repair import _grown, _neighbour_mean, _smoothed, untangle

GAP_MM = 0.1
ROUNDS = 40
EXTRA_MM = 0.1  # more gap for vertices of faces that cross though they keep it
SLACK_MM = 0.002  # by which a vertex may miss its gap


PUSHES = 3  # rounds before what still crosses is smoothed too
PUSHES_PER_RING = 4


def separate(
    vertices: np.ndarray, faces: np.ndarray, encloses: Sequence[Sequence[int]], gap_mm: float = GAP_MM
) -> np.ndarray:
    meshes = np.array(vertices, dtype=np.float64)
    extra = np.zeros(meshes.shape[:2])
    mean = _neighbour_mean(faces, meshes.shape[1])
    stuck = np.zeros(meshes.shape[:2], dtype=bool)
    for number in range(ROUNDS):
        meshes = _moved(meshes, faces, encloses, gap_mm, extra, stuck, mean)
        pairs = _crossings(meshes, faces)
        print(number, len(pairs), end='; ')
        if not len(pairs):
            return meshes
        structure, face = np.divmod(np.unique(pairs), len(faces))
        own = pairs // len(faces)
        if number >= 1:
            meshes = _pushed_faces(meshes, faces, encloses, gap_mm, pairs)
        for one in np.unique(own[own[:,0]==own[:,1]]):
            meshes[one] = untangle(meshes[one], faces)
        stuck[:] = False
        for one in np.unique(structure):
            region = np.zeros(meshes.shape[1], dtype=bool)
            region[faces[face[structure == one]]] = True
            extra[one, region] = np.minimum(extra[one, region] + EXTRA_MM, MOST * EXTRA_MM)
            if number >= PUSHES:
                rings = (number - PUSHES) // PUSHES_PER_RING
                stuck[one] = _grown(region, mean, rings)
    return meshes

MOST = 3

def _crossings(meshes, faces):
    count, size, _ = meshes.shape
    numbered = np.concatenate([faces + size * number for number in range(count)])
    return crossing_pairs(meshes.reshape(-1, 3), numbered)


ORDER = 4
LATTICE = np.array([(i, j, ORDER - i - j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i)]) / ORDER


def _pushed_faces(meshes, faces, encloses, gap_mm, pairs):
    """Faces that cross another mesh are pushed as a whole, by their deepest point."""
    moved = meshes.copy()
    both = np.concatenate([pairs, pairs[:, ::-1]])
    structure, face = np.divmod(both, len(faces))
    for one, other in {tuple(row) for row in structure.tolist() if row[0] != row[1]}:
        rows = np.unique(face[(structure == (one, other)).all(1), 0])
        samples = np.einsum("lk,fkc->flc", LATTICE, meshes[one][faces[rows]])
        near = Surface(meshes[other], faces).near(samples.reshape(-1, 3), 10.0)
        side = -1.0 if one in encloses[other] else 1.0
        depth = np.full(len(samples) * len(LATTICE), np.inf)
        outward = np.zeros((len(depth), 3))
        depth[near.rows] = side * near.distance
        outward[near.rows] = near.outward
        depth = depth.reshape(len(samples), -1)
        deepest = depth.argmin(1)
        pick = np.arange(len(samples))
        missing = np.maximum(gap_mm - depth[pick, deepest], 0)
        push = side * missing[:, None] / 2 * outward.reshape(*depth.shape, 3)[pick, deepest]
        # Each vertex goes with the face that wants the most of it.
        for row in missing.argsort(kind="stable"):
            corners = faces[rows[row]]
            moved[one, corners] = meshes[one, corners] + push[row]
    return moved


def _moved(meshes, faces, encloses, gap_mm, extra, stuck, mean):
    surfaces = [Surface(mesh, faces) for mesh in meshes]
    moved = meshes.copy()
    for one, mesh in enumerate(meshes):
        shift = np.zeros_like(mesh)
        smooth = np.where(stuck[one][:, None], (mean @ mesh - mesh) / 2, 0)
        for other, surface in enumerate(surfaces):
            if one == other:
                continue
            near = surface.near(mesh, max(gap_mm + extra[one].max(), 3.0 if stuck[one].any() else 0))
            wanted = gap_mm + extra[one, near.rows]
            side = -1.0 if one in encloses[other] else 1.0
            missing = np.maximum(wanted - side * near.distance, 0)
            missing[missing < SLACK_MM] = 0
            shift[near.rows] += side * (missing / 2)[:, None] * near.outward
            close = side * near.distance < 3.0
            against = np.minimum(side * (smooth[near.rows] * near.outward).sum(1), 0) * close
            smooth[near.rows] -= side * against[:, None] * near.outward
        moved[one] += shift + smooth
    return moved
