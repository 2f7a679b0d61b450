"""A statistical shape model of the meshes that implicitmeshnet_eval.py wrote: mean, modes, and how good they are.

    python create_shape_model.py --input_dir=test_out --out=hearts [--slide] [--modes=3] [--space=RAS]

Every mesh of a structure has the same vertices in the same order, so those of all cases correspond. The cases are moved
and turned onto their mean, all structures together and without scaling, and their principal modes are taken. --slide
first turns each mesh's template sphere, so that its vertices slide over the surface to where the mean's are.

Writes in the folder --out: shape_model.npz, all of the model in one file; the mean of each structure as
mean_<structure>_mesh.ply, and each mode's two sides as mode1_minus_2sd_<structure>_mesh.ply and mode1_plus_2sd_...;
modes.png, a picture of them; modes.csv, what each mode holds and how good the model is with the modes so far;
scores.csv, where each case lies along each mode, in standard deviations; and report.html, a page with a slider for each
mode, which needs no network.

Exit status 2 where the meshes do not correspond or are not sound.
"""

import argparse

from implicitmeshnet.script import exit_at_interrupt

MESH_FORMATS = ("ply", "stl", "obj", "vtp")


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments; their values are not checked yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--input_dir", required=True, metavar="FOLDER", help="that implicitmeshnet_eval.py wrote, as .ply or .obj"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="for the model, made where missing")
    parser.add_argument(
        "--slide",
        action="store_true",
        help="let vertices slide over their surfaces to where they correspond best; seconds a case",
    )
    parser.add_argument(
        "--modes",
        type=int,
        default=3,
        help="that are written as meshes and drawn, of those there are; default %(default)s",
    )
    parser.add_argument(
        "--mesh_format", default="ply", choices=MESH_FORMATS, help="of the mesh files, in mm; default %(default)s"
    )
    parser.add_argument(
        "--space",
        default="LPS",
        choices=("LPS", "RAS"),
        help="of the mesh files; 3D Slicer wants LPS; default %(default)s",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.script import InputError, make_folder, run_script, write_table
from implicitmeshnet.shape_model.cohort import Parts, read_cohort
from implicitmeshnet.shape_model.measures import Measures, measure_model
from implicitmeshnet.shape_model.model import ShapeModel, build_model, write_model
from implicitmeshnet.shape_model.page import write_model_page
from implicitmeshnet.shape_model.picture import draw_modes, shapes_shown
from implicitmeshnet.shape_model.sliding import Sphere, slide
from implicitmeshnet.surfaces.files import write_mesh

MOST_DRAWN = 10
FINEST_TEMPLATE = 6  # subdivisions, 40 962 vertices


def main() -> None:
    arguments = parse_arguments()
    source = Path(arguments.input_dir)
    out = Path(arguments.out)
    check_arguments(arguments)
    cohort = read_cohort(source)
    if arguments.slide:
        cohort = slide(cohort, template_of(cohort.parts))
    model = build_model(cohort)
    count = min(arguments.modes, len(model.modes.variances))
    measures = measure_model(model.modes, model.aligned)

    make_folder(out, "--out")
    write_model(out / "shape_model.npz", model)
    written = write_meshes(out, model, count, arguments.mesh_format, arguments.space)
    remove_stale_meshes(out, written)
    draw_modes(out / "modes.png", model, count)
    rows = rows_of_modes(model, measures)
    write_table(out / "modes.csv", rows)
    write_table(out / "scores.csv", rows_of_cases(model))
    write_model_page(out / "report.html", model, rows)
    print_summary(model, rows, out)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse with InputError what cannot be done."""
    if not 1 <= arguments.modes <= MOST_DRAWN:
        raise InputError(f"--modes: wanted 1 to {MOST_DRAWN}, found {arguments.modes}")
    source = Path(arguments.input_dir)
    if not source.is_dir():
        raise InputError(f"--input_dir: wanted a folder that implicitmeshnet_eval.py wrote, found {source}")
    if source.resolve() == Path(arguments.out).resolve():
        raise InputError(f"--out: wanted another folder than --input_dir, found {source} for both")


def template_of(parts: Parts) -> Sphere:
    """The template sphere whose faces the meshes have. Raises InputError where they have others."""
    for subdivisions in range(FINEST_TEMPLATE + 1):
        vertices, faces = icosphere(subdivisions)
        if np.array_equal(faces.numpy(), parts.faces):
            return Sphere(vertices.numpy().astype(np.float64), faces.numpy())
    found = f"{len(parts.faces)} other faces"
    raise InputError(f"--slide: wanted meshes of a template sphere, not subdivided, found {found}")


def write_meshes(out: Path, model: ShapeModel, count: int, mesh_format: str, space: str) -> set[str]:
    """Write mean and both sides of the first `count` modes, a file for each structure; the files' names."""
    written = write_shape(out, "mean", model, model.modes.mean, mesh_format, space)
    for mode, (minus, _, plus) in enumerate(shapes_shown(model, count), 1):
        written |= write_shape(out, f"mode{mode}_minus_2sd", model, minus, mesh_format, space)
        written |= write_shape(out, f"mode{mode}_plus_2sd", model, plus, mesh_format, space)
    return written


def write_shape(out: Path, title: str, model: ShapeModel, points: np.ndarray, mesh_format: str, space: str) -> set[str]:
    """Write the structures of one shape, points (P, 3) in mm RAS; the files' names."""
    parts = model.parts
    names = set()
    for structure, vertices in zip(parts.names, parts.split(points), strict=True):
        name = f"{title}_{structure}_mesh.{mesh_format}"
        write_mesh(out / name, vertices, parts.faces, space)
        names.add(name)
    return names


def remove_stale_meshes(out: Path, written: set[str]) -> None:
    """Remove meshes of an earlier run: of more modes, or of other structures or formats."""
    for suffix in MESH_FORMATS:
        for title in ("mean", "mode[0-9]*_minus_2sd", "mode[0-9]*_plus_2sd"):
            for path in out.glob(f"{title}_*_mesh.{suffix}"):
                if path.name not in written:
                    path.unlink()


def rows_of_modes(model: ShapeModel, measures: Measures) -> list[dict]:
    """Of each mode what it holds, and how good the model is with the modes up to it as far as that was measured."""
    variances = model.modes.variances
    shares = variances / variances.sum()
    rows = []
    for mode, variance in enumerate(variances):
        row = {
            "mode": mode + 1,
            "vertex_sd_mm": float(np.sqrt(variance / len(model.modes.mean))),
            "variance_share": float(shares[mode]),
            "compactness": float(shares[: mode + 1].sum()),
        }
        rows.append(row | measured(measures, mode))
    return rows


def measured(measures: Measures, mode: int) -> dict:
    """Mean and standard deviation of generalisation and specificity with the modes up to this one."""
    row: dict[str, float | None] = {}
    for name, values in (("generalisation", measures.generalisation_mm), ("specificity", measures.specificity_mm)):
        known = mode < values.shape[1]
        row[f"{name}_mm"] = float(values[:, mode].mean()) if known else None
        row[f"{name}_sd_mm"] = float(values[:, mode].std()) if known else None
    return row


def rows_of_cases(model: ShapeModel) -> list[dict]:
    """Where each case lies along each mode, in standard deviations."""
    rows = []
    for case, scores in zip(model.cases, model.scores.tolist(), strict=True):
        rows.append({"case": case} | {f"mode{mode}": score for mode, score in enumerate(scores, 1)})
    return rows


def print_summary(model: ShapeModel, rows: Sequence[dict], out: Path) -> None:
    """The first modes, and what was written."""
    print(f"{'mode':>4}{'vertex SD mm':>14}{'compactness':>13}{'generalisation mm':>20}{'specificity mm':>17}")
    for row in rows[:MOST_DRAWN]:
        cells = [cell(row["generalisation_mm"]), cell(row["specificity_mm"])]
        print(f"{row['mode']:>4}{row['vertex_sd_mm']:>14.2f}{row['compactness']:>13.3f}{cells[0]:>20}{cells[1]:>17}")
    structures = len(model.parts.names)
    print(f"{len(model.cases)} cases of {structures} structures: a model of {len(rows)} modes written to {out}")


def cell(value: float | None) -> str:
    """A number of a table, "-" where it was not measured."""
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    run_script(main)
