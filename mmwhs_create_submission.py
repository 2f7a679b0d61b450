"""Evaluated label maps -> an MM-WHS submission, and its Dice by the challenge's scorer under wine.

    python mmwhs_create_submission.py --input_dir_lv=test_out_lv --input_dir_la=test_out_la test_out
    python mmwhs_create_submission.py --input_dir=test_out_wh test_out [--encrypted_gt_dir=... | --gt_dir=...]

Reads <case>_mesh_labelmap.nii.gz, as implicitmeshnet_eval.py leaves them. Writes per case <case>_label.nii.gz on the
image's own grid and <case>_label_1mm.nii.gz, int16 with the challenge's values, the latter on the encrypted ground
truth's own grid where one is given; with a ground truth scores_wine.csv or scores_plain.csv, a row per case and
structure, and a summary. A case that was scored as it is now is not scored again without --rescore.
"""

from implicitmeshnet.script import exit_at_interrupt

if __name__ == "__main__":
    exit_at_interrupt()  # also in the seconds that the imports below take

import argparse
import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import check_same_grid
from implicitmeshnet.data.nifti import read_grid, read_labels, write_volume
from implicitmeshnet.data.volume import Grid, Volume, resample_nearest, resample_nearest_onto
from implicitmeshnet.script import QUOTED, InputError, check_path, make_folder, reason, run_script, write_table
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.labelmap import masks_to_labelmap
from implicitmeshnet.surfaces.metrics import dice, mean_and_deviation, surface_distances

VALUES = {"LV": (500,), "Myo": (205,), "RV": (600,), "LA": (420, 421), "RA": (550,), "AO": (820,), "PA": (850,)}
"""MM-WHS label values, the first the one to write, in the order of the scorer's columns."""
COLUMNS = (*VALUES, "whole heart")
ALL_VALUES = [value for values in VALUES.values() for value in values]
ENDING = "_mesh_labelmap.nii.gz"
SPACING_MM = 1.0
SCORER = "zxhCardWhsEvaluate.exe"
LABEL_CUT, FIELD_MISSED = 0.01, 0.05
"""Shares outside the other's field of view, of what is predicted and of the ground truth's grid, above which a case
gets a warning; another rounding of one field of view stays below both."""
PREDICTED_POINTS = 100_000  # that measure the former
FIELD_POINTS = 25  # that measure the latter, along each axis
SECONDS = 1800  # that the scorer may take for a case
KEYS_BY_WINE = ("case", "structure", "dice", "fingerprint")
KEYS_OF_OURS = ("case", "structure", "dice", "assd_mm", "hd95_mm", "fingerprint")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", help="folder for the submission, made where missing")
    parser.add_argument("--input_dir", help="results of a whole-heart network")
    parser.add_argument("--input_dir_lv", help="results of a left ventricle's network, with --input_dir_la")
    parser.add_argument("--input_dir_la", help="results of a left atrium's network, with --input_dir_lv")
    parser.add_argument("--encrypted_gt_dir", help=f"the challenge's folder with nii/ and {SCORER}: score through wine")
    parser.add_argument("--gt_dir", help="folder of plain <case>_label.nii.gz: score without wine")
    parser.add_argument("--rescore", action="store_true", help="score again what was scored already")
    arguments = parser.parse_args()
    sources = input_folders(arguments)
    cases = match_cases(sources)
    truths = find_truths(arguments, list(cases))
    out = Path(arguments.output_dir)
    check_output(out, [*sources, *(path.parent for path in truths.values())], list(cases))
    structures = [name for name in VALUES if any(name in names for names in sources.values())]
    kind = "plain" if arguments.gt_dir is not None else "wine"
    table = read_scores(out / f"scores_{kind}.csv") if truths else {}

    scored, failures = {}, []
    for case, paths in tqdm(cases.items(), desc="cases"):
        try:
            label = merge(paths, list(sources.values()))
            truth = truths.get(case)
            encrypted = truth is not None and kind == "wine"
            fine = onto_encrypted_truth(label, truth) if encrypted else resample_nearest(label, SPACING_MM)
            write_volume(out / f"{case}_label.nii.gz", label.data, label.grid.affine, label.grid.header)
            write_volume(out / f"{case}_label_1mm.nii.gz", fine.data, fine.grid.affine, fine.grid.header)
            if truth is None:
                continue
            compared = fine if encrypted else onto_truth(label, truth)
            key = fingerprint(compared, truth, structures)
            if not up_to_date(table.get(case, []), key, structures):
                table.pop(case, None)
            if arguments.rescore or case not in table:
                scores = (
                    score_by_wine(out / f"{case}_label_1mm.nii.gz", truth, case, structures)
                    if encrypted
                    else score(compared, truth, structures)
                )
                table[case] = [{"case": case, **row, "fingerprint": key} for row in scores]
                write_scores(out / f"scores_{kind}.csv", table)
            scored[case] = table[case]
        except (InputError, MemoryError) as error:
            failures.append(f"{case}: {reason(error)}".replace(f"{case}: {case}", case))
        except OSError as error:
            failures.append(f"{case}: {error.filename or 'a file'} cannot be read or written ({error.strerror})")
    print(f"{len(cases) - len(failures)} of {len(cases)} cases done, in {out}")
    if truths:
        write_scores(out / f"scores_{kind}.csv", table)  # without the rows that a failed case had before it changed
    if scored:
        summarise([row for rows in scored.values() for row in rows], out / f"summary_{kind}.csv")
    if failures:
        raise InputError(f"{len(failures)} of {len(cases)} cases failed: " + "; ".join(failures))


