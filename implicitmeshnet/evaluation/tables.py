"""The tables over all cases of an evaluation, and the summary that is printed of them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from implicitmeshnet.evaluation.rows import CHECKED, COMPARED, MEASURED, REPAIRED
from implicitmeshnet.records import Record
from implicitmeshnet.script import write_json, write_table
from implicitmeshnet.surfaces.metrics import mean_and_deviation
from implicitmeshnet.surfaces.quality import QUALITY


def write_tables(out: Path, finished: dict[str, Record], failed: dict[str, str]) -> list[dict]:
    """Write metrics.csv, statistics.csv and statistics.json, and give the rows; without any none of the files stays."""
    names = ("metrics.csv", "statistics.csv", "statistics.json")
    rows = [row for record in finished.values() for row in record.rows]
    if not rows:
        for name in names:
            (out / name).unlink(missing_ok=True)
        return rows
    overlaps = [key for key in rows[0] if key.startswith("overlap_")]
    columns = (
        "case",
        "structure",
        *MEASURED,
        *overlaps,
        *CHECKED,
        *REPAIRED,
        *QUALITY,
        *COMPARED,
        "seconds",
        "warnings",
    )
    statistics = [{key: row[key] for key in columns} for row in rows]
    metrics = [
        {key: value for key, value in row.items() if key not in ("surface_mm2", *REPAIRED, *QUALITY)} for row in rows
    ]
    for name, table in zip(names, (metrics, statistics), strict=False):
        write_table(out / name, table)
    phases = {name: record.phases for name, record in finished.items()}
    write_json(out / "statistics.json", {"cases": as_tree(statistics, phases), "failed": failed})
    return rows


def as_tree(rows: list[dict], phases: dict[str, dict[str, float]]) -> list[dict]:
    """Rows as one object per case, its structures by name; numbers that JSON lacks are null."""
    cases: dict[str, dict] = {}
    for row in rows:
        of_structure = {key: value for key, value in row.items() if key not in ("case", "structure")}
        shared = {key: of_structure.pop(key) for key in ("seconds", "warnings")}
        case = cases.setdefault(row["case"], {"case": row["case"], **shared, "phases": phases[row["case"]]})
        case.setdefault("structures", {})[row["structure"]] = {
            key: finite(value) for key, value in of_structure.items()
        }
    return list(cases.values())


def finite(value: object) -> object:
    """A value as JSON can hold it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_summary(rows: list[dict], structures: Sequence[str]) -> None:
    """Mean and standard deviation per structure over the cases, of metrics over those in which it is labelled."""
    print(
        f"{'structure':<16}{'cases':>6}{'Dice':>17}{'ASSD_mm':>20}{'HD95_mm':>20}{'crossing %':>13}{'others %':>11}"
        f"{'moved_mm':>11}{'UNet Dice':>17}{'agreement':>17}"
    )
    for name in structures:
        chosen = [row for row in rows if row["structure"] == name]
        labelled = [row for row in chosen if row["label_volume_ml"]]
        cells = []
        for key in ("dice", "assd_mm", "hd95_mm", "unet_dice"):
            cells.append(mean_and_deviation([row[key] for row in labelled]))
        agreement = mean_and_deviation([row["agreement"] for row in chosen if not np.isnan(row["agreement"])])
        crossing = 100 * np.mean([row["self_intersecting_faces"] / row["faces"] for row in chosen])
        others = 100 * np.mean([row["faces_crossing_others"] / row["faces"] for row in chosen])
        moved_mm = np.mean([row["move_mean_mm"] for row in chosen])
        print(
            f"{name:<16}{len(labelled):>6}{cells[0]:>17}{cells[1]:>20}{cells[2]:>20}{crossing:>13.3f}{others:>11.3f}{moved_mm:>11.3f}{cells[3]:>17}"
            f"{agreement:>17}"
        )
    doubtful = {row["case"] for row in rows if row["warnings"]}
    if doubtful:
        print(f"{len(doubtful)} of {len({row['case'] for row in rows})} cases with warnings, see statistics.csv")
