"""Evaluated label maps -> an MM-WHS submission, and its Dice by the challenge's scorer under wine.

    python mmwhs_create_submission.py --input_dir_lv=test_out_lv --input_dir_la=test_out_la test_out
    python mmwhs_create_submission.py --input_dir=test_out_wh test_out [--encrypted_gt_dir=... | --gt_dir=...]

Reads <case>_mesh_labelmap.nii.gz, as implicitmeshnet_eval.py leaves them. Writes per case <case>_label.nii.gz on the
image's own grid and <case>_label_1mm.nii.gz, int16 with the challenge's values, the latter on the encrypted ground
truth's own grid where one is given; with a ground truth scores_wine.csv or scores_plain.csv, a row per case and
structure, and a summary. A case that was scored as it is now is not scored again without --rescore.
"""

import argparse

from implicitmeshnet.script import exit_at_interrupt

SCORER = "zxhCardWhsEvaluate.exe"


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments; how they go together is not checked yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", help="folder for the submission, made where missing")
    parser.add_argument("--input_dir", help="results of a whole-heart network")
    parser.add_argument("--input_dir_lv", help="results of a left ventricle's network, with --input_dir_la")
    parser.add_argument("--input_dir_la", help="results of a left atrium's network, with --input_dir_lv")
    parser.add_argument("--encrypted_gt_dir", help=f"the challenge's folder with nii/ and {SCORER}: score through wine")
    parser.add_argument("--gt_dir", help="folder of plain <case>_label.nii.gz: score without wine")
    parser.add_argument("--rescore", action="store_true", help="score again what was scored already")
    return parser.parse_args()


if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take
    parse_arguments()  # answers --help and refuses misspelt options before them

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import check_same_grid
from implicitmeshnet.data.nifti import read_grid, read_labels, write_volume
from implicitmeshnet.data.volume import Grid, Volume, resample_nearest, resample_nearest_onto
from implicitmeshnet.progress import progress
from implicitmeshnet.script import (
    QUOTED,
    InputError,
    check_path,
    make_folder,
    reason,
    run_script,
    write_table,
)
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.labelmap import masks_to_labelmap
from implicitmeshnet.surfaces.metrics import dice, mean_and_deviation, surface_distances

VALUES = {"LV": (500,), "Myo": (205,), "RV": (600,), "LA": (420, 421), "RA": (550,), "AO": (820,), "PA": (850,)}
"""The MM-WHS label values of each structure, the first the one to write; in the order of the scorer's columns."""
COLUMNS = (*VALUES, "whole heart")
ALL_VALUES = [value for values in VALUES.values() for value in values]
ENDING = "_mesh_labelmap.nii.gz"
SPACING_MM = 1.0
LABEL_CUT = 0.01
FIELD_MISSED = 0.05
"""A case gets a warning where a larger share than LABEL_CUT of what is predicted lies outside the ground truth's field
of view, or more than FIELD_MISSED of the ground truth's grid outside the image's. Where both have the same field of
view and round it differently, the shares stay below."""
PREDICTED_POINTS = 100_000  # that the first share is measured with, at most
FIELD_POINTS = 25  # that the second share is measured with, along each axis
SECONDS = 1800  # that the scorer may take for a case
KEYS_BY_WINE = ("case", "structure", "dice", "fingerprint")
KEYS_OF_OURS = ("case", "structure", "dice", "assd_mm", "hd95_mm", "fingerprint")
KEYS_OF_TEXT = ("case", "structure", "fingerprint")
Row = dict[str, Any]
"""A line of a table of scores: text under KEYS_OF_TEXT, numbers under the metrics' names."""


