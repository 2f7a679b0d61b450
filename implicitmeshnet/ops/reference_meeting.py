"""The pairs of faces that cross or touch in plain PyTorch, exactly: the definition of the op `crossing_pairs`.

Segments against triangles by signed volumes, as in Guigue and Devillers, Journal of Graphics Tools 2003; triangles in
one plane by separating lines. On whole numbers up to 2^24 in size areas fit 64 bits, and volumes two halves of them.
"""

from collections.abc import Iterator

import torch

from implicitmeshnet.ops.reference import PAIRS, check_faces

HALF_BITS = 26
"""Of the lower half of an area, in which volumes are summed."""


def crossing_pairs(vertices: torch.Tensor, faces: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Vertices (V, 3) int64, faces (F, 3), chosen (F,) bool -> (P, 2), ascending."""
    check_faces(faces, len(vertices))
    triangles = vertices[faces]  # (F, 3 corners, 3)
    flat = (~_normals(triangles).any(1) & chosen).nonzero()
    found = [flat.expand(-1, 2)]
    for first, second in _overlapping_boxes(triangles):
        wanted = chosen[first] | chosen[second]
        pairs = torch.stack([first[wanted], second[wanted]], 1).sort(1).values  # the lower one first
        first, second = pairs.unbind(1)
        hit = _meet(triangles, faces, first, second)
        found.append(pairs[hit])
    return torch.cat(found).unique(dim=0)


def _overlapping_boxes(triangles: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield index pairs, each pair once, of triangles (F, 3, 3) whose bounding boxes overlap or touch.

    Sort and sweep: in the order of where the boxes begin along x, those that overlap one along x follow it directly.
    """
    low = triangles.amin(1)
    high = triangles.amax(1)
    order = low[:, 0].argsort(stable=True)
    low = low[order]
    high = high[order]
    end = torch.searchsorted(low[:, 0].contiguous(), high[:, 0].contiguous(), right=True)
    row = torch.arange(len(order), device=order.device)
    count = end - row - 1
    for rows in row.split(max(1, PAIRS // max(1, int(count.max())))):
        first = rows.repeat_interleave(count[rows])
        start = count[rows].cumsum(0) - count[rows]  # of each row's pairs in the list of all
        second = first + 1 + torch.arange(len(first), device=rows.device) - start.repeat_interleave(count[rows])
        overlap = ((low[first] <= high[second]) & (low[second] <= high[first])).all(1)
        yield order[first[overlap]], order[second[overlap]]


def _meet(triangles: torch.Tensor, faces: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Whether faces `first` and `second` (N,) have more in common than the vertices that they share: bool (N,)."""
    same = faces[first][:, :, None] == faces[second][:, None, :]  # (N, 3, 3)
    shared = same.sum((1, 2))
    hit = shared > 2
    for count, meet in enumerate((_apart_meet, _corner_meet, _edge_meet)):
        rows = (shared == count).nonzero()[:, 0]
        hit[rows] = meet(triangles[first[rows]], triangles[second[rows]], same[rows])
    return hit


def _apart_meet(one: torch.Tensor, other: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Whether triangles (N, 3, 3) that share no vertex touch or cross."""
    sides_of_one = _sides(other, one)
    sides_of_other = _sides(one, other)
    near = (sides_of_one.sum(1).abs() < 3) & (sides_of_other.sum(1).abs() < 3)
    coplanar = ~sides_of_one.any(1) & ~sides_of_other.any(1)
    crossing = _edges_meet(one, other, sides_of_one) | _edges_meet(other, one, sides_of_other)
    return torch.where(coplanar, _overlap_in_plane(one, other, touching=True), near & crossing)


def _corner_meet(one: torch.Tensor, other: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Whether triangles (N, 3, 3) that share one vertex have more in common; `same` (N, 3, 3) says which it is.

    Whatever else they share begins or ends on the edge of either that lies across from the common vertex.
    """
    one = _rolled(one, same.any(2).int().argmax(1))
    other = _rolled(other, same.any(1).int().argmax(1))
    sides_of_one = _sides(other, one)
    sides_of_other = _sides(one, other)
    coplanar = ~sides_of_one.any(1)
    opposite = slice(1, 2)
    crossing = _edges_meet(one, other, sides_of_one, opposite) | _edges_meet(other, one, sides_of_other, opposite)
    flat_one, flat_other = _projected(one, other)
    touching = _opposite_meets(flat_one, flat_other) | _opposite_meets(flat_other, flat_one)
    return torch.where(coplanar, touching, crossing)


def _edge_meet(one: torch.Tensor, other: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Whether triangles (N, 3, 3) that share an edge lie on each other."""
    coplanar = ~_sides(one, other).any(1)
    return coplanar & _overlap_in_plane(one, other, touching=False)


def _edges_meet(
    edged: torch.Tensor, triangle: torch.Tensor, sides: torch.Tensor, which: slice = slice(None)
) -> torch.Tensor:
    """Whether some edges of `edged` touch or cross `triangle`, both (N, 3, 3), which do not lie in one plane: (N,).

    `sides` (N, 3) are signed volumes, on which side of the triangle each corner lies; edge i runs from corner i on.
    """
    hit = torch.zeros(len(edged), dtype=torch.bool, device=edged.device)
    for start in range(3)[which]:
        end = (start + 1) % 3
        reaches = (sides[:, start] * sides[:, end] <= 0) & (sides[:, [start, end]] != 0).any(1)
        turns = []
        for corner in range(3):
            a = triangle[:, corner]
            b = triangle[:, (corner + 1) % 3]
            turns.append(_signs(edged[:, start], edged[:, end], a, b))
        senses = torch.stack(turns)
        hit |= reaches & ((senses >= 0).all(0) | (senses <= 0).all(0))
    return hit


def _sides(triangle: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """On which side of each triangle (N, 3, 3) its points (N, P, 3) lie: (N, P) of -1, 0, 1."""
    a, b, c = (triangle[:, None, corner].expand_as(points) for corner in range(3))
    return _signs(a, b, c, points)


def _signs(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """The exact sign of the volume of tetrahedra of points (..., 3) of whole numbers: (...,) of -1, 0, 1."""
    u = a - d
    normal = _cross(b - d, c - d)
    high = (u * (normal >> HALF_BITS)).sum(-1)
    low = (u * (normal & (2**HALF_BITS - 1))).sum(-1)
    high = high + (low >> HALF_BITS)
    rest = low & (2**HALF_BITS - 1)
    return torch.where(high == 0, rest.sign(), high.sign())


def _cross(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return u.roll(-1, -1) * v.roll(-2, -1) - u.roll(-2, -1) * v.roll(-1, -1)


def _normals(triangles: torch.Tensor) -> torch.Tensor:
    """Twice the area vectors (N, 3) of triangles (N, 3, 3)."""
    return _cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def _overlap_in_plane(one: torch.Tensor, other: torch.Tensor, touching: bool) -> torch.Tensor:
    """Whether triangles (N, 3, 3) of one plane each overlap, or only touch where that counts: (N,)."""
    flat_one, flat_other = _projected(one, other)
    apart = _edges_part(flat_one, flat_other, not touching) | _edges_part(flat_other, flat_one, not touching)
    return ~apart


def _edges_part(mine: torch.Tensor, points: torch.Tensor, on_it: bool) -> torch.Tensor:
    """Whether a line along an edge of triangles (N, 3, 2) has all of points (N, P, 2) on its outer side: (N,).

    Or on itself, where that counts too.
    """
    apart = torch.zeros(len(mine), dtype=torch.bool, device=mine.device)
    for start in range(3):
        a = mine[:, start, None]
        b = mine[:, (start + 1) % 3, None]
        inner = _areas(a, b, mine[:, (start + 2) % 3, None])
        outer = _areas(a, b, points) * inner.sign()
        apart |= ((outer <= 0) if on_it else (outer < 0)).all(1)
    return apart


def _opposite_meets(edged: torch.Tensor, triangle: torch.Tensor) -> torch.Tensor:
    """Whether the edge across from the first corner of `edged` touches `triangle`, both (N, 3, 2) whole: bool (N,)."""
    edge = edged[:, 1:]
    beside = _areas(edge[:, :1], edge[:, 1:], triangle)
    one_side = (beside > 0).all(1) | (beside < 0).all(1)
    return ~one_side & ~_edges_part(triangle, edge, on_it=False)


def _projected(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangles (N, 3, 3) of one plane each along the axis that keeps most of the first ones' area: (N, 3, 2)."""
    axis = _normals(one).abs().argmax(1)
    kept = torch.stack([(axis + 1) % 3, (axis + 2) % 3], 1)[:, None].expand(-1, 3, -1)
    return one.gather(2, kept), other.gather(2, kept)


def _areas(a: torch.Tensor, b: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Twice the signed areas of a, b (N, 1, 2) and each of the points (N, P, 2): (N, P)."""
    along = b - a
    offset = points - a
    return along[..., 0] * offset[..., 1] - along[..., 1] * offset[..., 0]


def _rolled(triangles: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Triangles (N, 3, 3) that begin with their corner `first` (N,)."""
    order = (first[:, None] + torch.arange(3, device=first.device)) % 3
    return triangles.gather(1, order[..., None].expand(-1, -1, 3))
