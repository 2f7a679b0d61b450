"""Shape models of phantoms: the network's own correspondence, and meshes by marching cubes registered point by point.

    python implicitmeshnet_eval.py --implicitmeshnet_config=configs_implicitmeshnet/whole_heart.json \\
        --input=data/phantom/test --output=runs/whole_heart_test
    python benchmarks/shape_model.py --config=configs_implicitmeshnet/whole_heart.json \\
        --results=runs/whole_heart_test --labels=data/phantom/test [--families scale lv_radius la_scale]

Peers are made of the labels' surfaces, marching cubes at 1 mm of each structure: the network's mean shape is brought
onto them by iterated closest points (Besl and McKay, IEEE PAMI 14, 1992), rigidly as a whole, and in the second peer
each structure by an affine map of its own after that; then each vertex goes to the nearest point of its structure's
surface. All have the same number of points. Generalisation and specificity are between corresponding points. "Surface"
is what a user sees: the left-out case, itself and as the model approximates it, against the label's surface, mean of
both directions, which does not ask for correspondence. Crossing faces are those of the meshes that go into the model,
and of random shapes of it.

Then what the modes know of the numbers that the phantoms were drawn from; and --families: phantoms that differ in one
of these numbers alone, predicted by the same network: does mode 1 find it?
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from skimage.measure import marching_cubes
from timing import at_least
from tqdm import tqdm

from implicitmeshnet.config import load_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import find_cases
from implicitmeshnet.data.formats import read_labels
from implicitmeshnet.data.volume import Grid, Volume, resample_nearest
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.phantom.case import draw_grid, render
from implicitmeshnet.phantom.patient import Patient
from implicitmeshnet.predict import Predictor
from implicitmeshnet.script import InputError, run_script
from implicitmeshnet.shape_model.cohort import Cohort, Parts, read_cohort
from implicitmeshnet.shape_model.measures import compactness, generalisation, residuals, specificity
from implicitmeshnet.shape_model.model import ShapeModel, align, build_model, principal_modes, rotation_onto
from implicitmeshnet.shape_model.sliding import Sphere, slide
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.soundness import self_intersecting_faces

SPACING_MM = 1.0  # of the label that marching cubes sees
SMOOTHING_VOXELS = 1.0
ROUNDS = 30  # of iterated closest points
SHOWN_MODES = (1, 5, 10)
RANDOM_SHAPES = 10  # whose faces are tested for crossings
PERMUTATIONS = 2000
HEART = ("scale", "rotation_deg", "warp_sd_mm", "warp_smoothing_mm", "lv_radius", "lv_length", "wall_thickness",
         "rv_scale", "la_scale", "ra_scale", "aorta_radius", "pa_radius", "vein_radius", "stub_length")  # fmt: skip
FAMILY_SPACING_MM = 1.5


class Surface(NamedTuple):
    """A label's surface, as points with normals of length 1."""

    points: np.ndarray  # (N, 3) mm RAS
    normals: np.ndarray  # (N, 3)
    tree: cKDTree

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """Of points (K, 3) the nearest on the surface: on the plane of the nearest of its points."""
        _, index = self.tree.query(points)
        offset = points - self.points[index]
        height = np.einsum("ki,ki->k", offset, self.normals[index])
        within = np.linalg.norm(offset, axis=1) < 3 * SPACING_MM  # farther away the plane says nothing
        on_plane = points - height[:, None] * self.normals[index]
        return np.where(within[:, None], on_plane, self.points[index])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--results", required=True, help="what implicitmeshnet_eval.py wrote of the phantoms")
    parser.add_argument("--labels", required=True, help="the phantoms")
    parser.add_argument("--seed", type=int, default=0, help="that the phantoms were made with")
    parser.add_argument("--families", nargs="*", default=[], metavar="NUMBER", help="of Patient, that alone varies")
    parser.add_argument("--members", type=at_least(4), default=8, help="phantoms of a family")
    arguments = parser.parse_args()
    cohort = read_cohort(Path(arguments.results))
    structures = Structures.of(load_config(arguments.config).data)
    surfaces = surfaces_of(cohort, Path(arguments.labels), structures)
    mean = build_model(cohort).modes.mean
    rigid = [register(mean, cohort.parts, case, affine=False) for case in tqdm(surfaces, "rigid", leave=False)]
    affine = [register(mean, cohort.parts, case, affine=True) for case in tqdm(surfaces, "affine", leave=False)]
    vertices, faces = icosphere(load_config(arguments.config).network.template_subdivisions)
    slid = slide(cohort, Sphere(vertices.numpy().astype(np.float64), faces.numpy()))
    rows = {
        "network's correspondence": cohort,
        "the same, slid (--slide)": slid,
        "marching cubes, nearest after rigid": replace(cohort, points=np.stack(rigid)),
        "marching cubes, nearest after affine": replace(cohort, points=np.stack(affine)),
    }
    print_comparison(rows, surfaces)
    patients = [Patient.draw(np.random.default_rng([arguments.seed, number_of(case)])) for case in cohort.cases]
    for name in list(rows)[:2]:
        print(f"\n{name}")
        print_turns(rows[name], patients)
        print_numbers(build_model(rows[name]), patients)
    if arguments.families:
        print_families(arguments)


