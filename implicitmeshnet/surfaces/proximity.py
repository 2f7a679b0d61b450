"""The signed distance of points from a closed mesh, and the way out of it."""

from dataclasses import dataclass

import numpy as np
import torch

from implicitmeshnet.ops import distance_to_mesh


@dataclass(frozen=True)
class Proximity:
    """Where some of N points lie relative to a closed mesh."""

    rows: np.ndarray  # (K,) which of the points: those within reach of the mesh
    distance: np.ndarray  # (K,) signed, negative inside
    outward: np.ndarray  # (K, 3) unit vectors along which the distance grows


def near(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray, reach: float | np.ndarray) -> Proximity:
    """The points (N, 3) that may lie inside or within `reach` of a closed mesh, measured by the op `distance_to_mesh`.

    vertices (V, 3), faces (F, 3) counter-clockwise seen from outside; the reach is one, or one of each point (N,).
    Others, beyond the mesh's box and their reach, are left out.
    """
    reach = np.reshape(reach, (-1, 1))
    within = ((points > vertices.min(0) - reach) & (points < vertices.max(0) + reach)).all(1)
    rows = np.flatnonzero(within)
    if not len(rows):
        return Proximity(rows, np.zeros(0), np.zeros((0, 3)))
    tensors = (torch.from_numpy(np.ascontiguousarray(each)) for each in (points[rows], vertices, faces))
    distance, outward = distance_to_mesh(*tensors)
    return Proximity(rows, distance.numpy(), outward.numpy())


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Outward unit normals (V, 3) at the vertices of a closed mesh, (V, 3) and (F, 3): see `distance_to_mesh`."""
    on_it = (torch.from_numpy(np.ascontiguousarray(each)) for each in (vertices, vertices, faces))
    return distance_to_mesh(*on_it)[1].numpy()
