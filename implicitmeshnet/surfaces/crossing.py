"""Which faces of meshes cross or touch, decided exactly.

Vertices are taken to integers first, as fine as float32 tells apart the largest coordinate, so that a file in float32
holds the very numbers that were judged. On integers below 2^24 every sign here is exact: where float64 might round to
the wrong one, Python's integers decide. Segments against triangles by signed volumes, as in Guigue and Devillers,
Journal of Graphics Tools 2003; triangles in one plane by separating lines.
"""

from collections.abc import Iterator

import numpy as np

from implicitmeshnet.script import InputError

BITS = 24
"""Of the integers that vertices become."""
PAIRS_AT_ONCE = 2_000_000
"""Pairs of faces that are looked at together, which bounds the memory."""
COLUMN_WIDTH = 2.0
"""Of the columns in which boxes are sorted, relative to the boxes' mean extent."""
MOST_COLUMNS_OF_A_BOX = 8
MOST_COLUMNS = 256
"""Along y and along z."""
ROUNDING = 1e-15
"""More than float64 misses a sum of three products by, relative to the sum of their sizes."""


def snap_step(vertices: np.ndarray) -> float:
    """The power of two that snapped vertices (..., 3) are whole multiples of: float32's step at the largest of them."""
    largest = np.abs(vertices).max(initial=0.0)
    if not np.isfinite(largest):
        raise InputError("vertices: wanted finite coordinates, found NaN or infinity")
    return 2.0 ** (np.ceil(np.log2(max(largest, 2.0**-100))) - BITS)


def snapped(vertices: np.ndarray) -> np.ndarray:
    """Vertices (..., 3) moved to the nearest whole multiples of `snap_step`, float64."""
    step = snap_step(vertices)
    return np.round(np.asarray(vertices, dtype=np.float64) / step) * step