# ---- the labels' surfaces, and what is registered with them ----


def surfaces_of(cohort: Cohort, folder: Path, structures: Structures) -> list[list[Surface]]:
    """Of each case of a cohort the surface of each structure's label, with what it encloses."""
    cases = {case.name: case for case in find_cases(folder, labelled=True)}
    found = []
    for name in tqdm(cohort.cases, "marching cubes", leave=False):
        if name not in cases:
            raise InputError(f"{folder}: wanted the label of {name}, found none")
        labels = resample_nearest(read_labels(cases[name].label), SPACING_MM)
        classes = structures.class_map(labels.data)
        order = [structures.names.index(structure) for structure in cohort.parts.names]
        found.append([label_surface(structures.held(classes, number), labels.grid) for number in order])
    return found


def label_surface(mask: np.ndarray, grid: Grid) -> Surface:
    """The surface of a mask (X, Y, Z) by marching cubes, in mm."""
    low = np.maximum([line.min() for line in np.nonzero(mask)], 0)
    high = np.array([line.max() for line in np.nonzero(mask)])
    box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    padded = np.pad(mask[box].astype(np.float32), 5)
    vertices, faces, _, _ = marching_cubes(gaussian_filter(padded, SMOOTHING_VOXELS), 0.5)
    points = transform(grid.affine, vertices + low - 5)
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    normals = np.zeros_like(points)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], across)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return Surface(points, normals, cKDTree(points))


def register(mean: np.ndarray, parts: Parts, surfaces: Sequence[Surface], affine: bool) -> np.ndarray:
    """The points (P, 3) of a case's surfaces that belong to those of the mean shape."""
    points = mean - mean.mean(axis=0) + np.mean([surface.points.mean(axis=0) for surface in surfaces], axis=0)
    for _ in range(ROUNDS):
        points = moved_onto(points, nearest(points, parts, surfaces))
    pieces = list(parts.split(points))
    if affine:
        for number, surface in enumerate(surfaces):
            for _ in range(ROUNDS):
                pieces[number] = mapped_onto(pieces[number], surface)
    return nearest(np.concatenate(pieces), parts, surfaces)


def nearest(points: np.ndarray, parts: Parts, surfaces: Sequence[Surface]) -> np.ndarray:
    pieces = parts.split(points)
    return np.concatenate([surface.nearest(piece) for surface, piece in zip(surfaces, pieces, strict=True)])


