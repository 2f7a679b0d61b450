"""What can be seen of a mesh from within, past others that stand there already: a mesh that makes way for these."""

import numpy as np

from implicitmeshnet.surfaces.proximity import near

POINTS = 14
"""Along each axis of a mesh's box, among which the one is sought where it has most room."""
MARGIN = 0.25
"""Of that box, by which it is wider than the mesh on each side."""
LEAST_ROOM = 0.02
"""Around such a point, relative to the diagonal of the mesh's box; so large is a mesh that lies within others."""
RAY_STEPS = 24
"""In each of which a ray goes RAY_SHARE of the distance to what is nearest."""
RAY_SHARE = 0.8


def star(
    own: np.ndarray, outside: np.ndarray, faces: np.ndarray, sphere: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A point (3,) within a mesh (V, 3), and what is seen of it from there: (V, 3) relative to the point.

    Meshes `outside` (N, V, 3) cover what is in and behind them, `inside` (M, V, 3) what is beyond them; faces (F, 3) of
    a template `sphere` (V, 3) are those of all. The point is the one with most room up to the mesh and the others.
    Where none has any it lies beside the mesh, and what is seen is next to nothing.
    """
    low = own.min(0)
    high = own.max(0)
    far = float(np.linalg.norm(high - low))
    margin = MARGIN * (high - low)
    axes = [np.linspace(first, last, POINTS) for first, last in zip(low - margin, high + margin, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    allowed = _room(points, outside, inside, faces, far)
    room = np.minimum(allowed, -_distance(points, own[None], faces, far))
    centre = points[np.where(allowed > LEAST_ROOM * far, room, allowed - 2 * far).argmax()]
    away = sphere - sphere.mean(0)
    rays = away / np.linalg.norm(away, axis=1, keepdims=True)
    lengths = np.full(len(rays), LEAST_ROOM * far / 2)
    for _ in range(RAY_STEPS):
        ends = centre + lengths[:, None] * rays
        free = np.minimum(_room(ends, outside, inside, faces, far), -_distance(ends, own[None], faces, far))
        lengths += RAY_SHARE * np.maximum(free, 0)
    return centre, lengths[:, None] * rays


def _room(points: np.ndarray, outside: np.ndarray, inside: np.ndarray, faces: np.ndarray, far: float) -> np.ndarray:
    """How far points (N, 3) may go in any direction, (N,), `far` at the most; negative where they may not be."""
    room = _distance(points, outside, faces, far)
    for mesh in inside:
        room = np.minimum(room, -_distance(points, mesh[None], faces, far))
    return room


def _distance(points: np.ndarray, meshes: np.ndarray, faces: np.ndarray, far: float) -> np.ndarray:
    """The signed distance (N,) of points (N, 3) to the union of meshes (M, V, 3), `far` at the most."""
    found = np.full(len(points), far)
    for mesh in meshes:
        there = near(points, mesh, faces, far)
        found[there.rows] = np.minimum(found[there.rows], there.distance)
    return found
