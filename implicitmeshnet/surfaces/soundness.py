"""Whether a triangle mesh is sound: closed, of which genus, how large inside, and where it crosses itself."""

from collections.abc import Iterator

import numpy as np

PAIRS_AT_ONCE = 2_000_000
"""How many pairs of faces the search for self-intersections looks at together, which bounds its memory."""


def mesh_volume_ml(vertices_mm: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume in millilitres inside a closed mesh, vertices_mm (V, 3) and faces (F, 3).

    It is positive where the faces run counter-clockwise seen from outside.
    """
    # Each face and the centre span a tetrahedron; a centre inside the mesh keeps the numbers small, and so exact.
    centred = vertices_mm - np.mean(vertices_mm, axis=0)
    a, b, c = _corners(centred, faces)
    six_volumes = _dot(a, np.cross(b, c))  # (F,) mm^3
    return float(six_volumes.sum() / 6000)


def mesh_area_mm2(vertices_mm: np.ndarray, faces: np.ndarray) -> float:
    """Area of a mesh's surface in square millimetres, vertices_mm (V, 3) and faces (F, 3)."""
    a, b, c = _corners(vertices_mm, faces)
    double = np.linalg.norm(np.cross(b - a, c - a), axis=1)  # (F,) twice the areas
    return float(double.sum() / 2)


def euler_characteristic(faces: np.ndarray) -> int:
    """Vertices in use - edges + faces of a triangulation (F, 3): 2 for a sphere, 0 for a torus."""
    faces = np.asarray(faces)
    undirected = np.sort(_directed_edges(faces), axis=1)
    edges = np.unique(undirected, axis=0)
    return len(np.unique(faces)) - len(edges) + len(faces)


def is_closed(faces: np.ndarray) -> bool:
    """True where every edge of faces (F, 3) lies in exactly two faces, which run along it in opposite directions."""
    start, end = _directed_edges(np.asarray(faces, dtype=np.int64)).T
    if not len(start) or (start == end).any():
        return False
    # One number for each directed edge, and one for the same edge run backward.
    count = max(start.max(), end.max()) + 1
    forward = np.sort(start * count + end)
    backward = np.sort(end * count + start)
    opposed = (forward == backward).all()
    once = (np.diff(forward) > 0).all()
    return bool(opposed and once)


def winding_numbers(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """How often a closed mesh, (V, 3) and (F, 3), winds around each of points (N, 3): 1 inside, 0 outside.

    The sum of the faces' solid angles (van Oosterom and Strackee, IEEE Transactions on Biomedical Engineering 30,
    1983); on the surface itself it is between the two. Takes memory for N x F x 9 numbers.
    """
    a, b, c = (corner - np.asarray(points, dtype=np.float64)[:, None] for corner in _corners(vertices, faces))
    la, lb, lc = (np.linalg.norm(each, axis=2) for each in (a, b, c))
    volume = _dot(a, np.cross(b, c))
    spread = la * lb * lc + _dot(a, b) * lc + _dot(b, c) * la + _dot(c, a) * lb
    return np.arctan2(volume, spread).sum(axis=1) / (2 * np.pi)


def self_intersecting_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces, bool (F,), that are crossed by another face with which they share no edge; (V, 3) and (F, 3).

    An edge of one face must pass strictly through the inside of the other, computed in float64. Faces that only touch
    or that overlap within one plane do not count, and neither do faces without area.
    """
    faces = np.asarray(faces)
    triangles = np.asarray(vertices, dtype=np.float64)[faces]  # (F, 3 corners, 3)
    crossed = np.zeros(len(faces), dtype=bool)
    for first, second in _overlapping_boxes(triangles):
        # Faces with a common edge meet there and nowhere else, unless they lie in one plane.
        same = faces[first][:, :, None] == faces[second][:, None, :]  # (N, 3, 3)
        shared = same.any(2).sum(1)
        first = first[shared < 2]
        second = second[shared < 2]
        one, other = triangles[first], triangles[second]
        hit = _edges_cross(one, other) | _edges_cross(other, one)
        crossed[first[hit]] = True
        crossed[second[hit]] = True
    return crossed


def _overlapping_boxes(triangles: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield index pairs (first, second), each pair once, of triangles (F, 3, 3) whose bounding boxes overlap.

    Sort and sweep: in the order of where the boxes begin along x, those that overlap a box along x follow it directly.
    """
    low = triangles.min(1)  # (F, 3)
    high = triangles.max(1)
    order = np.argsort(low[:, 0], kind="stable")
    low = low[order]
    high = high[order]
    end = np.searchsorted(low[:, 0], high[:, 0], side="right")  # the first box that begins behind this one's end
    count = end - np.arange(len(order)) - 1  # boxes that follow and overlap along x
    count = np.maximum(count, 0)  # NaN sorts anywhere
    for rows in _blocks(count):
        first, second = _following(rows, count[rows])
        for axis in (1, 2):
            begins = low[first, axis] <= high[second, axis]
            ends = low[second, axis] <= high[first, axis]
            overlap = begins & ends
            first = first[overlap]
            second = second[overlap]
        yield order[first], order[second]


def _blocks(count: np.ndarray) -> list[np.ndarray]:
    """The rows 0 to F - 1 in blocks of about PAIRS_AT_ONCE pairs, where each row has `count` (F,) of them."""
    block = np.cumsum(count) // PAIRS_AT_ONCE
    borders = np.flatnonzero(np.diff(block)) + 1
    return np.split(np.arange(len(count)), borders)


def _following(rows: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of the rows with each of the `count` rows that come right after it: two index arrays (sum of count,)."""
    first = np.repeat(rows, count)
    start = np.cumsum(count) - count  # of each row's pairs in the list of all
    position = np.arange(len(first)) - np.repeat(start, count)
    return first, first + 1 + position


def _edges_cross(edged: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    """Whether an edge of `edged` passes strictly through the inside of `triangle`, both (N, 3, 3): bool (N,)."""
    a, b, c = (triangle[:, None, corner] for corner in range(3))  # (N, 1, 3)
    p = edged  # (N, 3 edges, 3): where the edges start
    q = np.roll(edged, -1, axis=1)  # where they end
    # The edge's ends lie on different sides of the triangle's plane; a side is exactly 0 at a shared corner.
    side_p = _dot(a - p, np.cross(b - p, c - p))
    side_q = _dot(a - q, np.cross(b - q, c - q))
    # And its line passes all three sides of the triangle in the same sense of rotation.
    along = q - p
    ab = _dot(along, np.cross(a - p, b - p))
    bc = _dot(along, np.cross(b - p, c - p))
    ca = _dot(along, np.cross(c - p, a - p))
    positive = (ab > 0) & (bc > 0) & (ca > 0)
    negative = (ab < 0) & (bc < 0) & (ca < 0)
    through = positive | negative
    return ((side_p * side_q < 0) & through).any(1)


def _dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", u, v)


def _corners(vertices: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """The first, second and third corner of each face, each (F, 3) float64."""
    positions = np.asarray(vertices, dtype=np.float64)
    indices = np.asarray(faces)
    return [positions[indices[:, corner]] for corner in range(3)]


def _directed_edges(faces: np.ndarray) -> np.ndarray:  # (3F, 2)
    return faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
