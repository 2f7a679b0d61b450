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
    """What the points of a shape are: those of S structures one after the other, V of each, of one template."""

    names: tuple[str, ...]
    faces: np.ndarray  # (F, 3), of each structure's vertices 0 to V - 1

    def split(self, points: np.ndarray) -> np.ndarray:
        """Points (..., P, 3) by structure: (..., S, V, 3)."""
        return points.reshape(*points.shape[:-2], len(self.names), -1, 3)


@dataclass(frozen=True, eq=False)
class Cohort:
    """N shapes of P corresponding points each."""

    cases: tuple[str, ...]
    parts: Parts
    points: np.ndarray  # (N, P, 3) float64, mm RAS


def read_cohort(folder: Path) -> Cohort:
    """The meshes of all cases in a folder that implicitmeshnet_eval.py wrote; its statistics.json says which there are.

    Raises InputError where a mesh is missing, open or damaged, or has other vertices or faces than the first mesh, and
    where there are fewer than LEAST_CASES cases.
    """
    cases, names = _listed(folder)
    paths = []
    for case in cases:
        paths += [_mesh_path(folder, stem) for stem in _stems(case, names)]
    template = read_mesh(paths[0])
    points = [_corresponding(path, template, paths[0].name) for path in paths]
    shapes = np.reshape(points, (len(cases), -1, 3))
    return Cohort(tuple(cases), Parts(tuple(names), template[1]), shapes)


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


def _corresponding(path: Path, template: tuple[np.ndarray, np.ndarray], first: str) -> np.ndarray:
    """The vertices (V, 3) of a mesh. Raises InputError where it has not the number and the faces of the template."""
    vertices, faces = read_mesh(path)
    if not is_closed(faces):
        raise InputError(f"{path}: wanted a closed mesh, found edges that do not lie in exactly two faces")
    count = len(template[0])
    if len(vertices) != count:
        raise InputError(f"{path}: wanted {count} vertices, as in {first}, found {len(vertices)}")
    if not np.array_equal(faces, template[1]):
        raise InputError(f"{path}: wanted the faces of {first}, found those of another template")
    return vertices
