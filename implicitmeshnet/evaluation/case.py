"""One case of an evaluation, from its files to the surfaces that the network finds in it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from implicitmeshnet.data.dataset import Case, read_case
from implicitmeshnet.data.volume import Volume
from implicitmeshnet.phases import Stopwatch
from implicitmeshnet.predict import Predictor, Surfaces, View
from implicitmeshnet.report.page import page_image
from implicitmeshnet.surfaces.labelmap import Mesh


@dataclass(frozen=True, eq=False)
class Input:
    """One case as it was read."""

    view: View
    labels: Volume | None
    shown: np.ndarray | None  # as the report's page has it


@dataclass(frozen=True, eq=False)
class Result:
    """What the evaluation of one case gives."""

    case: Case
    labels: Volume | None  # None where there is none, or none of the structures in it
    surfaces: Surfaces
    meshes: list[Mesh]  # as they are written: subdivided on request
    warnings: list[str]
    seconds: float  # for reading and predicting
    clock: Stopwatch
    shown: np.ndarray | None  # the image as the report's page has it, None without a report


def read_input(predictor: Predictor, report: bool, case: Case) -> Input:
    """Read one case, of its image what the network and the report are to see: its own voxels are kept no longer."""
    clock = Stopwatch()
    image, labels = read_case(case)
    clock.lap("read")
    view = predictor.look(image)
    clock = Stopwatch(clock.seconds | view.seconds)
    shown = page_image(image, view.sample.grid) if report else None
    clock.lap("report")
    return Input(view._replace(seconds=clock.seconds), labels, shown)


def evaluate_case(predictor: Predictor, case: Case, take: Callable[[], Input], subdivisions: int) -> Result:
    """Predict the surfaces of one case, which `take` gives; says what is doubtful about them. Nothing is written."""
    given = take()
    surfaces = predictor.surfaces_of(given.view)
    warnings = list(surfaces.warnings)
    labels = given.labels
    if labels is not None:
        warnings += labels.warnings
        if not surfaces.structures.any_in(labels.data):
            warnings.append(f"{case.label}: has none of the label values of data.structures, so there are no metrics")
            labels = None
    meshes = predictor.subdivided(surfaces, subdivisions)
    seconds = surfaces.seconds
    return Result(case, labels, surfaces, meshes, warnings, sum(seconds.values()), Stopwatch(seconds), given.shown)
