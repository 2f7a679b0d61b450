"""Whether a triangle mesh is sound: closed, of which genus, how large inside, and where it crosses itself."""

import numpy as np

from implicitmeshnet.surfaces.crossing import crossing_faces, crossing_pairs


def mesh_volume_ml(vertices_mm: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume in millilitres inside a closed mesh, vertices_mm (V, 3) and faces (F, 3).

    It is positive where the faces run counter-clockwise seen from outside.
    """
    # Each face and the centre span a tetrahedron; a centre inside the mesh keeps the numbers small, and so exact.
    centred = vertices_mm - np.mean(vertices_mm, axis=0)
    a, b, c = _corners(centred, faces)
    six_volumes = _dot(a, np.cross(b, c))  # (F,) mm^3
    return float(six_volumes.sum() / 6000)


def mesh_area_mm2(vertices_mm: np.ndarray, faces: np.ndarray) -> float:
    """Area of a mesh's surface in square millimetres, vertices_mm (V, 3) and faces (F, 3)."""
    a, b, c = _corners(vertices_mm, faces)
    double = np.linalg.norm(np.cross(b - a, c - a), axis=1)  # (F,) twice the areas
    return float(double.sum() / 2)


def euler_characteristic(faces: np.ndarray) -> int:
    """Vertices in use - edges + faces of a triangulation (F, 3): 2 for a sphere, 0 for a torus."""
    faces = np.asarray(faces)
    undirected = np.sort(_directed_edges(faces), axis=1)
    edges = np.unique(undirected, axis=0)
    return len(np.unique(faces)) - len(edges) + len(faces)


def is_closed(faces: np.ndarray) -> bool:
    """True where every edge of faces (F, 3) lies in exactly two faces, which run along it in opposite directions."""
    start, end = _directed_edges(np.asarray(faces, dtype=np.int64)).T
    if not len(start) or (start == end).any():
        return False
    # One number for each directed edge, and one for the same edge run backward.
    count = max(start.max(), end.max()) + 1
    forward = np.sort(start * count + end)
    backward = np.sort(end * count + start)
    opposed = (forward == backward).all()
    once = (np.diff(forward) > 0).all()
    return bool(opposed and once)


def winding_numbers(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """How often a closed mesh, (V, 3) and (F, 3), winds around each of points (N, 3): 1 inside, 0 outside.

    The sum of the faces' solid angles (van Oosterom and Strackee, IEEE Transactions on Biomedical Engineering 30,
    1983); on the surface itself it is between the two. Takes memory for N x F x 9 numbers.
    """
    a, b, c = (corner - np.asarray(points, dtype=np.float64)[:, None] for corner in _corners(vertices, faces))
    la, lb, lc = (np.linalg.norm(each, axis=2) for each in (a, b, c))
    volume = _dot(a, np.cross(b, c))
    spread = la * lb * lc + _dot(a, b) * lc + _dot(b, c) * la + _dot(c, a) * lb
    return np.arctan2(volume, spread).sum(axis=1) / (2 * np.pi)


def self_intersecting_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The faces, bool (F,), that cross or touch another with which they share no vertex there; (V, 3) and (F, 3).

    See `crossing.crossing_pairs`: a face without area counts. Faces with a coordinate that is not finite do not.
    """
    faces = np.asarray(faces)
    positions = np.asarray(vertices, dtype=np.float64)
    sound: np.ndarray = np.all(np.isfinite(positions), axis=1)
    known = np.all(sound[faces], axis=1)
    found = np.zeros(len(faces), dtype=bool)
    found[known] = crossing_faces(np.where(sound[:, None], positions, 0.0), faces[known])
    return found


def crossing_faces_of(meshes: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each mesh the faces that cross another face of it, and those that cross another mesh: two bool (S, F).

    meshes (S, V, 3), faces (F, 3); see `self_intersecting_faces`.
    """
    count, size, _ = meshes.shape
    numbered = np.concatenate([faces + size * number for number in range(count)])
    positions = np.asarray(meshes, dtype=np.float64).reshape(-1, 3)
    sound: np.ndarray = np.all(np.isfinite(positions), axis=1)
    known = np.flatnonzero(np.all(sound[numbered], axis=1))
    pairs = known[crossing_pairs(np.where(sound[:, None], positions, 0.0), numbered[known])]
    own = pairs[:, 0] // len(faces) == pairs[:, 1] // len(faces)
    found = []
    for chosen in (pairs[own], pairs[~own]):
        crossed = np.zeros(len(numbered), dtype=bool)
        crossed[chosen.ravel()] = True
        found.append(crossed.reshape(count, -1))
    return found[0], found[1]


def _dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...i->...", u, v)


def _corners(vertices: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    """The first, second and third corner of each face, each (F, 3) float64."""
    positions = np.asarray(vertices, dtype=np.float64)
    indices = np.asarray(faces)
    return [positions[indices[:, corner]] for corner in range(3)]


def _directed_edges(faces: np.ndarray) -> np.ndarray:  # (3F, 2)
    return faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
