"""report.html of a shape model: a slider for each of its first modes, in the style of the evaluation's report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from implicitmeshnet.report.parts import blob, packed, write_page
from implicitmeshnet.shape_model.model import ShapeModel
from implicitmeshnet.shape_model.picture import enclosing
from implicitmeshnet.surfaces.figures import colours

MOST_SLIDERS = 10
"""More modes would make the page large, and move little."""


def write_model_page(path: Path, model: ShapeModel, rows: Sequence[dict]) -> None:
    """Write the page of a model, whole or not at all; `rows` are those of modes.csv.

    Raises InputError where the file cannot be written.
    """
    count = min(MOST_SLIDERS, len(model.modes.variances))
    deviations = np.sqrt(model.modes.variances[:count])
    moves = model.modes.directions[:count] * deviations[:, None, None]  # mm at one standard deviation
    blobs = [
        blob("faces", packed(model.parts.faces.astype("<u4").tobytes())),
        blob("mean-shape", packed(model.modes.mean.astype("<f4").tobytes())),
        blob("mode-shapes", packed(moves.astype("<f4").tobytes())),
    ]
    write_page(path, __package__, page_tree(model, rows, count), blobs)


def page_tree(model: ShapeModel, rows: Sequence[dict], count: int) -> dict[str, Any]:
    """All of the page that is not packed; `count` modes have sliders."""
    parts = model.parts
    palette = colours(parts.names)
    described = []
    for name, holds in zip(parts.names, enclosing(parts, model.modes.mean), strict=True):
        described.append({"name": name, "colour": palette[name], "encloses": holds})
    cases = []
    for name, scores in zip(model.cases, model.scores[:, :count].tolist(), strict=True):
        cases.append({"name": name, "scores": scores})
    return {
        "structures": described,
        "vertices": len(model.modes.mean) // len(parts.names),
        "shown": count,
        "modes": list(rows),
        "cases": cases,
    }