def main() -> None:
    arguments = parse_arguments()
    sources = input_folders(arguments)
    cases = match_cases(sources)
    truths = find_truths(arguments, list(cases))
    out = Path(arguments.output_dir)
    check_output(out, [*sources, *(path.parent for path in truths.values())], list(cases))
    scoring = begin_scoring(arguments, out, truths, sources.values())

    scored = {}
    failures = []
    for case, paths in progress(cases.items(), "cases", len(cases)):
        try:
            label = merge(paths, list(sources.values()))
            fine = write_case(out, case, label, truths[case] if scoring.by_wine else None)
            if case in truths:
                scored[case] = scoring.update(case, label, fine)
        except (InputError, MemoryError) as error:
            # Some sentences begin with the case's name already.
            failures.append(f"{case}: {reason(error)}".replace(f"{case}: {case}", case))
        except OSError as error:
            failures.append(f"{case}: {error.filename or 'a file'} cannot be read or written ({error.strerror})")
    print(f"{len(cases) - len(failures)} of {len(cases)} cases done, in {out}")
    if truths:
        scoring.write()  # without the rows that a failed case had before it changed
    if scored:
        rows = [row for each in scored.values() for row in each]
        summarise(rows, out / f"summary_{scoring.kind}.csv")
    if failures:
        raise InputError(f"{len(failures)} of {len(cases)} cases failed: " + "; ".join(failures))


def write_case(out: Path, case: str, label: Volume, encrypted_truth: Path | None) -> Volume:
    """Write a case's label map on the image's grid and at 1 mm; return the latter.

    The latter is on the encrypted ground truth's own grid where there is one, as the scorer compares voxel by voxel.
    """
    if encrypted_truth is None:
        fine = resample_nearest(label, SPACING_MM)
    else:
        fine = onto_encrypted_truth(label, encrypted_truth)
    write_volume(out / f"{case}_label.nii.gz", label.data, label.grid.affine, label.grid.header)
    write_volume(fine_path(out, case), fine.data, fine.grid.affine, fine.grid.header)
    return fine


def fine_path(out: Path, case: str) -> Path:
    """The file of a case's label map at 1 mm."""
    return out / f"{case}_label_1mm.nii.gz"


@dataclass
class Scoring:
    """How cases are scored, and the table of scores, of which scores_<kind>.csv in the output folder is a copy."""

    out: Path
    truths: dict[str, Path]  # each case's ground truth
    by_wine: (
        bool  # the challenge's scorer compares, with encrypted ground truths; else our own metrics, with plain ones
    )
    structures: list[str]  # that are submitted
    rescore: bool
    table: dict[str, list[Row]]  # the rows of each case

    @property
    def kind(self) -> str:
        """What the files of scores are called."""
        return "wine" if self.by_wine else "plain"

    def update(self, case: str, label: Volume, fine: Volume) -> list[Row]:
        """The rows of a case, from the table where the case was scored as it is now, else computed and written."""
        truth = self.truths[case]
        compared = fine if self.by_wine else onto_truth(label, truth)
        key = fingerprint(compared, truth, self.structures)
        # Rows of what the case was before go first: where scoring fails, none must be left.
        if not up_to_date(self.table.get(case, []), key, self.structures):
            self.table.pop(case, None)
        if self.rescore or case not in self.table:
            if self.by_wine:
                scores = score_by_wine(fine_path(self.out, case), truth, case, self.structures)
            else:
                scores = score(compared, truth, self.structures)
            self.table[case] = [{"case": case, **row, "fingerprint": key} for row in scores]
            self.write()
        return self.table[case]

    def write(self) -> None:
        """Write the table."""
        write_scores(scores_path(self.out, self.kind), self.table)


def scores_path(out: Path, kind: str) -> Path:
    """The file of the table of scores."""
    return out / f"scores_{kind}.csv"


def begin_scoring(
    arguments: argparse.Namespace, out: Path, truths: dict[str, Path], submitted: Iterable[list[str]]
) -> Scoring:
    """The scoring that the command line asks for, with the scores of earlier runs; `submitted` is each folder's
    structures."""
    named = {name for names in submitted for name in names}
    structures = [name for name in VALUES if name in named]
    by_wine = arguments.encrypted_gt_dir is not None
    scoring = Scoring(out, truths, by_wine, structures, arguments.rescore, table={})
    if truths:
        scoring.table = read_scores(scores_path(out, scoring.kind))
    return scoring


