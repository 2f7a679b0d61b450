"""report.html: one page of all cases of an evaluation, which opens from a file and asks no network for anything.

A table of the cases, distributions, and per case meshes to turn and slices to go through. The data stand in the page:
figures as JSON; of each case vertices as uint16, the image in the network's box as uint8 and the label there, deflated
and in base64, which the page unpacks when the case is opened. Contours are where a slice cuts the meshes themselves, so
no label map of theirs is needed. The meshes are drawn by 80 lines of the page's own script: plotly's would be 4.5 MB
and want WebGL, which remote desktops often lack.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid, Volume, box_inside, in_order_of, resample_image, resample_nearest_onto
from implicitmeshnet.predict import Surfaces
from implicitmeshnet.report.parts import blob, packed, write_page
from implicitmeshnet.script import read_json, write_json
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.figures import colours, letters, plane_name
from implicitmeshnet.surfaces.metrics import LEAST_AGREEMENT
from implicitmeshnet.surfaces.quality import QUALITY

MOST_VOXELS = 96
"""Of the page's image along each axis."""
GREY_LEVELS = 64
"""More are not told apart on a screen beside contours, and their lowest bits are noise, which does not deflate."""
DARKEST, BRIGHTEST = 1.0, 99.8
"""Percentiles of the voxels in the box, shown as black and white."""
MOST_BYTES = 40_000_000
"""Of all cases' meshes and images in the page; the worst cases' come first, of the others the figures alone stand."""
FINEST_STEP = 2**16 - 1
"""Steps between the least and the largest coordinate of a case's vertices: a few micrometres each."""
SHOWN = (
    "dice", "hd95_mm", "assd_mm", "volume_ml", "mesh_volume_ml", "surface_mm2", "agreement", "self_intersecting_faces",
    "faces_crossing_others", "move_mean_mm", "move_p95_mm",
    *QUALITY,
)  # fmt: skip
"""Of the rows of `statistics.csv` what the page shows for each structure."""


@dataclass(frozen=True, eq=False)
class ReportedCase:
    """What the page has of one case; a file holds it until the page is written."""

    name: str
    seconds: float
    warnings: str
    figures: dict[str, dict[str, float | None]]  # of each structure by name, those of SHOWN
    view: dict[str, Any]  # where the page's grid lies, as JSON
    packed: str | None  # vertices, image and label, as `packed` makes it; None where the figures alone are kept

    @property
    def badness(self) -> float:
        """What cases are sorted by: what the mean Dice, or without a label the least agreement, lacks to 1."""
        found = [row["dice"] for row in self.figures.values() if row["dice"] is not None]
        if found:
            return 1 - sum(found) / len(found)
        agreed = [row["agreement"] for row in self.figures.values() if row["agreement"] is not None]
        return 1 - min(agreed, default=0.0)


def page_image(image: Volume, grid: Grid) -> np.ndarray:
    """What the page shows of an image, of which the network sees the box of `grid`: uint8 (X, Y, Z) on `page_grid`."""
    return grey_image(image, page_grid(grid))


def reported_case(seen: np.ndarray, labels: Volume | None, surfaces: Surfaces, rows: Sequence[dict]) -> ReportedCase:
    """What the page shows of a case: `seen`, which `page_image` made, and what was found in it.

    `rows` are those of its structures in statistics.csv, in the structures' order.
    """
    grid = page_grid(surfaces.sample.grid)
    vertices = transform(np.linalg.inv(grid.affine), surfaces.vertices)  # (S, V, 3) voxels
    low = vertices.min((0, 1))
    step = np.maximum(np.ptp(vertices, axis=(0, 1)), 1e-6) / FINEST_STEP
    coordinates = ((vertices - low) / step).round().astype("<u2")
    parts = [coordinates.tobytes(), seen.tobytes()]
    if labels is not None:
        classes = surfaces.structures.class_map(resample_nearest_onto(labels, grid).data)
        parts.append(np.where(surfaces.structures.ignored(classes), np.uint8(0), classes).tobytes())
    place = transform(np.linalg.inv(grid.affine), surfaces.vertices.mean((0, 1)))
    start = np.clip(place.round(), 0, np.array(grid.shape) - 1).astype(int)
    view = {**describe(grid), "low": low.tolist(), "step": step.tolist(), "start": start.tolist()}
    return ReportedCase(
        name=rows[0]["case"],
        seconds=rows[0]["seconds"],
        warnings=rows[0]["warnings"],
        figures={row["structure"]: {key: finite(row[key]) for key in SHOWN} for row in rows},
        view=view | {"labelled": labels is not None},
        packed=packed(b"".join(parts)),
    )


def page_grid(grid: Grid) -> Grid:
    """A grid of cubic voxels, at most MOST_VOXELS along each axis, over the box of the network's grid."""
    sides_mm = np.array(grid.shape) * grid.spacing_mm
    counts = np.maximum((sides_mm * MOST_VOXELS / sides_mm.max()).round(), 2).astype(int)
    steps = np.array(grid.shape) / counts  # in voxels of the network's grid
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, :3] * steps
    affine[:3, 3] = transform(grid.affine, (steps - 1) / 2)  # the middle of the first voxel
    x, y, z = counts.tolist()
    return Grid((x, y, z), affine)


