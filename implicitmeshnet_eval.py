"""Images -> closed surface meshes in world millimetres, label maps on the images' own grids, and tables.

    python implicitmeshnet_eval.py --implicitmeshnet_config=configs_implicitmeshnet/whole_heart.json \\
        --input=data/phantom/test --output=test_out [--device=auto|cpu|cuda|mps]

--input is a file or a folder: NIfTI, NRRD, MetaImage, a DICOM series (a folder or a zip of them), or any mix; a data
set's root in the layout of Decathlon or nnU-Net, or MM-WHS naming, where labels are beside the images. --test_dir_in
and --test_dir_out are the same options' older names.

Several networks, --implicitmeshnet_config A.json B.json, are averaged: vertices, and probabilities of voxels.

Writes per case <case>_mesh.ply (<case>_<structure>_mesh.ply for several structures), <case>_mesh_labelmap.nii.gz,
<case>_unet_segmentation.nii.gz and <case>_preview.png, on request <case>_combined.ply, <case>_seg.dcm and
<case>_figure.png, .svg and .pdf; and over all cases statistics.csv and statistics.json, what each structure measures,
metrics.csv, the comparison with the label where one lies beside the image, and report.html, a page to look through all
of it.

Exit status 2 where the input of a case, or of all, is at fault, 1 with a traceback where this program is; what other
cases gave is written either way.
"""

import argparse

from implicitmeshnet.script import exit_at_interrupt

