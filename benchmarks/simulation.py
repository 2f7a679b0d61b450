"""Whether an evaluation's meshes are fit for simulation: crossing faces before and after the repair, its cost, judges.

    python benchmarks/simulation.py --config=configs_implicitmeshnet/whole_heart.json --test_dir=data/phantom/test
    python benchmarks/simulation.py --random=200
    python benchmarks/simulation.py --conforming --config=... --test_dir=...  # as in the first line

Of each case, the percentage of faces that cross another of the same mesh and of another mesh, before and after; by how
much the repair moved vertices, mean, 95th percentile and most in mm; its seconds of CPU, those of one thread with
OMP_NUM_THREADS=1; Dice, ASSD and HD95 of the label map, means over the structures, before and after, against the label,
or where none of the structures is labelled (marked *) against the network's own voxel segmentation; and what the judges
of benchmarks/judges.py say, where they are installed: whether all passed, TetGen's tetrahedra, their smallest dihedral
angle in degrees, and how many percent have one below 5 degrees. --random takes no network: sets of ellipsoids that
random displacement makes cross.

--conforming looks at the surface with shared walls instead: its grid's spacing, faces, seconds of CPU, the smallest
angle of its triangles and the 5th percentile, vertices that were moved for faces not to cross, regions around which it
is closed and a manifold, outside among them, structures around which it is of genus 0, pairs of faces that cross, by
how many percent the regions' volumes differ from those of the meshes, the most and the mean size; and TetGen's
tetrahedra with shared walls: how many, how many inverted, the smallest dihedral angle, how many percent have one below
5 degrees, and by how many percent a region's volume in them differs at most from that within its surface.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from judges import Verdict, filled_regions, judged
from timing import at_least
from tqdm import tqdm

from implicitmeshnet.data.dataset import read_case
from implicitmeshnet.data.inputs import input_cases
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.predict import Predictor, Surfaces
from implicitmeshnet.script import InputError, run_script
from implicitmeshnet.surfaces.conforming import Conforming, conforming_surface
from implicitmeshnet.surfaces.crossing import crossing_pairs
from implicitmeshnet.surfaces.labelmap import meshes_to_labelmap
from implicitmeshnet.surfaces.metrics import dice, surface_distances
from implicitmeshnet.surfaces.quality import smallest_angles
from implicitmeshnet.surfaces.separation import GAP_MM, separate
from implicitmeshnet.surfaces.soundness import crossing_faces_of, euler_characteristic, is_closed, mesh_volume_ml
from implicitmeshnet.surfaces.walls import WALL_MM

JUDGES = ("manifold3d", "tetgen", "vtkmodules")
CONFORMING_JUDGES = ("tetgen",)
MOST_NOISE_MM = 6.0
SAME_PERCENT = 1e-3
"""By which a region's volume in TetGen's tetrahedra may differ from that within its surface."""
AGREEMENT = ("dice", "assd_mm", "hd95_mm")


@dataclass(frozen=True)
class Row:
    """What is known of one set of meshes."""

    name: str
    own: tuple[float, float]  # percent of faces, before and after
    others: tuple[float, float]
    move_mm: tuple[float, float, float]  # mean, 95th percentile, most
    seconds: float  # of CPU
    before: dict[str, float]
    after: dict[str, float]
    verdict: Verdict | None
    meshes: int


class TimedPredictor(Predictor):
    """A predictor that knows how long its last repair took."""

    repair_seconds = 0.0

    def _repaired(self, *meshes) -> np.ndarray:
        start = time.process_time()
        repaired = super()._repaired(*meshes)
        self.repair_seconds = time.process_time() - start
        return repaired


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config")
    parser.add_argument("--test_dir", help="images, labelled or not")
    parser.add_argument("--cases", type=at_least(1), help="the first ones; by default all")
    parser.add_argument("--random", type=at_least(1), metavar="N", help="instead, so many sets of meshes that cross")
    parser.add_argument("--conforming", action="store_true", help="instead, the surface with shared walls")
    parser.add_argument("--gap_mm", type=float, default=GAP_MM)
    arguments = parser.parse_args()
    if not arguments.random and not (arguments.config and arguments.test_dir):
        raise InputError("--config: wanted it and --test_dir, or --random, found neither")
    wanted = CONFORMING_JUDGES if arguments.conforming else JUDGES
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        print(f"without judges, as there is no {', '.join(missing)}")
    if arguments.conforming:
        print_conforming(arguments, not missing)
        return
    rows = random_rows(arguments, not missing) if arguments.random else case_rows(arguments, not missing)
    done = []
    for row in rows:
        if not arguments.random:
            tqdm.write(line(row))
        done.append(row)
    print_means(done)


def case_rows(arguments: argparse.Namespace, with_judges: bool) -> Iterator[Row]:
    predictor = TimedPredictor.from_config(arguments.config, gap_mm=arguments.gap_mm)
    cases = input_cases(arguments.test_dir, "Ts", predictor.data.channels)[: arguments.cases]
    tqdm.write(HEADING)
    for case in tqdm(cases, leave=False):
        image, labels = read_case(case)
        surfaces = predictor(image)
        name = case.name
        reference = surfaces.segmentation
        if labels is not None and surfaces.structures.any_in(labels.data):
            reference = labels.data
        else:
            name += " *"
        raw = [(mesh, surfaces.faces) for mesh in surfaces.raw_vertices]
        unrepaired = meshes_to_labelmap(raw, surfaces.structures, surfaces.grid)
        yield row_of(
            name,
            surfaces.raw_vertices,
            surfaces.vertices,
            surfaces.faces,
            surfaces.structures.encloses,
            predictor.repair_seconds,
            with_judges,
            agreement(surfaces, unrepaired, reference),
            agreement(surfaces, surfaces.labelmap, reference),
        )


def print_conforming(arguments: argparse.Namespace, with_judges: bool) -> None:
    """The table of surfaces with shared walls."""
    predictor = Predictor.from_config(arguments.config, gap_mm=arguments.gap_mm)
    cases = input_cases(arguments.test_dir, "Ts", predictor.data.channels)[: arguments.cases]
    tqdm.write(CONFORMING_HEADING)
    filled = []
    for case in tqdm(cases, leave=False):
        surfaces = predictor(read_case(case)[0])
        start = time.process_time()
        surface = conforming_surface(surfaces.meshes, surfaces.structures, (arguments.gap_mm + WALL_MM) / 2)
        seconds = time.process_time() - start
        text = conforming_line(surface, surfaces, seconds)
        if with_judges:
            (tetrahedra, inverted, smallest_deg, sharp_percent), volumes = filled_regions(surface)
            found = changes_percent(volumes[1:], volumes_mm3(surface))
            text += (
                f"{tetrahedra:>12}{inverted:>10}{smallest_deg:>8.2f}{sharp_percent:>9.2f}{np.abs(found).max():>10.1e}"
            )
            filled.append(tetrahedra > 0 and inverted == 0 and np.abs(found).max() < SAME_PERCENT)
        tqdm.write(f"{case.name:<20}{text}")
    print(f"{sum(filled)} of {len(filled)} filled by TetGen, every region with its volume")


def conforming_line(surface: Conforming, surfaces: Surfaces, seconds: float) -> str:
    """What is known of one surface without a judge."""
    angles = smallest_angles(surface.vertices, surface.faces)
    closed = sum(is_closed(surface.around(region)[1]) for region in range(len(surface.field.depths)))
    whole = sum(euler_characteristic(surface.around(region)[1]) == 2 for region in range(1, len(surface.field.depths)))
    crossing = len(crossing_pairs(surface.vertices, surface.faces))
    held = np.array([1000 * mesh_volume_ml(*mesh) for mesh in surfaces.meshes])
    own = [mesh - held[list(inner)].sum() for mesh, inner in zip(held, surfaces.structures.encloses, strict=True)]
    change = changes_percent(volumes_mm3(surface), np.array(own))
    return (
        f"{surface.field.spacing_mm:>6.2f}{len(surface.faces):>8}{seconds:>6.2f}{angles.min():>7.1f}"
        f"{np.percentile(angles, 5):>6.1f}{surface.retreated:>7}{closed:>5} of {len(surface.field.depths)}"
        f"{whole:>9}{crossing:>9}{change[np.abs(change).argmax()]:>+9.2f}{np.abs(change).mean():>7.2f}"
    )


def volumes_mm3(surface: Conforming) -> np.ndarray:
    """Of the structures' regions, (S,)."""
    regions = range(1, len(surface.field.depths))
    return np.array([1000 * mesh_volume_ml(*surface.around(region)) for region in regions])