def input_folders(arguments) -> dict[Path, list[str]]:
    """The folders to read and the structures that each holds."""
    one, two = arguments.input_dir, (arguments.input_dir_lv, arguments.input_dir_la)
    if (one is None) == (two == (None, None)) or None in two != (None, None):
        raise InputError(
            "input: wanted --input_dir, or --input_dir_lv and --input_dir_la, found "
            + (
                ", ".join(
                    name
                    for name in ("--input_dir", "--input_dir_lv", "--input_dir_la")
                    if getattr(arguments, name[2:]) is not None
                )
                or "neither"
            )
        )
    if None not in (arguments.encrypted_gt_dir, arguments.gt_dir):
        raise InputError("ground truth: wanted one of --encrypted_gt_dir and --gt_dir, found both")
    if one is not None:
        return {Path(one): list(VALUES)}
    if Path(two[0]).resolve() == Path(two[1]).resolve():
        raise InputError(f"--input_dir_la: wanted another folder than --input_dir_lv, found {two[1]} for both")
    return {Path(two[0]): ["LV"], Path(two[1]): ["LA"]}


def match_cases(sources) -> dict[str, list[Path]]:
    """Each case's label maps, one per folder, matched by name; InputError where the folders hold other cases."""
    found = []
    for folder in sources:
        names = sorted(path.name.removesuffix(ENDING) for path in folder.glob(f"[!.]*{ENDING}"))
        if not names:
            raise InputError(f"{folder}: wanted files <case>{ENDING}, found none")
        found.append(names)
    for folder, names in zip(sources, found, strict=True):
        lacking = sorted(set(found[0]) ^ set(names))
        if lacking:
            raise InputError(
                f"{folder}: wanted the same cases as in {next(iter(sources))}, found"
                f" {', '.join(lacking[:5])} in one of them alone"
            )
    return {name: [folder / f"{name}{ENDING}" for folder in sources] for name in found[0]}


def find_truths(arguments, cases: list[str]) -> dict[str, Path]:
    """Each case's ground truth, or none; InputError before any work where a file, the scorer or wine is missing."""
    if arguments.gt_dir is not None:
        paths = {case: Path(arguments.gt_dir) / f"{case}_label.nii.gz" for case in cases}
    elif arguments.encrypted_gt_dir is not None:
        folder = Path(arguments.encrypted_gt_dir)
        if not (folder / SCORER).is_file():
            raise InputError(f"{folder / SCORER}: wanted the challenge's scorer, found no such file")
        if not shutil.which("wine"):
            raise InputError(
                "wine: wanted this program on the PATH to run the challenge's scorer, found none; install"
                " it (Debian: apt install wine, macOS: brew install --cask wine-stable)"
            )
        paths = {case: folder / "nii" / f"{case}_label_encrypt_1mm.nii.gz" for case in cases}
        for case in cases:
            modality_and_number(case)
    else:
        return {}
    missing = [path for path in paths.values() if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: wanted a ground truth for each of {len(cases)} cases, found no such file"
            + (f", nor {len(missing) - 1} others" if missing[1:] else "")
        )
    return paths


def check_output(out: Path, sources: list[Path], cases: list[str]):
    """Refuse a folder whose files are somebody's input: nothing read may be written over."""
    check_path(str(out), "output_dir")
    if out.resolve() in {folder.resolve() for folder in sources}:
        raise InputError(f"output_dir: wanted another folder than those that are read, found {out}")
    images = [out / f"{case}_image.nii.gz" for case in cases if (out / f"{case}_image.nii.gz").exists()]
    if images:
        raise InputError(
            f"output_dir: wanted a folder without images, whose labels would be written over, found {images[0]}"
        )
    make_folder(out, "output_dir")


