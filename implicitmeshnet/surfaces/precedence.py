"""Meshes that the image shows keep their place, and those that it does not make way for them.

`separation.separate` believes all meshes alike. Where the view ends within the heart, the meshes beyond it follow
nothing: they may lie anywhere, and would push those that are right out of their places.
"""

from collections.abc import Sequence

import numpy as np

from implicitmeshnet.surfaces.metrics import LEAST_AGREEMENT
from implicitmeshnet.surfaces.proximity import near
from implicitmeshnet.surfaces.repair import untangle

DEEP_MM = 2.0
"""In another mesh; one of which no vertex lies so deep just touches it, and may be moved a little for it."""
POINTS = 14
"""Along each axis of a mesh's box, among which the one is sought where it has most room."""
MARGIN = 0.25
"""Of that box, by which it is wider than the mesh on each side."""
LEAST_ROOM = 0.02
"""Around such a point, relative to the diagonal of the mesh's box; so large is a mesh that lies within others."""
RAY_STEPS = 24
"""In each of which a ray goes RAY_SHARE of the distance to what is nearest."""
RAY_SHARE = 0.8
ENCLOSED = 0.6
"""The size of a mesh that makes way with the one that encloses it, relative to that one."""


def made_way(
    vertices: np.ndarray,
    faces: np.ndarray,
    sphere: np.ndarray,
    encloses: Sequence[Sequence[int]],
    agreement: Sequence[float],
) -> np.ndarray:
    """Meshes (S, V, 3) in mm of which no doubtful one lies deep in one that is believed: (S, V, 3) float64.

    `agreement` (S,) is each one's Dice with the voxel segmentation within the view, NaN where neither is there. Each
    goes with what it encloses; doubtful are those with less than LEAST_AGREEMENT in the mean. They come after the
    others, in its order. One that lies deep in those before it, or the reverse, becomes what can be seen in it, outside
    of them, from the point where it has most room. The others stay as they are, and so do all where none is believed.
    """
    moved = vertices.astype(np.float64)
    known = np.nan_to_num(np.asarray(agreement, np.float64))
    enclosed = {inner for held in encloses for inner in held}
    groups = [[one, *held] for one, held in enumerate(encloses) if one not in enclosed]
    groups.sort(key=lambda group: -known[group].mean())
    standing: list[int] = []
    for group in groups:
        believed = known[group].mean() >= LEAST_AGREEMENT
        if not believed and not standing:
            break
        if not believed and _lies_deep(moved[group[0]], moved[standing], faces):
            own = untangle(moved[group[0]], faces, sphere)
            centre, rays = _star(own, moved[standing], faces, sphere)
            for number, one in enumerate(group):
                moved[one] = centre + ENCLOSED**number * rays
        standing += group
    return moved


def _lies_deep(mesh: np.ndarray, others: np.ndarray, faces: np.ndarray) -> bool:
    """Whether a mesh (V, 3) lies deep in one of others (N, V, 3), or one of them in the mesh."""
    deepest = 0.0
    for other in others:
        for one, around in ((mesh, other), (other, mesh)):
            deepest = min(deepest, near(one, around, faces, 0.0).distance.min(initial=0.0))
    return deepest < -DEEP_MM


def _star(
    own: np.ndarray, standing: np.ndarray, faces: np.ndarray, sphere: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A point (3,) within a mesh (V, 3), and what is seen of it from there where others (N, V, 3) cover it: (V, 3).

    The point is the one that lies deepest in the mesh and outside of the others. Where none does both it lies beside
    the mesh, and what is seen is next to nothing.
    """
    low = own.min(0)
    high = own.max(0)
    far = float(np.linalg.norm(high - low))
    margin = MARGIN * (high - low)
    axes = [np.linspace(first, last, POINTS) for first, last in zip(low - margin, high + margin, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    room = _distance(points, standing, faces, far)
    depth = np.minimum(room, -_distance(points, own[None], faces, far))
    centre = points[np.where(room > LEAST_ROOM * far, depth, room - 2 * far).argmax()]
    away = sphere - sphere.mean(0)
    rays = away / np.linalg.norm(away, axis=1, keepdims=True)
    lengths = np.full(len(rays), LEAST_ROOM * far / 2)
    for _ in range(RAY_STEPS):
        ends = centre + lengths[:, None] * rays
        free = np.minimum(_distance(ends, standing, faces, far), -_distance(ends, own[None], faces, far))
        lengths += RAY_SHARE * np.maximum(free, 0)
    return centre, lengths[:, None] * rays


def _distance(points: np.ndarray, meshes: np.ndarray, faces: np.ndarray, far: float) -> np.ndarray:
    """The signed distance (N,) of points (N, 3) to the union of meshes (M, V, 3), `far` at the most."""
    found = np.full(len(points), far)
    for mesh in meshes:
        there = near(points, mesh, faces, far)
        found[there.rows] = np.minimum(found[there.rows], there.distance)
    return found