def moved_onto(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Points (P, 3) turned and moved onto a target."""
    centre = target.mean(axis=0)
    centred = points - points.mean(axis=0)
    return centred @ rotation_onto(centred, target - centre) + centre


def mapped_onto(points: np.ndarray, surface: Surface) -> np.ndarray:
    """Points (V, 3) by the affine map that brings them onto their nearest, and the surface's points onto theirs.

    Both directions, or the map would shrink to what is near.
    """
    _, back = cKDTree(points).query(surface.points)
    share = len(points) / len(back)  # so that both directions weigh the same
    sources = np.concatenate([points, points[back]])
    targets = np.concatenate([surface.nearest(points), surface.points])
    weights = np.sqrt(np.repeat([1.0, share], [len(points), len(back)]))[:, None]
    rows = np.column_stack([sources, np.ones(len(sources))])
    matrix, *_ = np.linalg.lstsq(rows * weights, targets * weights, rcond=None)
    return np.column_stack([points, np.ones(len(points))]) @ matrix


# ---- the comparison ----


def print_comparison(rows: dict[str, Cohort], surfaces: list[list[Surface]]):
    shown = " / ".join(map(str, SHOWN_MODES))
    print(f"{len(surfaces)} cases; with {shown} modes:")
    print(
        f"{'':<38}{'vertex SD mm':>13}{'compactness':>21}{'generalisation mm':>21}{'surface mm, own / ':>28}"
        f"{'specificity mm':>21}{'crossing % / random':>21}"
    )
    for name, cohort in rows.items():
        model = build_model(cohort)
        most = max(SHOWN_MODES)
        chosen = np.array(SHOWN_MODES) - 1
        total = np.sqrt(model.modes.variances.sum() / len(model.modes.mean))
        general = generalisation(model.aligned, most).mean(axis=0)[chosen]
        visible = surface_errors(cohort, surfaces).mean(axis=0)
        special = specificity(model.modes, model.aligned, most).mean(axis=0)[chosen]
        crossing = (
            f"{crossing_percent(model.parts, cohort.points):.2f} / {crossing_percent(model.parts, drawn(model)):.2f}"
        )
        print(
            f"{name:<38}{total:>13.2f}{numbers(compactness(model.modes)[chosen], 3):>21}{numbers(general):>21}"
            f"{numbers(visible):>28}{numbers(special):>21}{crossing:>21}",
            flush=True,
        )


def numbers(values: Sequence[float], digits: int = 2) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def surface_errors(cohort: Cohort, surfaces: list[list[Surface]]) -> np.ndarray:
    """How far each case's label surfaces are from its own meshes, and from what SHOWN_MODES of the others make of them:
    (N, 1 + modes shown) in mm."""
    errors = []
    for number, case in enumerate(tqdm(surfaces, "surface", leave=False)):
        others = np.delete(cohort.points, number, axis=0)
        shape = cohort.points[number]
        left = residuals(others, shape, max(SHOWN_MODES))
        # What is left stands in the frame of the others' mean, a rotation away from the case's own.
        mean = principal_modes(align(others)).mean
        back = rotation_onto(shape - shape.mean(axis=0), mean).T
        approximations = [shape - left[count] @ back for count in SHOWN_MODES]
        shapes = [shape, *approximations]
        errors.append([mean_surface_distance(cohort.parts, points, case) for points in shapes])
    return np.array(errors)


def mean_surface_distance(parts: Parts, points: np.ndarray, surfaces: Sequence[Surface]) -> float:
    """Mean distance of meshes and surfaces, both directions, mean over the structures, in mm."""
    distances = []
    for vertices, surface in zip(parts.split(points), surfaces, strict=True):
        dense = refined(vertices, parts.faces)
        there = np.linalg.norm(dense - surface.nearest(dense), axis=1).mean()
        back, _ = cKDTree(dense).query(surface.points)
        distances.append((there + back.mean()) / 2)
    return float(np.mean(distances))


def refined(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Points on a mesh, 15 a face, at equal distances in it."""
    steps = [(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]
    weights = np.array(steps) / 4
    return np.einsum("wc,fci->fwi", weights, vertices[faces]).reshape(-1, 3)


def drawn(model: ShapeModel) -> np.ndarray:
    """Random shapes of a model with all of its modes."""
    rng = np.random.default_rng(0)
    return np.stack([model.modes.shape(rng.normal(size=len(model.modes.variances))) for _ in range(RANDOM_SHAPES)])


def crossing_percent(parts: Parts, shapes: np.ndarray) -> float:
    """The share of faces, in per cent, that another face of their mesh crosses."""
    crossing = 0
    total = 0
    for points in shapes:
        for vertices in parts.split(points):
            crossing += int(self_intersecting_faces(vertices, parts.faces).sum())
            total += len(parts.faces)
    return 100 * crossing / total


# ---- what the phantoms were drawn from ----


def number_of(case: str) -> int:
    """ct_train_1901 -> 901."""
    return int(case.rpartition("_")[2]) - 1000


def drawn_numbers(patients: Sequence[Patient]) -> dict[str, np.ndarray]:
    """The heart's numbers by name, each (N,); the components of a vector one by one."""
    found = {}
    for each in fields(Patient):
        if each.name in HEART:
            values = np.array([getattr(patient, each.name) for patient in patients])
            columns = values[:, None] if values.ndim == 1 else values
            for place, column in enumerate(columns.T):
                found[each.name if values.ndim == 1 else f"{each.name}[{place}]"] = column
    return found


def print_turns(cohort: Cohort, patients: Sequence[Patient]):
    """How the alignment's turns, about the body's axes, follow those that the phantoms were drawn with."""
    mean = build_model(cohort).modes.mean
    centred = cohort.points - cohort.points.mean(axis=1, keepdims=True)
    turns = [Rotation.from_matrix(rotation_onto(shape, mean)).as_rotvec(degrees=True) for shape in centred]
    found = np.array(turns)
    drawn_deg = np.array([patient.rotation_deg for patient in patients])
    of_each = np.diag(correlate(found, drawn_deg))
    deviations = f"SD {numbers(found.std(axis=0))} of {numbers(drawn_deg.std(axis=0))} degrees"
    print(f"turns found: {deviations}, r {numbers(of_each)}")


def print_numbers(model: ShapeModel, patients: Sequence[Patient]):
    """Of each number its share of all shape variance, and the mode with which it correlates most."""
    drawn_from = drawn_numbers(patients)
    table = np.stack(list(drawn_from.values()), axis=1)  # (N, K)
    correlations = correlate(model.scores, table)  # (M, K)
    shares = model.modes.variances / model.modes.variances.sum()
    explained = shares @ correlations**2  # (K,) of all variance, by one number
    by_chance = 1 / (len(patients) - 1)
    print(
        f"\nOf all shape variance a number explains (by chance {100 * by_chance:.0f} %); its best of the first 5 modes:"
    )
    for number in np.argsort(-explained):
        best = np.abs(correlations[:5, number]).argmax()
        name = list(drawn_from)[number]
        print(
            f"{name:<22}{100 * explained[number]:>6.1f} %   r = {correlations[best, number]:+.2f} with mode {best + 1}"
        )
    print("\nOf each mode the number with the largest correlation, and how often a permutation has a larger one:")
    rng = np.random.default_rng(0)
    for mode in range(5):
        best = np.abs(correlations[mode]).argmax()
        value = correlations[mode, best]
        by_luck = [
            np.abs(correlate(rng.permutation(model.scores[:, [mode]]), table)).max() for _ in range(PERMUTATIONS)
        ]
        share = np.mean(np.array(by_luck) >= abs(value))
        print(f"mode {mode + 1}: {list(drawn_from)[best]}, r = {value:+.2f}, p = {share:.3f}")


def correlate(scores: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each column of (N, M) with each of (N, K): (M, K)."""
    one = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    other = (table - table.mean(axis=0)) / table.std(axis=0)
    return one.T @ other / len(scores)


def print_families(arguments):
    """Phantoms that differ in one number alone, over its range: what mode 1 holds, and how it correlates with it."""
    predictor = Predictor.from_config(arguments.config)
    print(f"\nFamilies of {arguments.members} phantoms that differ in one number alone, predicted by the network:")
    for name in arguments.families:
        low, high = next(each.metadata["range"] for each in fields(Patient) if each.name == name)
        values = np.linspace(low, high, arguments.members)
        meshes = [predictor(phantom(arguments.seed, name, value)) for value in tqdm(values, name, leave=False)]
        shapes = np.stack([each.vertices.reshape(-1, 3) for each in meshes])
        parts = Parts(meshes[0].names, meshes[0].faces)
        model = build_model(Cohort(tuple(map(str, values)), parts, shapes))
        share = model.modes.variances[0] / model.modes.variances.sum()
        r = np.corrcoef(model.scores[:, 0], values)[0, 1]
        print(
            f"{name:<16}{low:g} to {high:g}: mode 1 has {100 * share:.1f} % of the variance, r = {r:+.4f}", flush=True
        )


def phantom(seed: int, name: str, value: float) -> Volume:
    """The image of phantom 1 of a seed, but for one number; a vector has the same in each component."""
    rng = np.random.default_rng([seed, 1])
    patient = Patient.draw(rng)
    shape, affine, origin = draw_grid(rng, FAMILY_SPACING_MM)
    changed = replace(patient, **{name: np.full_like(getattr(patient, name), value)})
    image = render(changed, shape, affine, origin, rng).image
    return Volume(image, Grid(shape, affine))


if __name__ == "__main__":
    run_script(main)
