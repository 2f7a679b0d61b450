"""Images -> closed surface meshes in world millimetres, label maps on the images' own grids, and tables.

    python implicitmeshnet_eval.py --implicitmeshnet_config=configs_implicitmeshnet/whole_heart.json \\
        --input=data/phantom/test --output=test_out [--device=auto|cpu|cuda|mps]

--input is a file or a folder: NIfTI, NRRD, MetaImage, a DICOM series (a folder or a zip of them), or any mix; a data
set's root in the layout of Decathlon or nnU-Net, or MM-WHS naming, where labels are beside the images. --test_dir_in
and --test_dir_out are the same options' older names.

Several networks, --implicitmeshnet_config A.json B.json, are averaged: vertices, and probabilities of voxels.

Writes per case <case>_mesh.ply (<case>_<structure>_mesh.ply for several structures), <case>_mesh_labelmap.nii.gz,
<case>_unet_segmentation.nii.gz and <case>_preview.png, on request <case>_combined.ply, <case>_conforming.vtp,
<case>_seg.dcm and <case>_figure.png, .svg and .pdf; and over all cases statistics.csv and statistics.json, what each
structure measures, metrics.csv, the comparison with the label where one lies beside the image, and report.html, a page
to look through all of it.

Cases that are finished, with the same networks, options and input files, are left as they are; so the same command goes
on after any interruption. --jobs=4 shares the cases out among four processes, --shard=2/8 takes the second of eight
parts, as of a job array; the tables then hold what all have finished.

Exit status 2 where the input of a case, or of all, is at fault, 1 with a traceback where this program is; what other
cases gave is written either way.
"""

import argparse
import re

from implicitmeshnet.script import exit_at_interrupt

MESH_FORMATS = ("ply", "stl", "obj", "vtp")
COMBINED_FORMATS = ("ply", "vtp", "vtm")
LABELMAP_FORMATS = ("nii.gz", "nrrd", "seg.nrrd")
FINEST_SUBDIVISION = 3
GAP_MM, WALL_MM = 0.1, 0.5  # those of surfaces.separation and surfaces.walls, which are imported later
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
        "--label_values",
        nargs="+",
        default=[],
        type=label_value,
        metavar="NAME=VALUE[,VALUE]",
        help="of structures in label maps, those beside the images and those that are written; default the config's",
    )
    parser.add_argument(
        "--combined", choices=COMBINED_FORMATS, help="also all structures in one coloured file; vtm lists vtp meshes"
    )
    parser.add_argument(
        "--conforming", action="store_true", help="also one surface in which structures that touch share their wall"
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
        "--gap_mm",
        type=float,
        default=GAP_MM,
        metavar="MM",
        help="meshes of different structures are moved this far apart where they come closer; default %(default)s",
    )
    parser.add_argument(
        "--wall_mm",
        type=float,
        default=WALL_MM,
        metavar="MM",
        help="the same where the segmentation shows a wall around an enclosed structure; default %(default)s",
    )
    parser.add_argument(
        "--orientation",
        choices=("header", "guess"),
        default="header",
        help="guess: where headers lie, try all flips of the axes and take the one whose results agree best; default"
        " %(default)s",
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
    parser.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="processes, each with its share of the cores and its own network; default %(default)s",
    )
    parser.add_argument(
        "--shard",
        type=part,
        default=(1, 1),
        metavar="I/N",
        help="only the I-th of N parts of the cases, I from 1 on; the tables have what all parts have finished",
    )
    parser.add_argument("--overwrite", action="store_true", help="do cases again that are finished")
    parser.add_argument("--quiet", action="store_true", help="print only what fails")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # a process of --jobs
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number from 1 on, of an argument."""
    if not re.fullmatch(r"0*[1-9]\d{0,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 on, found {text!r}")
    return int(text)


def label_value(text: str) -> tuple[str, list[int]]:
    """A structure's name and its label values, of an argument NAME=VALUE,VALUE."""
    name, _, numbers = text.partition("=")
    values = numbers.split(",")
    if not all(value.isdecimal() for value in values):
        raise argparse.ArgumentTypeError(f"wanted NAME=VALUE or NAME=VALUE,VALUE, such as LV=3, found {text!r}")
    return name, [int(value) for value in values]


def part(text: str) -> tuple[int, int]:
    """Which part of how many, of an argument I/N."""
    number, _, parts = text.partition("/")
    try:
        chosen = (positive(number), positive(parts))
    except argparse.ArgumentTypeError:
        chosen = (1, 0)
    if chosen[0] > chosen[1]:
        raise argparse.ArgumentTypeError(f"wanted I/N with I from 1 to N, such as 2/8, found {text!r}")
    return chosen


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from tqdm import tqdm