def input_folders(arguments: argparse.Namespace) -> dict[Path, list[str]]:
    """The folders to read and the structures that each holds; InputError unless one way to name them is taken."""
    names = ("--input_dir", "--input_dir_lv", "--input_dir_la")
    given = [name for name in names if getattr(arguments, name[2:]) is not None]
    if given not in (["--input_dir"], ["--input_dir_lv", "--input_dir_la"]):
        raise InputError(
            f"input: wanted --input_dir, or --input_dir_lv and --input_dir_la, found {', '.join(given) or 'neither'}"
        )
    if None not in (arguments.encrypted_gt_dir, arguments.gt_dir):
        raise InputError("ground truth: wanted one of --encrypted_gt_dir and --gt_dir, found both")
    if arguments.input_dir is not None:
        return {Path(arguments.input_dir): list(VALUES)}
    lv = Path(arguments.input_dir_lv)
    la = Path(arguments.input_dir_la)
    if lv.resolve() == la.resolve():
        raise InputError(
            f"--input_dir_la: wanted another folder than --input_dir_lv, found {arguments.input_dir_la} for both"
        )
    return {lv: ["LV"], la: ["LA"]}


def match_cases(sources: Iterable[Path]) -> dict[str, list[Path]]:
    """Each case's label maps, one per folder, matched by name; InputError where the folders hold other cases."""
    found = {}
    for folder in sources:
        names = [path.name.removesuffix(ENDING) for path in folder.glob(f"[!.]*{ENDING}")]
        if not names:
            raise InputError(f"{folder}: wanted files <case>{ENDING}, found none")
        found[folder] = sorted(names)
    first, cases = next(iter(found.items()))
    for folder, names in found.items():
        lacking = sorted(set(cases) ^ set(names))
        if lacking:
            raise InputError(
                f"{folder}: wanted the same cases as in {first}, found {', '.join(lacking[:5])} in one of them alone"
            )
    paths = {}
    for case in cases:
        paths[case] = [folder / f"{case}{ENDING}" for folder in found]
    return paths


def find_truths(arguments: argparse.Namespace, cases: list[str]) -> dict[str, Path]:
    """Each case's ground truth, or none; InputError before any work where a file, the scorer or wine is missing."""
    paths = {}
    if arguments.gt_dir is not None:
        for case in cases:
            paths[case] = Path(arguments.gt_dir) / f"{case}_label.nii.gz"
    elif arguments.encrypted_gt_dir is not None:
        folder = Path(arguments.encrypted_gt_dir)
        check_scorer(folder)
        for case in cases:
            modality_and_number(case)  # the scorer asks for them: refuse other names before any work
            paths[case] = folder / "nii" / f"{case}_label_encrypt_1mm.nii.gz"
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        others = f", nor {len(missing) - 1} others" if missing[1:] else ""
        raise InputError(
            f"{missing[0]}: wanted a ground truth for each of {len(cases)} cases, found no such file{others}"
        )
    return paths


def check_scorer(folder: Path) -> None:
    """Raise InputError unless the challenge's folder holds its scorer and wine is there to run it."""
    if not (folder / SCORER).is_file():
        raise InputError(f"{folder / SCORER}: wanted the challenge's scorer, found no such file")
    if not shutil.which("wine"):
        raise InputError(
            "wine: wanted this program on the PATH to run the challenge's scorer, found none; install"
            " it (Debian: apt install wine, macOS: brew install --cask wine-stable)"
        )


