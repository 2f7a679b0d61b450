"""Whether a triangle mesh is sound: closed, of which genus, how large inside, and where it crosses itself."""

import numpy as np

PAIRS_AT_ONCE = 2_000_000  # bounds the memory of the search for self-intersections


def mesh_volume_ml(vertices_mm, faces) -> float:
    """Signed volume inside a closed mesh, (V, 3) and (F, 3): positive with faces counter-clockwise from outside."""
    a, b, c = _corners(vertices_mm - np.mean(vertices_mm, axis=0), faces)
    return float(_dot(a, np.cross(b, c)).sum() / 6000)


def euler_characteristic(faces) -> int:
    """Vertices in use - edges + faces of a triangulation (F, 3): 2 for a sphere, 0 for a torus."""
    faces = np.asarray(faces)
    undirected = np.sort(_directed_edges(faces), axis=1)
    return len(np.unique(faces)) - len(np.unique(undirected, axis=0)) + len(faces)


def is_closed(faces) -> bool:
    """True where every edge of faces (F, 3) lies in exactly two faces, which run along it in opposite directions."""
    start, end = _directed_edges(np.asarray(faces, dtype=np.int64)).T
    if not len(start) or (start == end).any():
        return False
    count = max(start.max(), end.max()) + 1
    forward, backward = np.sort(start * count + end), np.sort(end * count + start)
    return bool((forward == backward).all() and (np.diff(forward) > 0).all())


def self_intersecting_faces(vertices, faces) -> np.ndarray:
    """The faces, bool (F,), that another face crosses with which they share no edge; vertices (V, 3), faces (F, 3).

    An edge of one face must pass strictly through the inside of the other, in float64: faces that only touch, or that
    overlap within one plane, do not count, so neither do faces without area.
    """
    faces = np.asarray(faces)
    triangles = np.asarray(vertices, dtype=np.float64)[faces]  # (F, 3 corners, 3)
    crossed = np.zeros(len(faces), dtype=bool)
    for first, second in _overlapping_boxes(triangles):
        shared = (faces[first][:, :, None] == faces[second][:, None, :]).any(2).sum(1)
        first, second = first[shared < 2], second[shared < 2]
        hit = _edges_cross(triangles[first], triangles[second]) | _edges_cross(triangles[second], triangles[first])
        crossed[first[hit]] = crossed[second[hit]] = True
    return crossed


def _overlapping_boxes(triangles):
    """Yield index pairs (first, second) of triangles (F, 3, 3) whose boxes overlap, each once: sort and sweep on x."""
    low, high = triangles.min(1), triangles.max(1)  # (F, 3)
    order = np.argsort(low[:, 0], kind="stable")
    low, high = low[order], high[order]
    count = np.searchsorted(low[:, 0], high[:, 0], side="right") - np.arange(len(order)) - 1  # later ones, x overlaps
    count = np.maximum(count, 0)  # NaN sorts anywhere
    block = np.cumsum(count) // PAIRS_AT_ONCE
    for rows in np.split(np.arange(len(order)), np.flatnonzero(np.diff(block)) + 1):
        first = np.repeat(rows, count[rows])
        position = np.arange(len(first)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
        second = first + 1 + position
        for axis in (1, 2):
            overlap = (low[first, axis] <= high[second, axis]) & (low[second, axis] <= high[first, axis])
            first, second = first[overlap], second[overlap]
        yield order[first], order[second]


def _edges_cross(edged, triangle) -> np.ndarray:
    """Whether an edge of `edged` passes strictly through the inside of `triangle`, both (N, 3, 3): bool (N,)."""
    a, b, c = (triangle[:, None, corner] for corner in range(3))  # (N, 1, 3)
    p, q = edged, np.roll(edged, -1, axis=1)  # (N, 3 edges, 3)
    side_p, side_q = (_dot(a - end, np.cross(b - end, c - end)) for end in (p, q))  # exactly 0 at a shared corner
    along = q - p
    ab, bc, ca = (_dot(along, np.cross(u - p, v - p)) for u, v in ((a, b), (b, c), (c, a)))
    through = ((ab > 0) & (bc > 0) & (ca > 0)) | ((ab < 0) & (bc < 0) & (ca < 0))
    return ((side_p * side_q < 0) & through).any(1)


def _dot(u, v):
    return np.einsum("...i,...i->...", u, v)


def _corners(vertices, faces):
    return (np.asarray(vertices, dtype=np.float64)[np.asarray(faces)[:, corner]] for corner in range(3))


def _directed_edges(faces):  # (3F, 2)
    return faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