def modality_and_number(case: str) -> tuple[str, str]:
    found = re.fullmatch(r"(ct|mr)_[a-z]+_(\d+)", case)
    if not found:
        raise InputError(f"{case}: wanted a case named as in MM-WHS, such as ct_test_2018, to be scored")
    return found[1], found[2]


def _read_labels_aloud(path: Path) -> Volume:
    """A label map; what is doubtful about its file is said."""
    labels = read_labels(path)
    for warning in labels.warnings:
        tqdm.write(f"warning: {warning}", file=sys.stderr)
    return labels


def merge(paths: list[Path], structures: list[list[str]]) -> Volume:
    """One label map int16 of a case; a voxel that two maps claim goes to the one in which it lies deeper."""
    maps = [_read_labels_aloud(path) for path in paths]
    for path, names, labels in zip(paths, structures, maps, strict=True):
        check_same_grid(path, maps[0].grid, labels.grid, str(paths[0]))
        wanted = {0, *(value for name in names for value in VALUES[name])}
        others = sorted(set(np.unique(labels.data).tolist()) - wanted)
        if others:
            raise InputError(
                f"{path}: wanted the label values {', '.join(map(str, sorted(wanted)))}, found"
                f" {', '.join(map(str, others[:5]))}"
            )
    masks = []
    merged = []
    for names, labels in zip(structures, maps, strict=True):
        for name in names:
            masks.append(np.isin(labels.data, VALUES[name]))
            merged.append(name)
    submitted = Structures(tuple(merged), tuple(VALUES[name] for name in merged), ((),) * len(merged))
    return Volume(masks_to_labelmap(masks, submitted, maps[0].grid), maps[0].grid)


def onto_truth(label: Volume, path: Path) -> Volume:
    """The label map on a ground truth's own grid; a line where one's field of view misses much of the other's."""
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
    return transform(grid.affine, (steps + 0.5) / FIELD_POINTS * grid.shape - 0.5)


def share_outside(points_mm: np.ndarray, grid: Grid) -> float:
    """How many of the points (N, 3) in world mm lie outside a grid's field of view, 0 to 1; 0 where there are none."""
    voxels = transform(np.linalg.inv(grid.affine), points_mm)
    outside = ((voxels < -0.5) | (voxels > np.array(grid.shape) - 0.5)).any(1)
    return float(outside.mean()) if len(outside) else 0.0


def fingerprint(label: Volume, truth: Path, structures: list[str]) -> str:
    """What a score was computed from: the label map as it is compared, its structures, the ground truth and the scorer
    beside it."""
    digest = hashlib.sha256(np.ascontiguousarray(label.data).tobytes() + label.grid.affine.tobytes())
    digest.update(" ".join(structures).encode() + truth.read_bytes())
    scorer = truth.parents[1] / SCORER
    digest.update(scorer.read_bytes() if truth.parent.name == "nii" and scorer.exists() else b"")
    return digest.hexdigest()[:16]


def up_to_date(rows: list[dict], key: str, structures: list[str]) -> bool:
    """Whether a case's rows are those of this fingerprint, whole and sound."""
    return [row["structure"] for row in rows] == columns(structures) and all(
        row["fingerprint"] == key and not row["dice"] < 0 and not row["dice"] > 1 for row in rows
    )


def columns(structures: list[str]) -> list[str]:
    """What a case is scored for: its structures, and all of them together where they are a whole heart."""
    return list(COLUMNS) if len(structures) == len(VALUES) else structures


def score(label: Volume, path: Path, structures: list[str]) -> list[dict]:
    """Our own metrics of a label map against a plain ground truth on the same grid, a row per structure."""
    truth, rows = _read_labels_aloud(path), []
    if not np.isin(truth.data, ALL_VALUES).any():
        raise InputError(f"{path}: wanted some of the label values {', '.join(map(str, ALL_VALUES))}, found none")
    for name in columns(structures):
        values = VALUES.get(name, ALL_VALUES)
        predicted, reference = np.isin(label.data, values), np.isin(truth.data, values)
        rows.append(
            {
                "structure": name,
                "dice": dice(predicted, reference),
                **surface_distances(predicted, reference, label.grid.spacing_mm),
            }
        )
    return rows