def check_output(out: Path, sources: list[Path], cases: list[str]) -> None:
    """Make the output folder; InputError where it holds files that are read, which must not be written over."""
    check_path(str(out), "output_dir")
    if out.resolve() in {folder.resolve() for folder in sources}:
        raise InputError(f"output_dir: wanted another folder than those that are read, found {out}")
    for case in cases:
        image = out / f"{case}_image.nii.gz"
        if image.exists():
            raise InputError(
                f"output_dir: wanted a folder without images, whose labels would be written over, found {image}"
            )
    make_folder(out, "output_dir")


def modality_and_number(case: str) -> tuple[str, str]:
    """The two parts of a case's name in MM-WHS: "ct_test_2018" is "ct" and "2018"; InputError for other names."""
    found = re.fullmatch(r"(ct|mr)_[a-z]+_(\d+)", case)
    if not found:
        raise InputError(f"{case}: wanted a case named as in MM-WHS, such as ct_test_2018, to be scored")
    return found[1], found[2]


def _read_labels_aloud(path: Path) -> Volume:
    """A label map; what is doubtful about its file is printed as a warning."""
    labels = read_labels(path)
    for warning in labels.warnings:
        tqdm.write(f"warning: {warning}", file=sys.stderr)
    return labels


def merge(paths: list[Path], structures: list[list[str]]) -> Volume:
    """One label map int16 of a case from a file per folder, each with the structures to take from it.

    A voxel that two structures claim goes to the one in which it lies deeper. InputError where the files have different
    grids or hold other values than those of their structures.
    """
    maps = [_read_labels_aloud(path) for path in paths]
    for path, names, labels in zip(paths, structures, maps, strict=True):
        check_same_grid(path, maps[0].grid, labels.grid, str(paths[0]))
        check_values(path, labels, names)
    masks = []
    merged = []
    for names, labels in zip(structures, maps, strict=True):
        for name in names:
            masks.append(np.isin(labels.data, VALUES[name]))
            merged.append(name)
    submitted = Structures(tuple(merged), tuple(VALUES[name] for name in merged), ((),) * len(merged))
    return Volume(masks_to_labelmap(masks, submitted, maps[0].grid), maps[0].grid)


def check_values(path: Path, labels: Volume, structures: list[str]) -> None:
    """Raise InputError where a label map holds values of other structures than these."""
    wanted = {0}
    for name in structures:
        wanted.update(VALUES[name])
    others = sorted(set(np.unique(labels.data).tolist()) - wanted)
    if others:
        raise InputError(
            f"{path}: wanted the label values {', '.join(map(str, sorted(wanted)))}, found"
            f" {', '.join(map(str, others[:5]))}"
        )


def onto_truth(label: Volume, path: Path) -> Volume:
    """The label map on a ground truth's own grid; prints a line where their fields of view differ by much."""
    grid = read_grid(path)
    cut = share_outside(predicted_points(label), grid)
    missed = share_outside(field_points(grid), label.grid)
    if cut > LABEL_CUT:
        tqdm.write(f"{path}: {cut:.0%} of what is predicted lies outside this ground truth's grid and is not scored")
    if missed > FIELD_MISSED:
        tqdm.write(f"{path}: {missed:.0%} of this ground truth's grid lies outside the image and counts as background")
    try:
        return resample_nearest_onto(label, grid)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def onto_encrypted_truth(label: Volume, path: Path) -> Volume:
    """The label map on an encrypted ground truth's own grid, or where its header cannot be read at SPACING_MM.

    The header alone is read: the voxels mean nothing here, and it is for the scorer to say whether they are intact.
    """
    try:
        return onto_truth(label, path)
    except InputError as error:
        tqdm.write(f"{error}; so the prediction is scored at {SPACING_MM:g} mm over the image's own field of view")
        return resample_nearest(label, SPACING_MM)


def predicted_points(label: Volume) -> np.ndarray:
    """The world positions (N, 3) in mm of labelled voxels, evenly chosen where there are many."""
    voxels = np.argwhere(label.data)
    every = len(voxels) // PREDICTED_POINTS + 1
    return transform(label.grid.affine, voxels[::every].astype(np.float64))


