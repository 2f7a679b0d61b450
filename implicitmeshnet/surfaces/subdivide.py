"""Smoother meshes for the eye: subdivision by the rule of Loop (C. Loop, Smooth Subdivision Surfaces Based on
Triangles, 1987), as trimesh has it."""

import numpy as np
from trimesh.remesh import subdivide_loop

FINEST = 3
"""Subdivisions at most: each makes four faces of one."""


def subdivide(vertices: np.ndarray, faces: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
    """A closed mesh (V, 3), (F, 3) with each face divided into four so many times, 0 to FINEST; faces keep their side.

    The surface is smoothed by it, and what bends outward shrinks a little.
    """
    if times == 0:
        return vertices, faces
    return subdivide_loop(vertices, faces, iterations=times)
