"""Signed distances of points from a closed mesh in plain PyTorch: the definition of the op `distance_to_mesh`."""

import torch

from implicitmeshnet.ops.reference import PAIRS, check_faces

ON_SURFACE = 1e-6
"""Relative to the longest edge: no direction is taken from a smaller distance."""
NOTHING = 1e-12
"""A barycentric weight that is taken for 0."""


def distance_to_mesh(
    points: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points (N, 3), vertices (V, 3) float64, faces (F, 3) -> distances (N,) and the directions they grow in (N, 3)."""
    check_faces(faces, len(vertices))
    corners = vertices[faces]
    edges = corners.roll(-1, 1) - corners
    normals = _unit(torch.linalg.cross(edges[:, 0], -edges[:, 2]))
    of_vertices = _at_vertices(edges, normals, faces, len(vertices))[faces]  # (F, 3 corners, 3)
    of_edges = _at_edges(normals, faces, len(vertices))  # (F, 3 edges, 3)
    longest = torch.linalg.vector_norm(edges, dim=2).max()
    distances = [points.new_zeros(0)]
    outward = [points.new_zeros(0, 3)]
    for own in points.split(max(1, PAIRS // len(faces))):
        face, offset, weights = _closest_faces(own, corners)
        normal = _feature_normals(face, weights, normals, of_vertices, of_edges)
        side = torch.where((offset * normal).sum(1) < 0, -1.0, 1.0).to(offset)
        length = torch.linalg.vector_norm(offset, dim=1)
        away = (side / length.clamp(min=1e-300))[:, None] * offset
        distances.append(side * length)
        outward.append(torch.where(length[:, None] > ON_SURFACE * longest, away, normal))
    return torch.cat(distances), torch.cat(outward)


def _closest_faces(points: torch.Tensor, corners: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For points (N, 3) and triangles (F, 3, 3) the closest one, (N,), the offset from it, and its weights (N, 3).

    Only triangles are measured whose centre is not too far: the closest is nearer than the nearest centre.
    """
    centres = corners.mean(1)
    radii = torch.linalg.vector_norm(corners - centres[:, None], dim=2).amax(1)
    far = torch.linalg.vector_norm(points[:, None] - centres, dim=2)
    row, face = (far - radii <= far.amin(1, keepdim=True) * (1 + 1e-9)).nonzero(as_tuple=True)
    closest, weights = closest_points(points[row], corners[face])
    offset = points[row] - closest
    squared = offset.square().sum(1)
    least = squared.new_full((len(points),), torch.inf).scatter_reduce(0, row, squared, "amin")
    first = (squared == least[row]).nonzero()[:, 0]
    pick = torch.full((len(points),), len(row), device=row.device).scatter_reduce(0, row[first], first, "amin")
    return face[pick], offset[pick], weights[pick]


def closest_points(points: torch.Tensor, triangles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The closest points of triangles (..., 3, 3) to points (..., 3), and their barycentric weights (..., 3).

    By the regions of Ericson, Real-Time Collision Detection (2005), section 5.1.5.
    """
    a, b, c = triangles.unbind(-2)
    ab = b - a
    ac = c - a
    d1, d2 = _dot(ab, points - a), _dot(ac, points - a)
    d3, d4 = _dot(ab, points - b), _dot(ac, points - b)
    d5, d6 = _dot(ab, points - c), _dot(ac, points - c)
    across_a = d3 * d6 - d5 * d4
    across_b = d5 * d2 - d1 * d6
    across_c = d1 * d4 - d3 * d2
    total = across_a + across_b + across_c
    total = torch.where(total == 0, 1.0, total)
    weights = torch.stack([across_a / total, across_b / total, across_c / total], -1)
    zero = torch.zeros_like(d1)
    one = torch.ones_like(d1)
    along_ab = _ratio(d1, d1 - d3)
    along_ac = _ratio(d2, d2 - d6)
    along_bc = _ratio(d4 - d3, (d4 - d3) + (d5 - d6))
    # The regions in an order in which each may overrule those before it.
    for region, own in (
        ((across_a <= 0) & (d4 >= d3) & (d5 >= d6), (zero, 1 - along_bc, along_bc)),
        ((across_b <= 0) & (d2 >= 0) & (d6 <= 0), (1 - along_ac, zero, along_ac)),
        ((across_c <= 0) & (d1 >= 0) & (d3 <= 0), (1 - along_ab, along_ab, zero)),
        ((d6 >= 0) & (d5 <= d6), (zero, zero, one)),
        ((d3 >= 0) & (d4 <= d3), (zero, one, zero)),
        ((d1 <= 0) & (d2 <= 0), (one, zero, zero)),
    ):
        weights = torch.where(region[..., None], torch.stack(own, -1), weights)
    return (weights[..., None] * triangles).sum(-2), weights


def _feature_normals(
    face: torch.Tensor, weights: torch.Tensor, normals: torch.Tensor, of_vertices: torch.Tensor, of_edges: torch.Tensor
) -> torch.Tensor:
    """Unit normals (K, 3) of what closest points of these weights (K, 3) lie on: a face, an edge or a corner.

    So the side of the surface is right everywhere (Baerentzen and Aanaes, IEEE TVCG 2005).
    """
    zero = weights <= NOTHING
    zeros = zero.sum(1)
    corner = (~zero).int().argmax(1)
    edge = (zero.int().argmax(1) + 1) % 3  # across from the corner without weight
    normal = torch.where((zeros == 1)[:, None], of_edges[face, edge], normals[face])
    return torch.where((zeros == 2)[:, None], of_vertices[face, corner], normal)


def _at_vertices(edges: torch.Tensor, normals: torch.Tensor, faces: torch.Tensor, count: int) -> torch.Tensor:
    """Unit normals (V, 3) at the vertices: of their faces, weighted by the faces' angles there."""
    back = -edges.roll(1, 1)
    crossed = torch.linalg.vector_norm(torch.linalg.cross(edges, back), dim=2)
    angles = torch.atan2(crossed, _dot(edges, back))  # (F, 3)
    weighted = angles[..., None] * normals[:, None]
    sums = normals.new_zeros(count, 3).index_add(0, faces.flatten(), weighted.flatten(0, 1))
    return _unit(sums)


def _at_edges(normals: torch.Tensor, faces: torch.Tensor, count: int) -> torch.Tensor:
    """Unit normals (F, 3 edges, 3) at the edges: of the faces that share them; edge i runs from corner i on."""
    end = faces.roll(-1, 1)
    number = torch.minimum(faces, end) * count + torch.maximum(faces, end)
    edges, edge = number.unique(return_inverse=True)
    each = normals[:, None].expand(-1, 3, -1)
    sums = normals.new_zeros(len(edges), 3).index_add(0, edge.flatten(), each.flatten(0, 1))
    return _unit(sums)[edge]


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return (part / torch.where(whole == 0, 1.0, whole)).clamp(0, 1)


def _dot(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (u * v).sum(-1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-300)