from implicitmeshnet import evaluation
from implicitmeshnet.config import load_config
from implicitmeshnet.data.dataset import Case, configured_split, find_cases, splits_of
from implicitmeshnet.data.inputs import input_cases
from implicitmeshnet.evaluation.case import Input, evaluate_case, read_input
from implicitmeshnet.evaluation.case_files import FileOptions, file_names, mesh_stems, write_files
from implicitmeshnet.evaluation.rows import rows_of
from implicitmeshnet.evaluation.tables import print_summary, write_tables
from implicitmeshnet.jobs import Outcome, ahead, in_processes, serve
from implicitmeshnet.models.weights import snapshot_path
from implicitmeshnet.predict import Predictor
from implicitmeshnet.progress import progress
from implicitmeshnet.records import FOLDER, Records, digest
from implicitmeshnet.report.page import (
    ReportedCase,
    read_case_of_page,
    reported_case,
    worst_first,
    write_case_of_page,
    write_report,
)
from implicitmeshnet.script import (
    InputError,
    check_path,
    make_folder,
    remove_partials,
    run_script,
)
from implicitmeshnet.surfaces import dicom_seg
from implicitmeshnet.training.provenance import LIBRARIES, commit, versions

REPORT = "report.html"
OPTIONS = (
    "mesh_format",
    "space",
    "structures",
    "label_values",
    "combined",
    "conforming",
    "subdivide",
    "labelmap",
    "dicom_seg",
    "report",
    "figure",
    "gap_mm",
    "wall_mm",
    "orientation",
)
"""Of the command line, that shape a case's files."""


def main():
    arguments = parse_arguments()
    predictor = Predictor.from_config(
        *arguments.implicitmeshnet_config,
        device=arguments.device,
        structures=arguments.structures,
        gap_mm=arguments.gap_mm,
        wall_mm=arguments.wall_mm,
        orientation=arguments.orientation,
        label_values=dict(arguments.label_values),
    )
    out = Path(arguments.output)
    records = Records(out, settings_of(arguments))
    if arguments.serve:
        serve(partial(evaluate, predictor, arguments, records))
    cases = chosen_cases(arguments, predictor.data.channels)
    check_options(arguments, cases)
    check_output(out, Path(arguments.input), cases, predictor.wanted.names)
    make_folder(out / FOLDER, "--output")

    number, parts = arguments.shard
    own = cases[number - 1 :: parts]
    waiting = [case for case in own if arguments.overwrite or not records.is_finished(case)]
    if len(own) > len(waiting) and not arguments.quiet:
        print(f"{len(own) - len(waiting)} of {len(own)} cases are finished, --overwrite does them again")
    failed: dict[str, str] = {}
    faults: list[str] = []
    for outcome in outcomes_of(predictor, arguments, records, waiting):
        if outcome.failed:
            failed[outcome.case.name] = outcome.failed
            records.add_failed(outcome.case, outcome.failed)
        if outcome.fault:
            faults.append(outcome.fault)
            records.remove(outcome.case)
        if not arguments.quiet:
            tell(outcome)
    rows = write_tables_of(records, cases, failed, arguments, predictor)
    if rows and not arguments.quiet:
        print_summary(rows, predictor.wanted.names)
    finish(out, len(own), list(failed.values()), faults, arguments.quiet)


def settings_of(arguments: argparse.Namespace) -> object:
    """All that the files of every case depend on, beside the case: networks, options and this program's own text."""
    networks = []
    for path in arguments.implicitmeshnet_config:
        config = load_config(path)
        networks.append((repr(config.data), repr(config.network), digest(snapshot_path(config, path))))
    options = [(name, getattr(arguments, name)) for name in OPTIONS]
    program = [Path(__file__), *sorted(Path(evaluation.__file__).parent.glob("*.py"))]
    return networks, options, [digest(path) for path in program]


def outcomes_of(
    predictor: Predictor, arguments: argparse.Namespace, records: Records, cases: list[Case]
) -> Iterator[Outcome]:
    """Evaluate cases, here or in --jobs processes, and say how each ended."""
    if min(arguments.jobs, len(cases)) > 1:
        command = [sys.executable, __file__, *sys.argv[1:], "--serve"]
        outcomes = in_processes(command, cases, arguments.jobs)
    else:
        outcomes = evaluate(predictor, arguments, records, cases)
    try:
        yield from outcomes if arguments.quiet else progress(outcomes, "cases", len(cases))
    finally:
        for folder in (records.out, records.out / FOLDER):
            remove_partials(folder)  # of processes that were killed


def evaluate(
    predictor: Predictor, arguments: argparse.Namespace, records: Records, cases: Iterable[Case]
) -> Iterator[Outcome]:
    """Evaluate cases and write their files and records; the next case is read meanwhile."""
    for case, take in ahead(cases, partial(read_input, predictor, arguments.report)):
        yield evaluate_and_write(predictor, arguments, records, case, take)


