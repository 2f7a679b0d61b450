"""The signed distance of points from a closed mesh, and the way out of it."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

CANDIDATES = 12
"""Faces, of the nearest centres, among which a point's closest is sought."""


@dataclass(frozen=True)
class Proximity:
    """Where some of N points lie relative to a closed mesh."""

    rows: np.ndarray  # (K,) which of the points: those within reach of the mesh
    distance: np.ndarray  # (K,) signed, negative inside
    outward: np.ndarray  # (K, 3) unit vectors along which the distance grows


class Surface:
    """A closed mesh, vertices (V, 3) and faces (F, 3) counter-clockwise seen from outside, to measure from."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        self.faces = faces
        self.corners = vertices[faces]  # (F, 3, 3)
        self.low = vertices.min(0)
        self.high = vertices.max(0)
        self._tree = cKDTree(self.corners.mean(1))
        normals = np.cross(self.corners[:, 1] - self.corners[:, 0], self.corners[:, 2] - self.corners[:, 0])
        self._normals = _unit(normals)
        self.vertex_normals = _at_vertices(self.corners, self._normals, faces, len(vertices))  # (V, 3)
        self._at_corners = self.vertex_normals[faces]  # (F, 3 corners, 3)
        self._at_edges = _at_edges(self._normals, faces, len(vertices))  # (F, 3 edges, 3); edge i runs from corner i on
        self._reach = np.linalg.norm(self.corners - self.corners.mean(1, keepdims=True), axis=2).max()

    def near(self, points: np.ndarray, reach: float) -> Proximity:
        """The points (N, 3) that may lie inside or within `reach` of the surface, measured.

        A point deep inside may be measured from a face that is not quite the closest; a sign is of the closest feature,
        face, edge or corner (Baerentzen and Aanaes, IEEE TVCG 2005).
        """
        within = ((points > self.low - reach) & (points < self.high + reach)).all(1)
        rows = np.flatnonzero(within)
        own = points[rows]
        count = min(CANDIDATES, len(self.faces))
        _, candidates = self._tree.query(own, k=list(range(1, count + 1)))
        closest, weights = closest_points(own[:, None], self.corners[candidates])
        squared = np.square(closest - own[:, None]).sum(2)
        best = squared.argmin(1)
        pick = np.arange(len(own))
        face = candidates[pick, best]
        offset = own - closest[pick, best]
        normal = self._feature_normals(face, weights[pick, best])
        side = np.where((offset * normal).sum(1) < 0, -1.0, 1.0)
        length = np.sqrt(squared[pick, best])
        away = side[:, None] * offset / np.maximum(length, 1e-12)[:, None]
        outward = np.where(length[:, None] > 1e-6 * self._reach, away, normal)
        return Proximity(rows, side * length, outward)

    def _feature_normals(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Unit normals (K, 3) of what closest points of these weights (K, 3) lie on: a face, an edge or a corner."""
        zero = weights <= 1e-12
        normal = self._normals[face].copy()
        for corner in range(3):
            on_edge = zero[:, corner] & (zero.sum(1) == 1)  # across from that corner
            normal[on_edge] = self._at_edges[face[on_edge], (corner + 1) % 3]
            at_corner = ~zero[:, corner] & (zero.sum(1) == 2)
            normal[at_corner] = self._at_corners[face[at_corner], corner]
        return _unit(normal)


def closest_points(points: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The closest points of triangles (..., 3, 3) to points (..., 3), and their barycentric weights (..., 3).

    By the regions of Ericson, Real-Time Collision Detection (2005), section 5.1.5.
    """
    a, b, c = (triangles[..., corner, :] for corner in range(3))
    ab = b - a
    ac = c - a
    d1, d2 = _dot(ab, points - a), _dot(ac, points - a)
    d3, d4 = _dot(ab, points - b), _dot(ac, points - b)
    d5, d6 = _dot(ab, points - c), _dot(ac, points - c)
    across_a = d3 * d6 - d5 * d4
    across_b = d5 * d2 - d1 * d6
    across_c = d1 * d4 - d3 * d2
    total = across_a + across_b + across_c
    total = np.where(total == 0, 1.0, total)
    weights = np.stack([across_a / total, across_b / total, across_c / total], -1)
    zero = np.zeros_like(d1)
    one = np.ones_like(d1)
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
        weights = np.where(region[..., None], np.stack(own, -1), weights)
    return (weights[..., None] * triangles).sum(-2), weights


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.clip(part / np.where(whole == 0, 1.0, whole), 0, 1)


def _dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", u, v)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-300)


def _at_vertices(corners: np.ndarray, normals: np.ndarray, faces: np.ndarray, count: int) -> np.ndarray:
    """Normals (V, 3) at the vertices: of their faces, weighted by the faces' angles there."""
    sums = np.zeros((count, 3))
    for corner in range(3):
        onward = _unit(corners[:, (corner + 1) % 3] - corners[:, corner])
        back = _unit(corners[:, (corner + 2) % 3] - corners[:, corner])
        angle = np.arccos(np.clip(_dot(onward, back), -1, 1))
        np.add.at(sums, faces[:, corner], angle[:, None] * normals)
    return _unit(sums)


def _at_edges(normals: np.ndarray, faces: np.ndarray, count: int) -> np.ndarray:
    """Normals (F, 3 edges, 3) at the edges: the sum of those of the two faces that share them."""
    start = faces
    end = np.roll(faces, -1, axis=1)
    number = np.minimum(start, end) * count + np.maximum(start, end)
    _, edge = np.unique(number, return_inverse=True)
    edge = edge.reshape(faces.shape)
    sums = np.zeros((edge.max() + 1, 3))
    np.add.at(sums, edge, normals[:, None].repeat(3, 1))
    return _unit(sums[edge])
