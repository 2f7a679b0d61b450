"""The meshes of an evaluation's folder as shapes whose points correspond.

Each mesh of a structure has the same vertices in the same order, as all come from one template.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from implicitmeshnet.script import InputError, read_json
from implicitmeshnet.surfaces.files import read_mesh
from implicitmeshnet.surfaces.soundness import is_closed

LEAST_CASES = 3
"""With two, nothing is left to vary when one is left out."""
ORDERED = (".ply", ".obj")
"""Formats that keep the vertices' order and that we read: an STL has no vertices of its own."""
STATISTICS = "statistics.json"


@dataclass(frozen=True, eq=False)
class Parts:
    """How the points of a shape are shared by its structures, one after the other."""

    names: tuple[str, ...]
    counts: tuple[int, ...]  # vertices of each structure
    faces: tuple[np.ndarray, ...]  # (F, 3) of each structure, whose first vertex is 0

    def split(self, points: np.ndarray) -> list[np.ndarray]:
        """Points (..., P, 3) by structure, each (..., V, 3)."""
        return np.split(points, np.cumsum(self.counts)[:-1], axis=-2)


@dataclass(frozen=True, eq=False)
class Cohort:
    """N shapes of P corresponding points each."""

    cases: tuple[str, ...]
    parts: Parts
    points: np.ndarray  # (N, P, 3) float64, mm RAS


def read_cohort(folder: Path) -> Cohort:
    """The meshes of all cases in a folder that implicitmeshnet_eval.py wrote; its statistics.json says which there are.

    Raises InputError where a mesh is missing, open or damaged, or has other vertices or faces than that of the first
    case, and where there are fewer than LEAST_CASES cases.
    """
    cases, names = _listed(folder)
    points = []
    parts = None
    for case in cases:
        meshes = []
        paths = [_mesh_path(folder, stem) for stem in _stems(case, names)]
        for path in paths:
            meshes.append(read_mesh(path))
        if parts is None:
            parts = _parts_of(names, paths, meshes)
        for structure, path in enumerate(paths):
            _check_corresponds(path, meshes[structure], parts, structure, cases[0])
        points.append(np.concatenate([vertices for vertices, _ in meshes]))
    assert parts is not None
    return Cohort(tuple(cases), parts, np.stack(points))


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names of cases and structures of an evaluation."""
    path = folder / STATISTICS
    tree = read_json(path, "the statistics of an evaluation")
    try:
        cases = [str(case["case"]) for case in tree["cases"]]
        structures = [list(case["structures"]) for case in tree["cases"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: wanted cases with structures, as implicitmeshnet_eval.py writes them") from error
    if len(cases) < LEAST_CASES:
        raise InputError(f"{path}: wanted at least {LEAST_CASES} cases for a shape model, found {len(cases)}")
    for case, found in zip(cases, structures, strict=True):
        if found != structures[0] or not found:
            wanted = ", ".join(structures[0]) or "at least one structure"
            raise InputError(f"{path}: wanted {wanted} in every case, found {', '.join(found) or 'none'} in {case}")
    return cases, structures[0]


def _stems(case: str, names: Sequence[str]) -> list[str]:
    """What the names of a case's mesh files begin with: the case, and where there are several the structure."""
    return [case] if len(names) == 1 else [f"{case}_{name}" for name in names]


def _mesh_path(folder: Path, stem: str) -> Path:
    """The mesh's file, in whichever format it is."""
    found = [path for path in sorted(folder.glob("*_mesh.*")) if path.stem == f"{stem}_mesh"]
    for path in found:
        if path.suffix in ORDERED:
            return path
    others = f"{found[0].name} alone" if found else "none"
    raise InputError(f"{folder}: wanted {stem}_mesh.ply or .obj, whose vertices have an order, found {others}")


def _parts_of(names: Sequence[str], paths: Sequence[Path], meshes: Sequence[tuple[np.ndarray, np.ndarray]]) -> Parts:
    """The template that the meshes of the first case show."""
    for path, (_, faces) in zip(paths, meshes, strict=True):
        if not is_closed(faces):
            raise InputError(f"{path}: wanted a closed mesh, found edges that do not lie in exactly two faces")
    counts = tuple(len(vertices) for vertices, _ in meshes)
    return Parts(tuple(names), counts, tuple(faces for _, faces in meshes))


def _check_corresponds(
    path: Path, mesh: tuple[np.ndarray, np.ndarray], parts: Parts, structure: int, first: str
) -> None:
    """Raise InputError where a mesh has not the vertices and faces of the first case's."""
    vertices, faces = mesh
    count = parts.counts[structure]
    if len(vertices) != count:
        raise InputError(f"{path}: wanted {count} vertices, as in the mesh of {first}, found {len(vertices)}")
    if not is_closed(faces):
        raise InputError(f"{path}: wanted a closed mesh, found edges that do not lie in exactly two faces")
    if not np.array_equal(faces, parts.faces[structure]):
        raise InputError(f"{path}: wanted the same faces as in the mesh of {first}, found a mesh of another template")