def field_points(grid: Grid) -> np.ndarray:
    """A lattice over a grid's field of view: world positions (N, 3) in mm."""
    steps = np.argwhere(np.ones((FIELD_POINTS,) * 3))
    # A field of view reaches half a voxel beyond the centres of the outermost voxels.
    voxels = (steps + 0.5) / FIELD_POINTS * grid.shape - 0.5
    return transform(grid.affine, voxels)


def share_outside(points_mm: np.ndarray, grid: Grid) -> float:
    """How many of the points (N, 3) in world mm lie outside a grid's field of view, 0 to 1; 0 where there are none."""
    voxels = transform(np.linalg.inv(grid.affine), points_mm)
    high = np.array(grid.shape) - 0.5
    outside = ((voxels < -0.5) | (voxels > high)).any(1)
    return float(np.mean(outside)) if len(points_mm) else 0.0


def fingerprint(label: Volume, truth: Path, structures: list[str]) -> str:
    """A digest of what a score is computed from, which changes with any of it.

    That is the label map as it is compared, its structures, the ground truth, and the scorer where one is used.
    """
    digest = hashlib.sha256(np.ascontiguousarray(label.data).tobytes())
    digest.update(label.grid.affine.tobytes())
    digest.update(" ".join(structures).encode())
    digest.update(truth.read_bytes())
    scorer = truth.parents[1] / SCORER
    if truth.parent.name == "nii" and scorer.exists():
        digest.update(scorer.read_bytes())
    return digest.hexdigest()[:16]


def up_to_date(rows: list[Row], key: str, structures: list[str]) -> bool:
    """Whether a case's rows are those of this fingerprint, complete, and with Dice values that are possible."""
    if [row["structure"] for row in rows] != columns(structures):
        return False
    # A structure that neither holds has no number; nan is neither below 0 nor above 1.
    return all(row["fingerprint"] == key and not row["dice"] < 0 and not row["dice"] > 1 for row in rows)


def columns(structures: list[str]) -> list[str]:
    """What a case is scored for: its structures, and all of them together where they are a whole heart."""
    return list(COLUMNS) if len(structures) == len(VALUES) else structures


def score(label: Volume, path: Path, structures: list[str]) -> list[Row]:
    """Our own metrics of a label map against a plain ground truth on the same grid, a row per structure."""
    truth = _read_labels_aloud(path)
    if not np.isin(truth.data, ALL_VALUES).any():
        raise InputError(f"{path}: wanted some of the label values {', '.join(map(str, ALL_VALUES))}, found none")
    rows = []
    for name in columns(structures):
        values = VALUES.get(name, ALL_VALUES)
        predicted = np.isin(label.data, values)
        reference = np.isin(truth.data, values)
        row = {"structure": name, "dice": dice(predicted, reference)}
        row.update(surface_distances(predicted, reference, label.grid))
        rows.append(row)
    return rows


