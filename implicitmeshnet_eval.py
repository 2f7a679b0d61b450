"""Images -> closed surface meshes in world millimetres, label maps on the images' own grids, and a table.

    python implicitmeshnet_eval.py --implicitmeshnet_config=configs_implicitmeshnet/whole_heart.json \\
        --test_dir_in=data/phantom/test --test_dir_out=test_out [--device=auto|cpu|cuda|mps]

Several networks, --implicitmeshnet_config A.json B.json, are averaged: vertices, and probabilities of voxels.

Writes per case <case>_mesh.ply (<case>_<structure>_mesh.ply for several structures), <case>_mesh_labelmap.nii.gz,
<case>_unet_segmentation.nii.gz and <case>_preview.png; and metrics.csv, a row per case and structure: volumes,
overlaps, agreement and warnings, and the comparison with the label where one lies beside the image.

Exit status 2 where the input of a case, or of all, is at fault, 1 with a traceback where this program is; what other
cases gave is written either way.
"""

import argparse

from implicitmeshnet.script import exit_at_interrupt

MESH_FORMATS = ("ply", "stl", "obj", "vtp")


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments; whether files and cases are there is not checked yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--implicitmeshnet_config",
        required=True,
        nargs="+",
        metavar="CONFIG",
        help="JSON config of a trained network; several, separated by blanks, are averaged",
    )
    parser.add_argument("--test_dir_in", required=True, help="folder of images, in one of the layouts of the README")
    parser.add_argument("--test_dir_out", required=True, help="folder for the results, made where missing")
    parser.add_argument(
        "--device", default="auto", help="auto (the fastest there is), cpu, cuda or mps; default %(default)s"
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
    parser.add_argument(
        "--split",
        choices=("Tr", "Ts"),
        help="of a data set's root: imagesTr or imagesTs, by default the latter where there is one",
    )
    parser.add_argument(
        "--validation_split",
        action="store_true",
        help="only the cases of --test_dir_in that a training with the config, or with each of several, holds out",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from implicitmeshnet.config import load_config
from implicitmeshnet.data.dataset import Case, configured_split, find_cases, read_case, splits_of
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.data.volume import Volume
from implicitmeshnet.predict import Predictor, Surfaces, preview
from implicitmeshnet.progress import progress
from implicitmeshnet.script import InputError, check_path, make_folder, run_script, write_table
from implicitmeshnet.surfaces.files import write_mesh
from implicitmeshnet.surfaces.labelmap import overlaps_ml
from implicitmeshnet.surfaces.metrics import dice, mean_and_deviation, surface_distances, volume_ml
from implicitmeshnet.surfaces.soundness import mesh_volume_ml, self_intersecting_faces

LABELMAP, SEGMENTATION = "_mesh_labelmap.nii.gz", "_unet_segmentation.nii.gz"


def main():
    arguments = parse_arguments()
    predictor = Predictor.from_config(*arguments.implicitmeshnet_config, device=arguments.device)
    cases = chosen_cases(arguments, predictor.data.channels)
    out = Path(arguments.test_dir_out)
    check_output(out, Path(arguments.test_dir_in), cases, predictor.structures.names)

    rows: list[dict] = []
    failures: list[str] = []
    faults: list[str] = []
    for case in progress(cases, "cases"):
        try:
            rows += evaluate_case(predictor, case, out, arguments.mesh_format, arguments.space)
        except InputError as error:
            failures.append(str(error))
        except MemoryError:
            failures.append(f"{case.image}: wanted memory enough for this volume, found too little")
        except Exception:  # of our own: the other cases go on
            faults.append(f"{case.image}: {traceback.format_exc()}")
    if rows:
        write_table(out / "metrics.csv", rows)
        print_summary(rows, predictor.structures.names)
    else:
        (out / "metrics.csv").unlink(missing_ok=True)
    print(f"{len(cases) - len(failures) - len(faults)} of {len(cases)} cases written to {out}")
    for message in failures[1:] + faults:
        print(message, file=sys.stderr)
    if faults:
        sys.exit(1)
    if failures:
        others = f"; {len(failures) - 1} others are named above" if failures[1:] else ""
        raise InputError(f"{len(failures)} of {len(cases)} cases failed: {failures[0]}{others}")


def chosen_cases(arguments: argparse.Namespace, channels: int) -> list[Case]:
    """The cases of --test_dir_in that the arguments name, of so many channels; says which split was taken where a data
    set has both."""
    folder = arguments.test_dir_in
    splits = splits_of(folder)
    if arguments.split is not None and arguments.split not in splits:
        raise InputError(f"--split: wanted a folder images{arguments.split} in --test_dir_in, found none in {folder}")
    if arguments.validation_split:
        if arguments.split is not None:
            raise InputError(f"--split: wanted none beside --validation_split, found {arguments.split}")
        return held_out_cases(find_cases(folder, labelled=True, channels=channels), arguments.implicitmeshnet_config)
    split = arguments.split or next(iter(splits), "Tr")
    if len(splits) > 1 and arguments.split is None:
        print(f"{folder}: took imagesTs; --split=Tr takes imagesTr")
    return find_cases(folder, labelled=False, split=split, channels=channels)


def held_out_cases(cases: list[Case], configs: Sequence[str]) -> list[Case]:
    """Of the cases those that the trainings of all JSON configs hold out: no averaged network has seen them."""
    chosen = cases
    for path in configs:
        _, held_out = configured_split(cases, load_config(path))
        chosen = [case for case in chosen if case in held_out]
    if not chosen:
        raise InputError("--validation_split: wanted cases that every config holds out, found none")
    return chosen


def check_output(out: Path, source: Path, cases: list[Case], structures: Sequence[str]) -> None:
    """Refuse, before anything is computed, a folder that cannot hold the results or names that would collide."""
    check_path(str(out), "--test_dir_out")
    if out.resolve() == source.resolve():
        raise InputError(f"--test_dir_out: wanted another folder than --test_dir_in, found {out} for both")
    stems: dict[str, Path] = {}
    for case in cases:
        for stem in mesh_stems(case.name, structures):
            if stem in stems:
                raise InputError(f"{case.image}: wanted mesh names of its own, found {stem}_mesh for {stems[stem]} too")
            stems[stem] = case.image
    make_folder(out, "--test_dir_out")


def mesh_stems(case: str, structures: Sequence[str]) -> list[str]:
    """What the names of a case's mesh files begin with: the case, and where there are several the structure."""
    return [case] if len(structures) == 1 else [f"{case}_{name}" for name in structures]


def evaluate_case(predictor: Predictor, case: Case, out: Path, mesh_format: str, space: str) -> list[dict]:
    """Write one case's files and remove meshes of it that an earlier run left; a row per structure."""
    start = time.perf_counter()
    image, labels = read_case(case)
    surfaces = predictor(image)
    seconds = time.perf_counter() - start
    structures = surfaces.structures
    warnings = list(surfaces.warnings)
    if labels is not None:
        warnings += labels.warnings
        if not structures.any_in(labels.data):
            warnings.append(f"{case.label}: has none of the label values of data.structures, so there are no metrics")
            labels = None
    for warning in warnings:
        tqdm.write(f"warning: {warning}", file=sys.stderr)

    stems = mesh_stems(case.name, structures.names)
    # The longest name first: where it is too long for the file system, nothing of the case is left.
    for ending, data in ((SEGMENTATION, surfaces.segmentation), (LABELMAP, surfaces.labelmap)):
        write_volume(out / f"{case.name}{ending}", data, image.grid.affine, image.grid.header)
    for stem, (vertices, faces) in zip(stems, surfaces.meshes, strict=True):
        write_mesh(out / f"{stem}_mesh.{mesh_format}", vertices, faces, space)
    preview(out / f"{case.name}_preview.png", surfaces, labels)
    remove_stale_meshes(out, case.name, {f"{stem}_mesh.{mesh_format}" for stem in stems})

    overlaps = overlaps_ml(surfaces.meshes, structures, image.grid)
    rows = []
    for structure, name in enumerate(structures.names):
        row = {"case": case.name, "structure": name}
        row |= compare(surfaces, labels, structure)
        row |= measure(surfaces, structure)
        row |= {
            f"overlap_{other}_ml": value for other, value in zip(structures.names, overlaps[structure], strict=True)
        }
        rows.append(row | {"seconds": seconds, "warnings": "; ".join(warnings)})
    return rows


def remove_stale_meshes(out: Path, case: str, written: set[str]) -> None:
    """Remove a case's meshes but for those just written: of other structures or formats, left by an earlier run."""
    names = {path.name.removesuffix(LABELMAP) for path in out.glob(f"*{LABELMAP}")}
    longer = tuple(
        f"{name}_" for name in names if name.startswith(f"{case}_")
    )  # cases whose names begin like this one's
    for path in out.iterdir():
        stem, _, suffix = path.name.rpartition("_mesh.")
        its_own = f"{stem}_".startswith(f"{case}_") and not f"{stem}_".startswith(longer)
        if its_own and suffix in MESH_FORMATS and path.name not in written:
            path.unlink()


def compare(surfaces: Surfaces, labels: Volume | None, structure: int) -> dict:
    """Metrics of one structure on the image's own grid, mesh label map and voxel segmentation against the label; empty
    where there is no label. Voxels that the label has ignored are left out."""
    spacing_mm = surfaces.grid.spacing_mm
    value = surfaces.structures.written[surfaces.names[structure]]
    mesh = surfaces.labelmap == value
    row = dict.fromkeys(("dice", "assd_mm", "hd95_mm", "unet_dice", "label_volume_ml"))
    if labels is not None:
        truth = surfaces.structures.mask(labels.data, structure)
        ignored = surfaces.structures.ignored_in(labels.data)
        row |= {
            "dice": dice(mesh, truth, ignored),
            **surface_distances(mesh, truth, spacing_mm, ignored),
            "unet_dice": dice(surfaces.segmentation == value, truth, ignored),
            "label_volume_ml": volume_ml(truth, spacing_mm),
        }
    return row | {"volume_ml": volume_ml(mesh, spacing_mm)}


def measure(surfaces: Surfaces, structure: int) -> dict:
    """What is known of one structure's mesh without a label."""
    faces = surfaces.faces
    unrepaired = self_intersecting_faces(surfaces.raw_vertices[structure], faces)
    return {
        "mesh_volume_ml": mesh_volume_ml(surfaces.vertices[structure], faces),
        "agreement": surfaces.agreement[surfaces.names[structure]],
        "self_intersecting_faces": surfaces.crossing[structure],
        "self_intersecting_faces_before_repair": int(unrepaired.sum()),
        "faces": len(faces),
    }


def print_summary(rows: list[dict], structures: Sequence[str]) -> None:
    """Mean and standard deviation per structure over the cases, of metrics over those in which it is labelled."""
    print(
        f"{'structure':<16}{'cases':>6}{'Dice':>17}{'ASSD_mm':>20}{'HD95_mm':>20}{'crossing %':>13}{'UNet Dice':>17}"
        f"{'agreement':>17}"
    )
    for name in structures:
        chosen = [row for row in rows if row["structure"] == name]
        labelled = [row for row in chosen if row["label_volume_ml"]]
        cells = []
        for key in ("dice", "assd_mm", "hd95_mm", "unet_dice"):
            cells.append(mean_and_deviation([row[key] for row in labelled]))
        agreement = mean_and_deviation([row["agreement"] for row in chosen if not np.isnan(row["agreement"])])
        crossing = 100 * np.mean([row["self_intersecting_faces"] / row["faces"] for row in chosen])
        print(
            f"{name:<16}{len(labelled):>6}{cells[0]:>17}{cells[1]:>20}{cells[2]:>20}{crossing:>13.3f}{cells[3]:>17}"
            f"{agreement:>17}"
        )
    doubtful = {row["case"] for row in rows if row["warnings"]}
    if doubtful:
        print(f"{len(doubtful)} of {len({row['case'] for row in rows})} cases with warnings, see metrics.csv")


if __name__ == "__main__":
    run_script(main)