def score_by_wine(path: Path, truth: Path, case: str, structures: list[str]) -> list[dict]:
    """The Dice that the challenge's scorer appends to a table of its own, a row per structure submitted."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        table = Path(folder) / "dice.csv"
        modality, number = modality_and_number(case)
        command = [
            os.path.abspath(shutil.which("wine")),
            SCORER,
            windows_path(path),
            windows_path(truth),
            "0",
            "ALL",
            windows_path(table),
            modality,
            number,
            "--decodeseg2",
        ]
        try:
            run = subprocess.run(
                command,
                cwd=truth.parents[1],
                env={"WINEDEBUG": "-all"} | os.environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{case}: wanted a score from {SCORER}, found it running after {SECONDS} s") from error
        except OSError as error:
            raise InputError(f"{command[0]}: wanted a program that runs, found none ({error.strerror})") from error
        rows = table.read_text(errors="replace").splitlines() if table.is_file() else []
    rows = [row for row in rows if row.strip()]
    if run.returncode or len(rows) != 1:
        said = (run.stdout + run.stderr).decode(errors="replace").strip().rpartition("\n")[-1].strip() or "nothing"
        raise InputError(
            f"{case}: wanted one row from {SCORER}, found {len(rows)} and exit status {run.returncode}; it"
            f" said: {said[:QUOTED]}"
        )
    return parse_row(rows[0], case, structures)


def windows_path(path: Path) -> str:
    """What a program under wine calls a file: wine shows the root folder as drive Z."""
    return "Z:" + str(path.resolve()).replace("/", "\\")


def parse_row(text: str, case: str, structures: list[str]) -> list[dict]:
    """The scorer's row: eight numbers, an empty field, modality and number of the case, the flag, tabs between."""
    fields, (modality, number) = [field.strip() for field in text.split("\t")], modality_and_number(case)
    numbers, rest = fields[: len(COLUMNS)], [field for field in fields[len(COLUMNS) :] if field]
    sound = (
        len(numbers) == len(COLUMNS)
        and all(re.fullmatch(r"[\d.]+(e[-+]?\d+)?", field) for field in numbers)
        and all(float(field) <= 1 for field in numbers)
        and rest[:1] in ([modality + number], [number])
    )
    if not sound:
        raise InputError(
            f"{case}: wanted {len(COLUMNS)} Dice values and the case's name from {SCORER}, found {text[:QUOTED]!r}"
        )
    return [
        {"structure": name, "dice": float(value)}
        for name, value in zip(COLUMNS, numbers, strict=True)
        if name in columns(structures)
    ]


def read_scores(path: Path) -> dict[str, list[dict]]:
    """The rows of an earlier table of scores by case, numbers as numbers; none where there is no such file."""
    if not path.exists():
        return {}
    table = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) not in (KEYS_BY_WINE, KEYS_OF_OURS):
                raise KeyError(reader.fieldnames)
            for row in reader:
                table.setdefault(row["case"], []).append(
                    {
                        key: value if key in ("case", "structure", "fingerprint") else float(value)
                        for key, value in row.items()
                    }
                )
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: wanted a table that this script wrote, found another; move it away") from error
    return table


def write_scores(path: Path, table: dict[str, list[dict]]):
    """The rows of all cases, sorted by case; no file where there are none."""
    if table:
        write_table(path, [row for case in sorted(table) for row in table[case]])
    else:
        path.unlink(missing_ok=True)


def summarise(rows: list[dict], path: Path):
    """Print and write the mean and standard deviation of every metric over the cases, per structure."""
    metrics = [key for key in rows[0] if key not in ("case", "structure", "fingerprint")]
    print(f"{'structure':<16}{'cases':>6}" + "".join(f"{key:>20}" for key in metrics))
    table = []
    for name in COLUMNS:
        chosen = [row for row in rows if row["structure"] == name and not np.isnan(row["dice"])]
        if not chosen:  # not submitted, or neither predicted nor labelled in any case
            continue
        print(
            f"{name:<16}{len(chosen):>6}"
            + "".join(f"{mean_and_deviation([row[key] for row in chosen]):>20}" for key in metrics)
        )
        row = {"structure": name, "cases": len(chosen)}
        for key in metrics:
            values = [score[key] for score in chosen]
            row[f"{key}_mean"] = float(np.mean(values))
            row[f"{key}_std"] = float(np.std(values)) if np.isfinite(values).all() else float("nan")
        table.append(row)
    if table:
        write_table(path, table)


if __name__ == "__main__":
    run_script(main)