def changes_percent(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return 100 * (found / wanted - 1)


def agreement(surfaces: Surfaces, labelmap: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Means over the structures of how well a label map fits a reference."""
    rows = []
    for structure, value in enumerate(surfaces.structures.written.values()):
        mask = labelmap == value
        truth = surfaces.structures.mask(reference, structure)
        if truth.any():
            rows.append({"dice": dice(mask, truth), **surface_distances(mask, truth, surfaces.grid)})
    return {key: statistics.mean(row[key] for row in rows) for key in AGREEMENT}


def random_rows(arguments: argparse.Namespace, with_judges: bool) -> Iterator[Row]:
    sphere, faces = (tensor.double().numpy() for tensor in icosphere(2))
    faces = faces.astype(int)
    for seed in tqdm(range(arguments.random), leave=False):
        meshes, encloses = random_set(np.random.default_rng(seed), sphere)
        start = time.process_time()
        repaired = separate(meshes, faces, sphere, encloses, arguments.gap_mm)
        seconds = time.process_time() - start
        yield row_of(f"set {seed}", meshes, repaired, faces, encloses, seconds, with_judges, {}, {})


def random_set(rng: np.random.Generator, sphere: np.ndarray) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Two to five ellipsoids, 5 to 25 mm in radius, in each other's way and displaced by up to MOST_NOISE_MM at random.

    A fifth of them are inside out, in every second set the first is to enclose the second.
    """
    meshes = []
    for _ in range(rng.integers(2, 6)):
        mesh = sphere * rng.uniform(5, 25, 3) + rng.uniform(-15, 15, 3)
        mesh = mesh + rng.uniform(0, MOST_NOISE_MM) * rng.normal(0, 1, mesh.shape) * rng.random((len(mesh), 1))
        meshes.append(mesh * [-1, 1, 1] if rng.random() < 0.2 else mesh)
    encloses: list[tuple[int, ...]] = [()] * len(meshes)
    encloses[0] = (1,) if rng.random() < 0.5 else ()
    return np.stack(meshes), encloses


def row_of(name, raw, repaired, faces, encloses, seconds, with_judges, before, after) -> Row:
    shares = [100 * crossed.mean() for mesh in (raw, repaired) for crossed in crossing_faces_of(mesh, faces)]
    move_mm = np.linalg.norm(repaired - raw, axis=2)
    return Row(
        name,
        (shares[0], shares[2]),
        (shares[1], shares[3]),
        (move_mm.mean(), np.percentile(move_mm, 95), move_mm.max()),
        seconds,
        before,
        after,
        judged(repaired, faces, encloses) if with_judges else None,
        len(raw),
    )


CONFORMING_HEADING = (
    f"{'case':<20}{'mm':>6}{'faces':>8}{'s':>6}{'least':>7}{'p5':>6}{'moved':>7}{'closed':>10}"
    f"{'genus 0':>9}{'crossing':>9}{'most %':>9}{'mean %':>7}"
    f"{'tetrahedra':>12}{'inverted':>10}{'angle':>8}{'sharp %':>9}{'volume %':>10}"
)
HEADING = (
    f"{'case':<20}{'own %':>15}{'others %':>15}{'moved, p95, most mm':>22}{'s':>7}{'Dice':>17}{'ASSD_mm':>15}"
    f"{'HD95_mm':>15}{'judges':>10}{'tetrahedra':>12}{'angle':>8}{'sharp %':>9}"
)


def line(row: Row) -> str:
    """One case of the table."""
    text = f"{row.name:<20}{arrow(*row.own, 2):>15}{arrow(*row.others, 2):>15}"
    text += f"{' '.join(f'{each:.3f}' for each in row.move_mm):>22}{row.seconds:>7.2f}"
    for key, digits, width in zip(AGREEMENT, (4, 3, 3), (17, 15, 15), strict=True):
        text += f"{arrow(row.before[key], row.after[key], digits) if row.before else '-':>{width}}"
    if row.verdict is None:
        return text
    passed = "passed" if row.verdict.passed(row.meshes) else "failed"
    verdict = row.verdict
    return (
        f"{text}{passed:>10}{verdict.tetrahedra:>12}{verdict.smallest_dihedral_deg:>8.3f}{verdict.sharp_percent:>9.2f}"
    )


def arrow(before: float, after: float, digits: int) -> str:
    return f"{before:.{digits}f} > {after:.{digits}f}"


def print_means(rows: list[Row]) -> None:
    """Means over all sets, how many still cross, and how many the judges passed."""
    print(HEADING)
    agreed = [row for row in rows if row.before]
    means = []
    for of in (lambda row: row.before, lambda row: row.after):
        means.append({key: statistics.mean(of(row)[key] for row in agreed) for key in AGREEMENT} if agreed else {})
    own, others, move_mm = (
        tuple(np.mean([getattr(row, key) for row in rows], 0)) for key in ("own", "others", "move_mm")
    )
    seconds = statistics.median(row.seconds for row in rows)
    print(line(Row("mean, median s", own, others, move_mm, seconds, *means, None, 0)))
    clean = sum(row.own[1] == row.others[1] == 0 for row in rows)
    print(f"{clean} of {len(rows)} without a crossing, most seconds {max(row.seconds for row in rows):.2f}")
    verdicts = [row.verdict for row in rows if row.verdict is not None]
    if not verdicts:
        return
    passed = sum(verdict.passed(row.meshes) for verdict, row in zip(verdicts, rows, strict=True))
    print(f"{passed} of {len(verdicts)} passed by all judges")
    print(f"{sum(verdict.tetrahedra > 0 for verdict in verdicts)} filled by TetGen", end=", ")
    print(f"{sum(verdict.inverted for verdict in verdicts)} inverted tetrahedra", end=", ")
    print(f"smallest dihedral angle {min(verdict.smallest_dihedral_deg for verdict in verdicts):.4f} degrees")
    print(f"most shared {max(verdict.shared_mm3 for verdict in verdicts):g} mm^3", end=", ")
    print(f"most outside an encloser {max(verdict.outside_mm3 for verdict in verdicts):g} mm^3", end=", ")
    print(f"{sum(verdict.contacts for verdict in verdicts)} contacts, ", end="")
    print(f"{sum(row.meshes - verdict.manifolds for verdict, row in zip(verdicts, rows, strict=True))} no manifolds")


if __name__ == "__main__":
    run_script(main)