def score_by_wine(path: Path, truth: Path, case: str, structures: list[str]) -> list[Row]:
    """The Dice that the challenge's scorer appends to a table of its own, a row per structure submitted."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        table = Path(folder) / "dice.csv"
        run = run_scorer(path, truth, case, table)
        lines = table.read_text(errors="replace").splitlines() if table.is_file() else []
    lines = [line for line in lines if line.strip()]
    if run.returncode or len(lines) != 1:
        output = (run.stdout + run.stderr).decode(errors="replace")
        said = output.strip().rpartition("\n")[-1].strip() or "nothing"
        raise InputError(
            f"{case}: wanted one row from {SCORER}, found {len(lines)} and exit status {run.returncode}; it"
            f" said: {said[:QUOTED]}"
        )
    return parse_row(lines[0], case, structures)


def run_scorer(path: Path, truth: Path, case: str, table: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the scorer, which lies in the folder above the ground truth's, until it ends or SECONDS have passed."""
    modality, number = modality_and_number(case)
    wine = os.path.abspath(shutil.which("wine") or "wine")
    files = [windows_path(path), windows_path(truth), "0", "ALL", windows_path(table)]
    command = [wine, SCORER, *files, modality, number, "--decodeseg2"]
    try:
        return subprocess.run(
            command,
            cwd=truth.parents[1],
            env={"WINEDEBUG": "-all"} | os.environ,  # wine's own messages off, unless the user wants them
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{case}: wanted a score from {SCORER}, found it running after {SECONDS} s") from error
    except OSError as error:
        raise InputError(f"{command[0]}: wanted a program that runs, found none ({error.strerror})") from error


def windows_path(path: Path) -> str:
    """What a program under wine calls a file: wine shows the root folder as drive Z."""
    return "Z:" + str(path.resolve()).replace("/", "\\")


def parse_row(text: str, case: str, structures: list[str]) -> list[Row]:
    """The scorer's row as a row per structure; InputError where it is not as expected.

    It has tabs between eight numbers, an empty field, the case's modality and number, and the flag.
    """
    modality, number = modality_and_number(case)
    fields = [field.strip() for field in text.split("\t")]
    numbers = fields[: len(COLUMNS)]
    rest = [field for field in fields[len(COLUMNS) :] if field]
    of_case = rest[:1] in ([modality + number], [number])
    if not (len(numbers) == len(COLUMNS) and all(map(is_dice, numbers)) and of_case):
        raise InputError(
            f"{case}: wanted {len(COLUMNS)} Dice values and the case's name from {SCORER}, found {text[:QUOTED]!r}"
        )
    rows: list[Row] = []
    for name, value in zip(COLUMNS, numbers, strict=True):
        if name in columns(structures):
            rows.append({"structure": name, "dice": float(value)})
    return rows


def is_dice(text: str) -> bool:
    """Whether a field is a number of 0 to 1 as the scorer writes it."""
    return bool(re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text)) and float(text) <= 1


def read_scores(path: Path) -> dict[str, list[Row]]:
    """The rows of an earlier table of scores by case, numbers as numbers; none where there is no such file."""
    if not path.exists():
        return {}
    table: dict[str, list[Row]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) not in (KEYS_BY_WINE, KEYS_OF_OURS):
                raise KeyError(reader.fieldnames)
            for line in reader:
                table.setdefault(line["case"], []).append(parse_scores(line))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: wanted a table that this script wrote, found another; move it away") from error
    return table


def parse_scores(line: dict[str, str]) -> Row:
    """A line of the table with its numbers as floats."""
    row: Row = {}
    for key, value in line.items():
        row[key] = value if key in KEYS_OF_TEXT else float(value)
    return row


def write_scores(path: Path, table: dict[str, list[Row]]) -> None:
    """The rows of all cases, sorted by case; no file where there are none."""
    if table:
        write_table(path, [row for case in sorted(table) for row in table[case]])
    else:
        path.unlink(missing_ok=True)


def summarise(rows: list[Row], path: Path) -> None:
    """Print and write the mean and standard deviation of every metric over the cases, per structure."""
    metrics = [key for key in rows[0] if key not in KEYS_OF_TEXT]
    print(f"{'structure':<16}{'cases':>6}" + "".join(f"{key:>20}" for key in metrics))
    table = []
    for name in COLUMNS:
        chosen = [row for row in rows if row["structure"] == name and not np.isnan(row["dice"])]
        if not chosen:  # not submitted, or neither predicted nor labelled in any case
            continue
        line = f"{name:<16}{len(chosen):>6}"
        summary: Row = {"structure": name, "cases": len(chosen)}
        for key in metrics:
            values = [row[key] for row in chosen]
            line += f"{mean_and_deviation(values):>20}"
            summary[f"{key}_mean"] = float(np.mean(values))
            summary[f"{key}_std"] = float(np.std(values)) if np.isfinite(values).all() else float("nan")
        print(line)
        table.append(summary)
    if table:
        write_table(path, table)


if __name__ == "__main__":
    run_script(main)
