"""Meshes that cross themselves, smoothed where they do."""

import numpy as np
from scipy.sparse import coo_matrix, diags

from implicitmeshnet.surfaces.soundness import self_intersecting_faces

ROUNDS = 60
ROUNDS_PER_RING = 6
"""Rounds after which the smoothed region grows by one ring of vertices."""


def untangle(vertices, faces) -> np.ndarray:
    """Vertices (V, 3) moved so that no face of the closed mesh crosses another, faces (F, 3): float64 (V, 3).

    Each round moves the vertices of the faces that cross, and those around them, to the mean of their neighbours; the
    region grows while that does not help. Every other vertex stays where it is. Returns the round with the fewest
    crossing faces: none, unless two parts of the surface run through each other over a long way.
    """
    vertices, faces = np.array(vertices, dtype=np.float64), np.asarray(faces)
    mean, best = _neighbour_mean(faces, len(vertices)), (len(faces) + 1, vertices)
    for step in range(ROUNDS):
        crossing = self_intersecting_faces(vertices, faces)
        best = min(best, (int(crossing.sum()), vertices), key=lambda pair: pair[0])
        if best[0] == 0:
            break
        region = np.zeros(len(vertices), dtype=bool)
        region[faces[crossing]] = True
        for _ in range(1 + step // ROUNDS_PER_RING):
            region |= mean @ region > 0
        moved = vertices.copy()
        moved[region] = (vertices[region] + (mean @ vertices)[region]) / 2
        vertices = moved
    return best[1]


def _neighbour_mean(faces, count: int):
    """The sparse matrix (V, V) that takes a value of each vertex to the mean of its neighbours'."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()  # in a closed mesh each edge runs both ways
    matrix = coo_matrix((np.ones(len(start)), (start, end)), shape=(count, count)).tocsr()
    return diags(1 / np.maximum(np.asarray(matrix.sum(1)).ravel(), 1)) @ matrix
