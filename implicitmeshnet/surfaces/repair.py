"""Meshes that cross themselves, mended: smoothed where they do, and where that fails, drawn back to an ellipsoid.

All meshes have the triangulation of one template sphere, so each is an image of it. The affine map that comes closest
to that image makes an ellipsoid, which crosses nothing; on the straight way from the mesh to it, every crossing ends.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.spatial.distance import pdist

from implicitmeshnet.surfaces.crossing import crossing_faces, snap_step, snapped
from implicitmeshnet.surfaces.soundness import mesh_volume_ml

ROUNDS = 30
"""After so many rounds of smoothing what still crosses is drawn back."""
ROUNDS_PER_RING = 6
"""Rounds after which the smoothed region grows by one ring of vertices."""
RETREATS = 40
"""Steps on the way to the ellipsoids; the region grows by a ring in each, and is the whole mesh in the last ones."""
SHARE_KEPT = 0.7
"""How much of the way from the ellipsoid a vertex keeps in a step, and of its size an ellipsoid."""
ADVANCES = 24
"""Steps back towards the meshes as they were, once nothing crosses."""
SMALLEST_ADVANCE = 0.05
"""Of the way that is left: a vertex whose step has become smaller stays."""
SHRINKS = 60
"""Steps in which an ellipsoid becomes a point."""
TOGETHER = 0.1
"""Of the mean radius of meshes, below which the distance of their centres does not say where each is to be alone."""
APART = 0.3
"""How far from the centre of an ellipsoid others lie that shrink within it, relative to its radius."""
SMALLEST_STEPS = 4096
"""The least size of an ellipsoid before it shrinks, in the steps to which vertices are snapped."""
FLATTEST = 0.05
"""The shortest semi-axis of an ellipsoid, relative to the longest."""


def untangle(vertices: np.ndarray, faces: np.ndarray, sphere: np.ndarray) -> np.ndarray:
    """Vertices (V, 3) moved so that no face of the closed mesh crosses or touches another: (V, 3) float64.

    faces (F, 3) are those of a template `sphere` (V, 3), a sphere or an affine image of one. Each round moves the
    vertices of the faces that cross, and those around them, half-way to the mean of their neighbours; the region grows
    while that does not help. What does not help in ROUNDS is undone, and `retreated` mends it. Every other vertex stays
    where it is, but that all are `snapped`.
    """
    start = snapped(vertices)
    moved = start
    mean = neighbour_mean(faces, len(start))
    for step in range(ROUNDS):
        region = vertices_of(faces, _unsound(moved, faces), len(moved))
        if not region.any():
            return moved
        if region.all():
            break
        moved = snapped(smoothed(moved, grown(region, mean, 1 + step // ROUNDS_PER_RING), mean))
    return retreated(start[None], faces, sphere, lambda meshes: _unsound(meshes[0], faces)[None])[0]


def _unsound(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces, bool (F,), that cross others; all where the mesh is inside out."""
    if mesh_volume_ml(vertices, faces) <= 0:
        return np.ones(len(faces), dtype=bool)
    return crossing_faces(vertices, faces)


def retreated(
    meshes: np.ndarray,
    faces: np.ndarray,
    sphere: np.ndarray,
    crossing: Callable[[np.ndarray], np.ndarray],
    outer: Sequence[int | None] = (None,),
) -> np.ndarray:
    """Meshes (S, V, 3) drawn back until nothing crosses: (S, V, 3).

    `crossing` says of meshes which faces still do, bool (S, F); `outer` which mesh encloses each, if one does. Around
    those faces the vertices go towards the ellipsoid of their mesh, a region that grows from step to step. Whole
    ellipsoids at last shrink, each towards its centre, or within what encloses it.
    """
    goals = np.stack([fitted_ellipsoid(mesh, sphere) for mesh in meshes])
    shares = np.ones(meshes.shape[:2])
    mean = neighbour_mean(faces, meshes.shape[1])
    moved = meshes
    for step in range(RETREATS):
        crossed = crossing(moved)
        if not crossed.any():
            return _advanced(moved, meshes, faces, mean, crossing) if step else moved
        for share, own in zip(shares, crossed, strict=True):
            region = grown(vertices_of(faces, own, len(share)), mean, 1 + step)
            share[region] *= SHARE_KEPT
            np.minimum(share, mean @ share, out=share)
        moved = snapped(goals + shares[..., None] * (meshes - goals))
    return _advanced(_shrunk(goals, moved, crossing, outer), meshes, faces, mean, crossing)