def cut_to_box(volume: Volume, grid: Grid) -> Volume:
    """A volume without what lies outside a grid parallel to it, but for a margin, so that resampling is
    quick however large it is."""
    box = []
    for side, part in zip(volume.data.shape, box_inside(volume.grid, grid), strict=True):
        margin = 2 + int(np.ceil(max(grid.spacing_mm) / min(volume.grid.spacing_mm)))
        first = min(max(part.start - margin, 0), side - 1)
        box.append(slice(first, min(max(part.stop + margin, first + 1), side)))
    data = volume.data[tuple(box)]
    affine = volume.grid.affine.copy()
    affine[:3, 3] = transform(affine, np.array([part.start for part in box], dtype=np.float64))
    x, y, z = data.shape
    return replace(volume, data=data, others=(), grid=Grid((x, y, z), affine))


def grey_image(image: Volume, grid: Grid) -> np.ndarray:
    """An image's first channel on the page's grid, uint8 (X, Y, Z) in GREY_LEVELS; black outside the image."""
    seen = resample_image(cut_to_box(in_order_of(image, grid), grid), grid, background=np.nan)
    if not np.isfinite(seen).any():
        return np.zeros(grid.shape, np.uint8)
    darkest, brightest = np.nanpercentile(seen, (DARKEST, BRIGHTEST))
    rounding = 1e-3 * max(abs(darkest), abs(brightest), 1e-6)  # a range below it is no contrast
    share = np.nan_to_num((seen - darkest) / max(brightest - darkest, rounding)).clip(0, 1)
    levels = (share * (GREY_LEVELS - 1)).round()
    return (levels * (255 / (GREY_LEVELS - 1))).astype(np.uint8)


def describe(grid: Grid) -> dict[str, Any]:
    """Of a grid what the page needs to draw slices and to turn voxels into mm, as JSON."""
    axes = grid.affine[:3, :3]
    directions = axes / grid.spacing_mm
    ends = []
    for axis in range(3):
        ends.append([letters(-directions[:, axis]), letters(directions[:, axis])])
    return {
        "shape": list(grid.shape),
        "spacing_mm": grid.spacing_mm.tolist(),
        "axes": axes.tolist(),
        "letters": ends,
        "planes": [plane_name(directions, normal) for normal in range(3)],
    }


def worst_first(cases: Sequence[ReportedCase]) -> list[ReportedCase]:
    """The cases sorted, without meshes and images of those for which MOST_BYTES leave no room.

    Called after each case, it bounds the memory that hundreds of cases take.
    """
    room = MOST_BYTES
    kept = []
    for case in sorted(cases, key=lambda case: -case.badness):
        size = len(case.packed or "")
        if size > room:
            case = replace(case, packed=None)
        else:
            room -= size
        kept.append(case)
    return kept


def write_case_of_page(path: Path, case: ReportedCase) -> None:
    """Write what the page has of a case, whole or not at all. Raises InputError where the file cannot be written."""
    write_json(path, asdict(case))


def read_case_of_page(path: Path) -> ReportedCase:
    """What `write_case_of_page` wrote. Raises InputError where the file cannot be read."""
    return ReportedCase(**read_json(path, "a case of the report"))


def write_report(
    path: Path,
    structures: Structures,
    faces: np.ndarray,
    cases: Sequence[ReportedCase],
    settings: Mapping[str, str],
    failed: Mapping[str, str],
) -> None:
    """Write the page of at least one case, whole or not at all.

    Every mesh of every case has the `faces` (F, 3). `settings` says what the results were made with, a text by its
    name; `failed` has the sentence of each case that failed. Raises InputError where the file cannot be written.
    """
    ordered = worst_first(cases)
    blobs = [blob("faces", packed(faces.astype("<u4").tobytes()))]
    for number, case in enumerate(ordered):
        if case.packed is not None:
            blobs.append(blob(f"case-{number}", case.packed))
    tree = report_tree(ordered, structures, settings, failed) | {"vertices": int(faces.max()) + 1}
    write_page(path, __package__, tree, blobs)


def report_tree(
    cases: Sequence[ReportedCase], structures: Structures, settings: Mapping[str, str], failed: Mapping[str, str]
) -> dict[str, Any]:
    """All of the page that is not packed, but for the number of a mesh's vertices."""
    palette = colours(structures.names)
    described = []
    for name, inner in zip(structures.names, structures.encloses, strict=True):
        described.append({"name": name, "colour": palette[name], "encloses": bool(inner)})
    listed = []
    for number, case in enumerate(cases):
        listed.append(
            {
                "rank": number + 1,
                "name": case.name,
                "seconds": case.seconds,
                "warnings": case.warnings,
                "structures": case.figures,
                "view": case.view if case.packed is not None else None,
            }
        )
    return {
        "structures": described,
        "labelled": any(case.view["labelled"] for case in cases),
        "least_agreement": LEAST_AGREEMENT,
        "cases": listed,
        "failed": dict(failed),
        "settings": dict(settings),
    }


def finite(value: float | None) -> float | None:
    """A number as JSON can hold it."""
    return None if value is None or not math.isfinite(value) else float(value)
