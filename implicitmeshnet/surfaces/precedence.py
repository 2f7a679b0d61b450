"""Meshes that the image shows keep their place, and those that it does not make way for them.

`separation.separate` believes all meshes alike. Where the view ends within the heart, the meshes beyond it follow
nothing: they may lie anywhere, and would push those that are right out of their places.
"""

from collections.abc import Sequence

import numpy as np

from implicitmeshnet.surfaces.metrics import LEAST_AGREEMENT
from implicitmeshnet.surfaces.proximity import near
from implicitmeshnet.surfaces.repair import untangle
from implicitmeshnet.surfaces.stars import star

DEEP_MM = 2.0
"""In another mesh; one of which no vertex lies so deep just touches it, and may be moved a little for it."""
ENCLOSED = 0.6
"""The size of a mesh that makes way with the one that encloses it, relative to that one."""


def made_way(
    vertices: np.ndarray,
    faces: np.ndarray,
    sphere: np.ndarray,
    encloses: Sequence[Sequence[int]],
    agreement: Sequence[float],
) -> np.ndarray:
    """Meshes (S, V, 3) in mm of which no doubtful one lies deep in one that is believed: (S, V, 3) float64.

    `agreement` (S,) is each one's Dice with the voxel segmentation within the view, NaN where neither is there. Each
    goes with what it encloses; doubtful are those with less than LEAST_AGREEMENT in the mean. They come after the
    others, in its order. One that lies deep in those before it, or the reverse, becomes what can be seen in it, outside
    of them, from the point where it has most room. The others stay as they are, and so do all where none is believed.
    """
    moved = vertices.astype(np.float64)
    known = np.nan_to_num(np.asarray(agreement, np.float64))
    enclosed = {inner for held in encloses for inner in held}
    groups = [[one, *held] for one, held in enumerate(encloses) if one not in enclosed]
    groups.sort(key=lambda group: -known[group].mean())
    standing: list[int] = []
    for group in groups:
        believed = known[group].mean() >= LEAST_AGREEMENT
        if not believed and not standing:
            break
        if not believed and _lies_deep(moved[group[0]], moved[standing], faces):
            own = untangle(moved[group[0]], faces, sphere)
            centre, rays = star(own, moved[standing], faces, sphere, inside=moved[:0])
            for number, one in enumerate(group):
                moved[one] = centre + ENCLOSED**number * rays
        standing += group
    return moved


def _lies_deep(mesh: np.ndarray, others: np.ndarray, faces: np.ndarray) -> bool:
    """Whether a mesh (V, 3) lies deep in one of others (N, V, 3), or one of them in the mesh."""
    deepest = 0.0
    for other in others:
        for one, around in ((mesh, other), (other, mesh)):
            deepest = min(deepest, near(one, around, faces, 0.0).distance.min(initial=0.0))
    return deepest < -DEEP_MM