def _advanced(
    moved: np.ndarray,
    wanted: np.ndarray,
    faces: np.ndarray,
    mean: csr_matrix,
    crossing: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """`moved` meshes (S, V, 3), of which none crosses, brought closer to those `wanted` while none does.

    All vertices take half of the way that is left; those of faces that would cross, and their neighbours, a quarter of
    their step, until a step is free of crossings.
    """
    steps = np.full(moved.shape[:2], 0.5)
    for _ in range(ADVANCES):
        steps[steps < SMALLEST_ADVANCE] = 0
        closer = snapped(moved + steps[..., None] * (wanted - moved))
        crossed = crossing(closer)
        if not crossed.any():
            if (closer == moved).all():
                break
            moved = closer
            steps = np.minimum(2 * steps, 0.5)
            continue
        for step, own in zip(steps, crossed, strict=True):
            step[grown(vertices_of(faces, own, len(step)), mean, 1)] /= 4
    return moved


def _shrunk(
    goals: np.ndarray, moved: np.ndarray, crossing: Callable[[np.ndarray], np.ndarray], outer: Sequence[int | None]
) -> np.ndarray:
    """`moved` meshes (S, V, 3) whose crossing ones become their `goals`, smaller and smaller, until none crosses."""
    centres = goals.mean(1)
    shapes = goals - centres[:, None]
    free = [own is None for own in outer]
    centres[free] = sites_of(goals[free])
    sizes = np.ones(len(goals))
    touched = np.zeros(len(goals), dtype=bool)
    for _ in range(SHRINKS):
        crossed: np.ndarray = np.any(crossing(moved), axis=1)
        if not crossed.any():
            break
        touched |= crossed
        for one, own in enumerate(outer):
            faster = 1 if own is None else 2  # so that it fits into what encloses it some day
            sizes[one] *= SHARE_KEPT ** (faster * crossed[one])
        places = centres.copy()
        for one, own in enumerate(outer):
            if own is not None and touched[one]:  # another place within it for each that it encloses
                places[one] = centres[own] + APART * sizes[own] * shapes[own, one]
        smaller = snapped(places[:, None] + sizes[:, None, None] * shapes)
        moved = np.where(touched[:, None, None], smaller, moved)
    return moved


def sites_of(meshes: np.ndarray) -> np.ndarray:
    """The centres (S, 3) of meshes (S, V, 3), moved apart in all directions where two of them hardly differ."""
    centres = meshes.mean(1)
    radius = np.linalg.norm(meshes - centres[:, None], axis=2).mean()
    if pdist(centres).min(initial=np.inf) > TOGETHER * radius:
        return centres
    count = np.arange(len(meshes))
    height = 1 - (2 * count + 1) / len(meshes)
    level = np.sqrt(1 - height**2)
    turn = count * np.pi * (3 - 5**0.5)  # by the golden angle: a spiral over the sphere
    return centres + radius * np.stack([level * np.cos(turn), level * np.sin(turn), height], 1)


def fitted_ellipsoid(mesh: np.ndarray, sphere: np.ndarray) -> np.ndarray:
    """The affine image of `sphere` (V, 3) that comes closest to a mesh (V, 3), vertex by vertex: (V, 3).

    An image that is inside out, or flatter than FLATTEST, is replaced by one that is not.
    """
    centre = mesh.mean(0)
    own_centre = sphere.mean(0)
    matrix, *_ = np.linalg.lstsq(sphere - own_centre, mesh - centre, rcond=None)
    left, lengths, right = np.linalg.svd(matrix)
    if np.linalg.det(left @ right) < 0:
        right[-1] *= -1  # along the shortest semi-axis
    smallest = SMALLEST_STEPS * snap_step(mesh)
    size = max(lengths[0], np.linalg.norm(mesh - centre, axis=1).mean() * FLATTEST, smallest)
    lengths = np.maximum(lengths, FLATTEST * size)
    return centre + (sphere - own_centre) @ (left * lengths) @ right


def vertices_of(faces: np.ndarray, chosen: np.ndarray, count: int) -> np.ndarray:
    """The vertices, bool (V,) of `count`, of the chosen faces, bool (F,)."""
    region = np.zeros(count, dtype=bool)
    region[faces[chosen]] = True
    return region


def grown(region: np.ndarray, mean: csr_matrix, rings: int) -> np.ndarray:
    """A set of vertices, bool (V,), with those that lie up to so many edges away from it."""
    for _ in range(rings):
        region = region | (mean @ region > 0)
    return region


def smoothed(vertices: np.ndarray, region: np.ndarray, mean: csr_matrix) -> np.ndarray:
    """The vertices (V, 3), those of the region (V,) moved half-way to the mean of their neighbours."""
    moved = vertices.copy()
    moved[region] = (vertices[region] + (mean @ vertices)[region]) / 2
    return moved


def neighbour_mean(faces: np.ndarray, count: int) -> csr_matrix:
    """The sparse matrix (V, V) that takes a value of each vertex to the mean of its neighbours'."""
    start = faces.ravel()
    end = np.roll(faces, -1, axis=1).ravel()  # in a closed mesh each edge runs both ways
    ones = np.ones(len(start))
    adjacency = coo_matrix((ones, (start, end)), shape=(count, count)).tocsr()
    degree = np.asarray(adjacency.sum(1)).ravel()
    return diags(1 / np.maximum(degree, 1)) @ adjacency
