"""Which faces of meshes cross or touch, decided exactly.

Vertices are taken to integers first, as fine as float32 tells apart the largest coordinate, so that a file in float32
holds the very numbers that were judged; the op `crossing_pairs` decides on these.
"""

import numpy as np
import torch

from implicitmeshnet.ops import crossing_pairs as exact_crossing_pairs
from implicitmeshnet.script import InputError

BITS = 24
"""Of the integers that vertices become."""


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
    """The pairs of faces that have more in common than the vertices that they share: (P, 2), ascending, each pair once.

    vertices (V, 3), faces (F, 3); of several meshes the vertices are simply numbered on. Faces that share a vertex or
    an edge meet there; all others may not even touch. A face without area is paired with itself. Only pairs are looked
    for that have a `chosen` face, bool (F,), by default all. Raises InputError for coordinates that are not finite.
    """
    step = snap_step(vertices)
    if not len(faces):
        return np.zeros((0, 2), dtype=np.int64)
    whole = np.round(np.asarray(vertices, dtype=np.float64) / step).astype(np.int64)
    wanted = None if chosen is None else torch.from_numpy(chosen)
    return exact_crossing_pairs(torch.from_numpy(whole), torch.from_numpy(np.asarray(faces)), wanted).numpy()


def crossing_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces of a mesh, bool (F,), in any of `crossing_pairs`."""
    crossed = np.zeros(len(faces), dtype=bool)
    crossed[crossing_pairs(vertices, faces).ravel()] = True
    return crossed