def evaluate_and_write(
    predictor: Predictor, arguments: argparse.Namespace, records: Records, case: Case, take: Callable[[], Input]
) -> Outcome:
    """Evaluate one case, which `take` gives, and write its files and its record; whatever goes wrong is its outcome."""
    options = file_options(arguments)
    files = file_names(case, predictor.wanted.names, options) | {page_of(case)}
    try:
        records.begin(case, files)
        result = evaluate_case(predictor, case, take, arguments.subdivide)
        write_files(records.out, result, options)
        rows = rows_of(result)
        result.clock.lap("measure")
        if result.shown is not None:
            of_page = reported_case(result.shown, result.labels, result.surfaces, rows)
            write_case_of_page(records.out / page_of(case), of_page)
            result.clock.lap("report")
        records.add(case, files, rows, result.clock.seconds)
        return Outcome(case, sum(result.clock.seconds.values()), tuple(result.warnings))
    except InputError as error:
        return Outcome(case, failed=str(error))
    except MemoryError:
        return Outcome(case, failed=f"{case.source}: wanted memory enough for this volume, found too little")
    except Exception:  # of our own: the other cases go on
        return Outcome(case, fault=f"{case.source}: {traceback.format_exc()}")


def file_options(arguments: argparse.Namespace) -> FileOptions:
    """What of the command line says which files are written."""
    return FileOptions(
        mesh_format=arguments.mesh_format,
        space=arguments.space,
        labelmap=arguments.labelmap,
        combined=arguments.combined,
        conforming=arguments.conforming,
        kept_wall_mm=(arguments.gap_mm + arguments.wall_mm) / 2,
        dicom_seg=arguments.dicom_seg,
        figure=arguments.figure,
    )


def tell(outcome: Outcome) -> None:
    """A line on how a case ended, its warnings before it."""
    for warning in outcome.warnings:
        tqdm.write(f"warning: {warning}", file=sys.stderr)
    end = f"{outcome.seconds:.1f} s, {len(outcome.warnings)} warnings"
    if outcome.failed or outcome.fault:
        end = "failed"
    tqdm.write(f"{outcome.case.name}: {end}")


def finish(out: Path, count: int, failures: list[str], faults: list[str], quiet: bool) -> None:
    """Say how many of the cases are written and what failed, and end with the exit status for it."""
    if not quiet:
        print(f"{count - len(failures) - len(faults)} of {count} cases written to {out}")
    for message in failures[1:] + faults:
        print(message, file=sys.stderr)
    if faults:
        sys.exit(1)
    if failures:
        others = f"; {len(failures) - 1} others are named above" if failures[1:] else ""
        raise InputError(f"{len(failures)} of {count} cases failed: {failures[0]}{others}")


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


def write_tables_of(
    records: Records, cases: list[Case], failed: dict[str, str], arguments: argparse.Namespace, predictor: Predictor
) -> list[dict]:
    """Write the tables and the report of all cases that are finished, by whichever process, and give their rows.

    `failed` are those of this process, whose records may be missing.
    """
    while True:
        state = records.state(cases)
        found = {case.name: records.of(case) for case in cases}
        counting = {name: record for name, record in found.items() if record is not None}
        finished = {name: record for name, record in counting.items() if record.failed is None and name not in failed}
        others = {name: record.failed for name, record in counting.items() if record.failed is not None}
        rows = write_tables(records.out, finished, others | failed)
        if arguments.report and rows:
            pages = [records.out / page_of(case) for case in cases if case.name in finished]
            write_page(records.out / REPORT, pages, predictor, made_with(arguments, predictor), others | failed)
        else:
            (records.out / REPORT).unlink(missing_ok=True)  # of an earlier run
        if records.state(cases) == state:  # else another process has finished one, and may have written tables before
            return rows


def page_of(case: Case) -> str:
    """Where, within the output folder, lies what the report's page has of a case."""
    return f"{FOLDER}/{case.name}.page"


def write_page(
    path: Path, pages: Sequence[Path], predictor: Predictor, settings: dict[str, str], failed: dict[str, str]
) -> None:
    """Write the report of at least one case from what its processes left of each."""
    kept: list[ReportedCase] = []
    for page in pages:
        kept = worst_first([*kept, read_case_of_page(page)])  # so that memory is bounded
    faces = predictor.network.decoder.faces.cpu().numpy()
    write_report(path, predictor.wanted, faces, kept, settings, failed)


def made_with(arguments: argparse.Namespace, predictor: Predictor) -> dict[str, str]:
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


if __name__ == "__main__":
    run_script(main)