def crossing_pairs(vertices: np.ndarray, faces: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """The pairs of faces that have more in common than the vertices that they share: (P, 2), each pair once.

    vertices (V, 3), faces (F, 3); of several meshes the vertices are simply numbered on. Faces that share a vertex or
    an edge meet there; all others may not even touch. A face without area is paired with itself. Only pairs are looked
    for that have a `chosen` face, bool (F,), by default all. Raises InputError for coordinates that are not finite.
    """
    faces = np.asarray(faces)
    step = snap_step(vertices)
    whole = np.round(np.asarray(vertices, dtype=np.float64) / step)
    triangles = whole[faces]  # (F, 3 corners, 3) whole numbers in float64
    wanted = np.ones(len(faces), dtype=bool) if chosen is None else chosen
    flat = np.flatnonzero(~_normals(triangles).any(1) & wanted)
    found = [np.stack([flat, flat], 1)]
    for first, second in overlapping_boxes(triangles):
        looked_for = wanted[first] | wanted[second]
        first = first[looked_for]
        second = second[looked_for]
        hit = _meet(triangles, faces, first, second)
        found.append(np.stack([first[hit], second[hit]], 1))
    return np.concatenate(found)


def crossing_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces of a mesh, bool (F,), in any of `crossing_pairs`."""
    crossed = np.zeros(len(faces), dtype=bool)
    crossed[crossing_pairs(vertices, faces).ravel()] = True
    return crossed


def _meet(triangles: np.ndarray, faces: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether faces `first` and `second` (N,) have more in common than the vertices that they share: bool (N,)."""
    same = faces[first][:, :, None] == faces[second][:, None, :]  # (N, 3, 3)
    shared = same.sum((1, 2))
    hit = np.zeros(len(first), dtype=bool)
    apart = np.flatnonzero(shared == 0)
    hit[apart] = _apart_meet(triangles[first[apart]], triangles[second[apart]])
    corner = np.flatnonzero(shared == 1)
    hit[corner] = _corner_meet(triangles[first[corner]], triangles[second[corner]], same[corner])
    edge = np.flatnonzero(shared == 2)
    hit[edge] = _edge_meet(triangles[first[edge]], triangles[second[edge]], same[edge])
    hit[shared == 3] = True
    return hit


def _apart_meet(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether triangles (N, 3, 3) that share no vertex touch or cross."""
    hit = np.zeros(len(one), dtype=bool)
    plane_one = _volumes(other, one)  # (N, 3): on which side of `other` each corner of `one` lies
    # All corners on one side of the other's plane: no need to look closer.
    rows = np.flatnonzero(np.abs(plane_one.sum(1)) < 3)
    plane_one = plane_one[rows]
    plane_other = _volumes(one[rows], other[rows])
    near = np.abs(plane_other.sum(1)) < 3
    coplanar = ~plane_one.any(1) & ~plane_other.any(1)
    flat = rows[coplanar]
    hit[flat] = _overlap_in_plane(one[flat], other[flat], touching=True)
    rest = near & ~coplanar
    rows = rows[rest]
    hit[rows] = _edges_meet(one[rows], other[rows], plane_one[rest])
    missed = ~hit[rows]
    rows = rows[missed]
    hit[rows] = _edges_meet(other[rows], one[rows], plane_other[rest][missed])
    return hit


def _corner_meet(one: np.ndarray, other: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Whether triangles (N, 3, 3) that share one vertex have more in common; `same` (N, 3, 3) says which it is."""
    hit = np.zeros(len(one), dtype=bool)
    one = _rolled(one, same.any(2).argmax(1))
    other = _rolled(other, same.any(1).argmax(1))
    plane_one = np.zeros((len(one), 3))
    plane_one[:, 1:] = _volumes(other, one[:, 1:])  # the common vertex lies in both planes
    rows = np.flatnonzero(np.abs(plane_one.sum(1)) < 2)  # all others beyond it lie on one side
    one = one[rows]
    other = other[rows]
    plane_one = plane_one[rows]
    plane_other = np.zeros((len(rows), 3))
    plane_other[:, 1:] = _volumes(one, other[:, 1:])
    coplanar = ~plane_one.any(1)
    # Whatever else they share begins or ends on the edge of either that lies across from the common vertex.
    opposite = slice(1, 2)
    hit[rows] = _edges_meet(one, other, plane_one, opposite) | _edges_meet(other, one, plane_other, opposite)
    flat_one, flat_other = _projected(one[coplanar], other[coplanar])
    hit[rows[coplanar]] = _opposite_meets(flat_one, flat_other) | _opposite_meets(flat_other, flat_one)
    return hit


def _edge_meet(one: np.ndarray, other: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Whether triangles (N, 3, 3) that share an edge lie on each other."""
    lone = (~same.any(1)).argmax(1)
    across = np.take_along_axis(other, lone[:, None, None].repeat(3, 2), 1)
    coplanar = _volumes(one, across)[:, 0] == 0
    hit = np.zeros(len(one), dtype=bool)
    hit[coplanar] = _overlap_in_plane(one[coplanar], other[coplanar], touching=False)
    return hit


def _edges_meet(edged: np.ndarray, triangle: np.ndarray, sides: np.ndarray, which: slice = slice(None)) -> np.ndarray:
    """Whether some edges of `edged` touch or cross `triangle`, both (N, 3, 3), which do not lie in one plane: (N,).

    `sides` (N, 3) are signed volumes, on which side of the triangle each corner lies; edge i runs from corner i on.
    """
    hit = np.zeros(len(edged), dtype=bool)
    for start in range(3)[which]:
        end = (start + 1) % 3
        rows = np.flatnonzero((sides[:, start] * sides[:, end] <= 0) & (sides[:, [start, end]] != 0).any(1) & ~hit)
        p = edged[rows, start]
        q = edged[rows, end]
        turns = []
        for corner in range(3):
            a = triangle[rows, corner]
            b = triangle[rows, (corner + 1) % 3]
            turns.append(_signs(p, q, a, b))
        senses = np.stack(turns)
        hit[rows] = (senses >= 0).all(0) | (senses <= 0).all(0)
    return hit


def _volumes(triangle: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Signs of the volumes of tetrahedra of triangle (N, 3, 3) and each of its points (N, P, 3): (N, P) of -1, 0, 1."""
    a, b, c = (triangle[:, None, corner] for corner in range(3))
    count = points.shape[1]
    a, b, c = (np.broadcast_to(corner, points.shape).reshape(-1, 3) for corner in (a, b, c))
    return _signs(a, b, c, points.reshape(-1, 3)).reshape(-1, count)


def _signs(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The exact sign of the volume of tetrahedra of points (N, 3) of whole numbers: (N,) of -1.0, 0.0, 1.0."""
    u = a - d
    v = b - d
    w = c - d
    normal = np.cross(v, w)  # exact: below 2^52
    terms = u * normal
    volume = terms.sum(1)
    size = np.abs(terms).sum(1)
    signs = np.sign(volume)
    for row in np.flatnonzero((np.abs(volume) <= ROUNDING * size) & (size > 0)):
        signs[row] = _exact_sign(u[row], normal[row])
    return signs


def _exact_sign(u: np.ndarray, v: np.ndarray) -> int:
    """The sign of the dot product of two vectors of whole numbers."""
    dot = sum(int(one) * int(other) for one, other in zip(u, v, strict=True))
    return (dot > 0) - (dot < 0)


def _normals(triangles: np.ndarray) -> np.ndarray:
    """Twice the area vectors (N, 3) of triangles (N, 3, 3) of whole numbers; exact in whether they are 0."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def _overlap_in_plane(one: np.ndarray, other: np.ndarray, touching: bool) -> np.ndarray:
    """Whether triangles (N, 3, 3) of one plane each overlap, or only touch where that counts: (N,)."""
    flat = _projected(one, other)
    apart = np.zeros(len(one), dtype=bool)
    for mine, others in (flat, flat[::-1]):
        for start in range(3):
            a = mine[:, start, None]
            b = mine[:, (start + 1) % 3, None]
            inner = _areas(a, b, mine[:, (start + 2) % 3, None])[:, 0]
            outer = _areas(a, b, others) * np.sign(inner)[:, None]
            apart |= ((outer < 0) if touching else (outer <= 0)).all(1)
    return ~apart


def _opposite_meets(edged: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    """Whether the edge across from the first corner of `edged` touches `triangle`, both (N, 3, 2) whole: bool (N,)."""
    edge = edged[:, 1:]
    beside = _areas(edge[:, :1], edge[:, 1:], triangle)
    apart: np.ndarray = np.all(beside > 0, axis=1) | np.all(beside < 0, axis=1)
    for start in range(3):
        a = triangle[:, start, None]
        b = triangle[:, (start + 1) % 3, None]
        inner = _areas(a, b, triangle[:, (start + 2) % 3, None])
        apart |= (_areas(a, b, edge) * np.sign(inner) < 0).all(1)
    return ~apart


def _projected(*triangles: np.ndarray) -> list[np.ndarray]:
    """Triangles (N, 3, 3) of one plane each along the axis that keeps most of the first ones' area: (N, 3, 2) int64."""
    kept = _axes_but(np.abs(_normals(triangles[0])).argmax(1))
    return [np.take_along_axis(triangle, kept[:, None], 2).astype(np.int64) for triangle in triangles]


def _axes_but(axis: np.ndarray) -> np.ndarray:
    """The two axes other than each one: (N, 2)."""
    return np.stack([(axis + 1) % 3, (axis + 2) % 3], 1)


def _areas(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Twice the signed areas of a, b (N, 1, 2) and each of the points (N, P, 2): (N, P) int64, exact."""
    along = b - a
    offset = points - a
    return along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]


def _rolled(triangles: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Triangles (N, 3, 3) that begin with their corner `first` (N,)."""
    order = (first[:, None] + np.arange(3)) % 3
    return np.take_along_axis(triangles, order[..., None].repeat(3, 2), 1)


def overlapping_boxes(triangles: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield index pairs (first, second), each pair once, of triangles (F, 3, 3) whose bounding boxes overlap or touch.

    Coordinates are whole numbers. Sort and sweep in columns along x: within a column, in the order of where the boxes
    begin along x, those that overlap a box along x follow it directly.
    """
    low = triangles.min(1)  # (F, 3)
    high = triangles.max(1)
    if not len(low):
        return
    face, column, first_column = _in_columns(low[:, 1:], high[:, 1:])
    length = high[:, 0].max() - low[:, 0].min() + 1
    number = column[:, 0] * (column[:, 1].max() + 1) + column[:, 1]
    begin = number * length + low[face, 0] - low[:, 0].min()  # column by column; exact, as it stays below 2^53
    order = np.argsort(begin, kind="stable")
    face = face[order]
    column = column[order]
    begin = begin[order]
    # The first box in the same column that begins behind this one's end.
    end = np.searchsorted(begin, begin + (high - low)[face, 0], side="right")
    count = end - np.arange(len(order)) - 1  # boxes that follow and overlap along x
    for rows in _blocks(count):
        row, other = _following(rows, count[rows])
        first = face[row]
        second = face[other]
        # A pair that shares several columns counts in the first of them.
        kept = (column[row] == np.maximum(first_column[first], first_column[second])).all(1)
        for axis in (1, 2):
            kept &= low[first, axis] <= high[second, axis]
            kept &= low[second, axis] <= high[first, axis]
        yield first[kept], second[kept]


def _in_columns(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes from `low` to `high` (F, 2) laid into columns: each as often as it touches one.

    Gives the boxes (N,) and their columns (N, 2), whole numbers from 0 on, and each box's first column (F, 2).
    """
    extent = high - low
    span = high.max(0) - low.min(0)
    width = np.maximum(COLUMN_WIDTH * extent.mean(0), extent.max(0) / MOST_COLUMNS_OF_A_BOX)
    width = np.maximum(width, np.maximum(span / MOST_COLUMNS, 1))
    first = np.floor((low - low.min(0)) / width)
    touched = np.floor((high - low.min(0)) / width) - first + 1
    times = touched.prod(1).astype(int)
    box = np.repeat(np.arange(len(low)), times)
    position = np.arange(len(box)) - np.repeat(np.cumsum(times) - times, times)
    column = first[box] + np.stack(np.divmod(position, touched[box, 1]), 1)
    return box, column, first


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
