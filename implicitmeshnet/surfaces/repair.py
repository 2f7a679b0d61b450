"""Meshes that cross themselves, smoothed where they do."""

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags

from implicitmeshnet.surfaces.soundness import self_intersecting_faces

ROUNDS = 60
"""After so many rounds of smoothing the best one is taken, whether faces still cross or not."""
ROUNDS_PER_RING = 6
"""Rounds after which the smoothed region grows by one ring of vertices."""


def untangle(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Vertices (V, 3) moved so that no face of the closed mesh crosses another, faces (F, 3): float64 (V, 3).

    Each round moves the vertices of the faces that cross, and those around them, half-way to the mean of their
    neighbours; the region grows while that does not help. Every other vertex stays where it is. Returns the round with
    the fewest crossing faces: none, unless two parts of the surface run through each other over a long way.
    """
    vertices = np.array(vertices, dtype=np.float64)
    faces = np.asarray(faces)
    mean = _neighbour_mean(faces, len(vertices))
    best = vertices
    fewest = len(faces) + 1
    for step in range(ROUNDS):
        crossing = self_intersecting_faces(vertices, faces)
        count = int(crossing.sum())
        # Smoothing one place can make others cross, so the last round is not always the best.
        if count < fewest:
            fewest = count
            best = vertices
        if fewest == 0:
            break
        region = np.zeros(len(vertices), dtype=bool)
        region[faces[crossing]] = True
        rings = 1 + step // ROUNDS_PER_RING
        vertices = _smoothed(vertices, _grown(region, mean, rings), mean)
    return best


def _grown(region: np.ndarray, mean: csr_matrix, rings: int) -> np.ndarray:
    """A set of vertices, bool (V,), with those that lie up to so many edges away from it."""
    for _ in range(rings):
        region = region | (mean @ region > 0)
    return region


def _smoothed(vertices: np.ndarray, region: np.ndarray, mean: csr_matrix) -> np.ndarray:
    """The vertices (V, 3), those of the region (V,) moved half-way to the mean of their neighbours."""
    moved = vertices.copy()
    moved[region] = (vertices[region] + (mean @ vertices)[region]) / 2
    return moved


def _neighbour_mean(faces: np.ndarray, count: int) -> csr_matrix:
    """The sparse matrix (V, V) that takes a value of each vertex to the mean of its neighbours'."""
    start = faces.ravel()
    end = np.roll(faces, -1, axis=1).ravel()  # in a closed mesh each edge runs both ways
    ones = np.ones(len(start))
    adjacency = coo_matrix((ones, (start, end)), shape=(count, count)).tocsr()
    degree = np.asarray(adjacency.sum(1)).ravel()
    return diags(1 / np.maximum(degree, 1)) @ adjacency