MESH_FORMATS = ("ply", "stl", "obj", "vtp")
COMBINED_FORMATS = ("ply", "vtp", "vtm")
LABELMAP_FORMATS = ("nii.gz", "nrrd", "seg.nrrd")
FINEST_SUBDIVISION = 3
FIGURE_THEMES = ("light", "dark")


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
    parser.add_argument(
        "--input",
        "--test_dir_in",
        required=True,
        metavar="PATH",
        help="an image, a DICOM folder or zip, or a folder of images in one of the layouts of docs/formats.md",
    )
    parser.add_argument(
        "--output", "--test_dir_out", required=True, metavar="FOLDER", help="for the results, made where missing"
    )
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
        "--structures", nargs="+", metavar="NAME", help="only these are written and measured, by default all"
    )
    parser.add_argument(
        "--combined", choices=COMBINED_FORMATS, help="also all structures in one coloured file; vtm lists vtp meshes"
    )
    parser.add_argument(
        "--subdivide",
        type=int,
        default=0,
        choices=range(FINEST_SUBDIVISION + 1),
        help="Loop subdivisions of the meshes that are written, each with four times the faces; default %(default)s",
    )
    parser.add_argument(
        "--labelmap",
        default="nii.gz",
        choices=LABELMAP_FORMATS,
        help="of label maps; seg.nrrd has 3D Slicer's names and colours; default %(default)s",
    )
    parser.add_argument(
        "--dicom_seg", action="store_true", help="of DICOM series also a DICOM SEG, placed on the source images"
    )
    parser.add_argument(
        "--report",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="report.html over all cases, with tables, meshes and slices; default yes",
    )
    parser.add_argument(
        "--figure",
        choices=FIGURE_THEMES,
        help="also a figure of each case for print, as PNG, SVG and PDF, on a light or a dark ground",
    )
    parser.add_argument(
        "--split",
        choices=("Tr", "Ts"),
        help="of a data set's root: imagesTr or imagesTs, by default the latter where there is one",
    )
    parser.add_argument(
        "--validation_split",
        action="store_true",
        help="only the cases of --input that a training with the config, or with each of several, holds out",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

import math
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from implicitmeshnet.config import load_config
from implicitmeshnet.data.dataset import Case, configured_split, find_cases, read_case, splits_of
from implicitmeshnet.data.dicom import source_files
from implicitmeshnet.data.inputs import input_cases
from implicitmeshnet.data.volume import Volume
from implicitmeshnet.predict import Predictor, Surfaces, preview
from implicitmeshnet.progress import progress
from implicitmeshnet.report.figure import ENDINGS as FIGURE_ENDINGS
from implicitmeshnet.report.figure import write_figure
from implicitmeshnet.report.page import ReportedCase, reported_case, worst_first, write_report
from implicitmeshnet.script import InputError, check_path, make_folder, run_script, write_json, write_table
from implicitmeshnet.surfaces import dicom_seg
from implicitmeshnet.surfaces.combined import write_combined, write_multiblock
from implicitmeshnet.surfaces.figures import colours
from implicitmeshnet.surfaces.files import write_mesh
from implicitmeshnet.surfaces.label_files import write_labelmap
from implicitmeshnet.surfaces.labelmap import Mesh, overlaps_ml
from implicitmeshnet.surfaces.metrics import dice, mean_and_deviation, surface_distances, volume_ml
from implicitmeshnet.surfaces.soundness import mesh_area_mm2, mesh_volume_ml, self_intersecting_faces
from implicitmeshnet.surfaces.subdivide import subdivide
from implicitmeshnet.training.provenance import LIBRARIES, commit, versions

LABELMAP, SEGMENTATION = "_mesh_labelmap", "_unet_segmentation"
REPORT = "report.html"
MEASURED = ("volume_ml", "mesh_volume_ml", "surface_mm2")
CHECKED = ("agreement", "self_intersecting_faces", "self_intersecting_faces_before_repair", "faces")
COMPARED = ("dice", "assd_mm", "hd95_mm", "unet_dice", "label_volume_ml")


@dataclass(frozen=True, eq=False)
class Result:
    """What the evaluation of one case gives."""

    case: Case
    image: Volume
    labels: Volume | None  # None where there is none, or none of the structures in it
    surfaces: Surfaces
    meshes: list[Mesh]  # as they are written: subdivided on request
    warnings: list[str]
    seconds: float  # for reading and predicting


def main():
    arguments = parse_arguments()
    predictor = Predictor.from_config(
        *arguments.implicitmeshnet_config, device=arguments.device, structures=arguments.structures
    )
    structures = predictor.wanted
    cases = chosen_cases(arguments, predictor.data.channels)
    out = Path(arguments.output)
    check_options(arguments, cases)
    check_output(out, Path(arguments.input), cases, structures.names)

    rows: list[dict] = []
    reported: list[ReportedCase] = []
    failed: dict[str, str] = {}
    faults: list[str] = []
    for case in progress(cases, "cases"):
        try:
            result = evaluate_case(predictor, case, arguments)
            write_files(out, result, arguments)
            of_case = rows_of(result)
            if arguments.report:
                new = reported_case(result.image, result.labels, result.surfaces, of_case)
                reported = worst_first([*reported, new])
            rows += of_case
        except InputError as error:
            failed[case.name] = str(error)
        except MemoryError:
            failed[case.name] = f"{case.source}: wanted memory enough for this volume, found too little"
        except Exception:  # of our own: the other cases go on
            faults.append(f"{case.source}: {traceback.format_exc()}")
    write_tables(out, rows, failed)
    if reported:
        write_report(out / REPORT, reported, settings_of(arguments, predictor), failed)
    else:
        (out / REPORT).unlink(missing_ok=True)  # of an earlier run
    if rows:
        print_summary(rows, structures.names)
    failures = list(failed.values())
    print(f"{len(cases) - len(failures) - len(faults)} of {len(cases)} cases written to {out}")
    for message in failures[1:] + faults:
        print(message, file=sys.stderr)
    if faults:
        sys.exit(1)
    if failures:
        others = f"; {len(failures) - 1} others are named above" if failures[1:] else ""
        raise InputError(f"{len(failures)} of {len(cases)} cases failed: {failures[0]}{others}")


def chosen_cases(arguments: argparse.Namespace, channels: int) -> list[Case]:
    """The cases of --input that the arguments name, of so many channels; says which split was taken where a data set
    has both."""
    source = arguments.input
    splits = splits_of(source)
    if arguments.split is not None and arguments.split not in splits:
        option = spelt("--input", "--test_dir_in")
        raise InputError(f"--split: wanted a folder images{arguments.split} in {option}, found none in {source}")
    if arguments.validation_split:
        if arguments.split is not None:
            raise InputError(f"--split: wanted none beside --validation_split, found {arguments.split}")
        return held_out_cases(find_cases(source, labelled=True, channels=channels), arguments.implicitmeshnet_config)
    split = arguments.split or next(iter(splits), "Tr")
    if len(splits) > 1 and arguments.split is None:
        print(f"{source}: took imagesTs; --split=Tr takes imagesTr")
    return input_cases(source, split, channels)


def spelt(option: str, older: str) -> str:
    """An option as the command line has it, by its name or its older name, for messages about it."""
    given = [argument.partition("=")[0] for argument in sys.argv[1:]]
    return older if older in given else option


def held_out_cases(cases: list[Case], configs: Sequence[str]) -> list[Case]:
    """Of the cases those that the trainings of all JSON configs hold out: no averaged network has seen them."""
    chosen = cases
    for path in configs:
        _, held_out = configured_split(cases, load_config(path))
        chosen = [case for case in chosen if case in held_out]
    if not chosen:
        raise InputError("--validation_split: wanted cases that every config holds out, found none")
    return chosen


def check_options(arguments: argparse.Namespace, cases: list[Case]) -> None:
    """Refuse, before anything is computed, what cannot be written of these cases."""
    if arguments.combined == "vtm" and arguments.mesh_format != "vtp":
        raise InputError(f"--combined: wanted --mesh_format=vtp beside vtm, found {arguments.mesh_format}")
    if arguments.dicom_seg:
        dicom_seg.check_available("--dicom_seg")
        if not any(case.series for case in cases):
            raise InputError(f"--dicom_seg: wanted a DICOM series in {arguments.input}, found none")


def check_output(out: Path, source: Path, cases: list[Case], structures: Sequence[str]) -> None:
    """Refuse, before anything is computed, a folder that cannot hold the results or names that would collide."""
    option = spelt("--output", "--test_dir_out")
    check_path(str(out), option)
    if out.resolve() == source.resolve():
        other = spelt("--input", "--test_dir_in")
        raise InputError(f"{option}: wanted another folder than {other}, found {out} for both")
    stems: dict[str, str] = {}
    for case in cases:
        for stem in mesh_stems(case.name, structures):
            if stem in stems:
                raise InputError(
                    f"{case.source}: wanted mesh names of its own, found {stem}_mesh for {stems[stem]} too"
                )
            stems[stem] = case.source
    make_folder(out, option)


def mesh_stems(case: str, structures: Sequence[str]) -> list[str]:
    """What the names of a case's mesh files begin with: the case, and where there are several the structure."""
    return [case] if len(structures) == 1 else [f"{case}_{name}" for name in structures]


def evaluate_case(predictor: Predictor, case: Case, arguments: argparse.Namespace) -> Result:
    """Read one case and predict its surfaces; says what is doubtful about them. Nothing is written."""
    start = time.perf_counter()
    image, labels = read_case(case)
    surfaces = predictor(image)
    seconds = time.perf_counter() - start
    warnings = list(surfaces.warnings)
    if labels is not None:
        warnings += labels.warnings
        if not surfaces.structures.any_in(labels.data):
            warnings.append(f"{case.label}: has none of the label values of data.structures, so there are no metrics")
            labels = None
    for warning in warnings:
        tqdm.write(f"warning: {warning}", file=sys.stderr)
    meshes = [subdivide(*mesh, arguments.subdivide) for mesh in surfaces.meshes]
    return Result(case, image, labels, surfaces, meshes, warnings, seconds)


def write_files(out: Path, result: Result, arguments: argparse.Namespace) -> None:
    """Write one case's files, and remove others of it that an earlier run left."""
    name = result.case.name
    surfaces = result.surfaces
    structures = surfaces.structures
    palette = [colours(structures.names)[each] for each in structures.names]
    stems = mesh_stems(name, structures.names)
    written = {f"{stem}_mesh.{arguments.mesh_format}" for stem in stems}
    # The longest name first: where it is too long for the file system, nothing of the case is left.
    for kind, labels in ((SEGMENTATION, surfaces.segmentation), (LABELMAP, surfaces.labelmap)):
        written.add(f"{name}{kind}.{arguments.labelmap}")
        write_labelmap(out / f"{name}{kind}.{arguments.labelmap}", labels, result.image.grid, structures, palette)
    for stem, (vertices, faces) in zip(stems, result.meshes, strict=True):
        write_mesh(out / f"{stem}_mesh.{arguments.mesh_format}", vertices, faces, arguments.space)
    if arguments.combined:
        written.add(f"{name}_combined.{arguments.combined}")
        write_together(out / f"{name}_combined.{arguments.combined}", result, stems, palette, arguments.space)
    if arguments.dicom_seg and result.case.series:
        written.add(f"{name}_seg.dcm")
        write_seg(out / f"{name}_seg.dcm", result, palette)
    preview(out / f"{name}_preview.png", surfaces, result.labels)
    if arguments.figure:
        written |= {f"{name}_figure.{ending}" for ending in FIGURE_ENDINGS}
        write_figure(out / f"{name}_figure", name, surfaces, result.labels, arguments.figure)
    remove_stale_files(out, name, written)


def write_together(path: Path, result: Result, stems: Sequence[str], palette: Sequence[str], space: str) -> None:
    """Write all structures of a case in one file, or as .vtm the list of their .vtp files."""
    structures = result.surfaces.structures
    if path.suffix == ".vtm":
        write_multiblock(path, [f"{stem}_mesh.vtp" for stem in stems], structures.names)
    else:
        write_combined(path, result.meshes, structures.names, list(structures.written.values()), palette, space)


def write_seg(path: Path, result: Result, palette: Sequence[str]) -> None:
    """Write a case's label map as DICOM SEG; where its source images do not allow it, a warning says why."""
    assert result.case.series is not None
    surfaces = result.surfaces
    try:
        with source_files(result.case.series) as files:
            dicom_seg.write_dicom_seg(path, surfaces.labelmap, surfaces.grid, files, surfaces.structures, palette)
    except InputError as error:
        path.unlink(missing_ok=True)  # of an earlier run
        result.warnings.append(str(error))
        tqdm.write(f"warning: {error}", file=sys.stderr)


def rows_of(result: Result) -> list[dict]:
    """All that is known of one case, a row per structure."""
    surfaces = result.surfaces
    names = surfaces.names
    overlaps = overlaps_ml(surfaces.meshes, surfaces.structures, result.image.grid)
    rows = []
    for structure, name in enumerate(names):
        row = {"case": result.case.name, "structure": name}
        row |= compare(surfaces, result.labels, structure)
        row |= measure(surfaces, result.meshes[structure], structure)
        row |= {f"overlap_{other}_ml": value for other, value in zip(names, overlaps[structure].tolist(), strict=True)}
        rows.append(row | {"seconds": result.seconds, "warnings": "; ".join(result.warnings)})
    return rows


def write_tables(out: Path, rows: list[dict], failed: dict[str, str]) -> None:
    """Write metrics.csv, statistics.csv and statistics.json; without any case none of them stays."""
    names = ("metrics.csv", "statistics.csv", "statistics.json")
    if not rows:
        for name in names:
            (out / name).unlink(missing_ok=True)
        return
    overlaps = [key for key in rows[0] if key.startswith("overlap_")]
    columns = ("case", "structure", *MEASURED, *overlaps, *CHECKED, *COMPARED, "seconds", "warnings")
    statistics = [{key: row[key] for key in columns} for row in rows]
    metrics = [{key: value for key, value in row.items() if key != "surface_mm2"} for row in rows]
    for name, table in zip(names, (metrics, statistics), strict=False):
        write_table(out / name, table)
    write_json(out / "statistics.json", {"cases": as_tree(statistics), "failed": failed})


def settings_of(arguments: argparse.Namespace, predictor: Predictor) -> dict[str, str]:
    """What the results were made with, for the report: a text by its name."""
    settings = {
        "made at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "device": predictor.network.decoder.faces.device.type,
        "commit": commit() or "",
        "Python": platform.python_version(),
    }
    settings |= {name: version for name, version in versions(LIBRARIES) if version}
    for path in arguments.implicitmeshnet_config:
        settings[path] = Path(path).read_text(encoding="utf-8")
    return {name: text for name, text in settings.items() if text}


def as_tree(rows: list[dict]) -> list[dict]:
    """Rows as one object per case, its structures by name; numbers that JSON lacks are null."""
    cases: dict[str, dict] = {}
    for row in rows:
        of_structure = {key: value for key, value in row.items() if key not in ("case", "structure")}
        shared = {key: of_structure.pop(key) for key in ("seconds", "warnings")}
        case = cases.setdefault(row["case"], {"case": row["case"], **shared, "structures": {}})
        case["structures"][row["structure"]] = {key: finite(value) for key, value in of_structure.items()}
    return list(cases.values())


def finite(value: object) -> object:
    """A value as JSON can hold it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_stale_files(out: Path, case: str, written: set[str]) -> None:
    """Remove a case's files but for those just written: of other structures or formats, left by an earlier run."""
    label_maps = [f"{case}{kind}.{ending}" for kind in (LABELMAP, SEGMENTATION) for ending in LABELMAP_FORMATS]
    together = [f"{case}_combined.{ending}" for ending in COMBINED_FORMATS]
    pictures = [f"{case}_figure.{ending}" for ending in FIGURE_ENDINGS]
    for name in {*label_maps, *together, *pictures, f"{case}_seg.dcm"} - written:
        (out / name).unlink(missing_ok=True)
    others = {path.name.rpartition(LABELMAP)[0] for path in out.glob(f"*{LABELMAP}.*")}
    longer = tuple(f"{name}_" for name in others if name.startswith(f"{case}_"))  # whose names begin like this one's
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


def measure(surfaces: Surfaces, written: Mesh, structure: int) -> dict:
    """What is known of one structure's mesh without a label; volume and surface are those of the mesh in the file."""
    faces = surfaces.faces
    unrepaired = self_intersecting_faces(surfaces.raw_vertices[structure], faces)
    return {
        "mesh_volume_ml": mesh_volume_ml(*written),
        "surface_mm2": mesh_area_mm2(*written),
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
        print(f"{len(doubtful)} of {len({row['case'] for row in rows})} cases with warnings, see statistics.csv")


if __name__ == "__main__":
    run_script(main)
