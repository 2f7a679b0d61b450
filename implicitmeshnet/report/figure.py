"""The figure of an evaluated case, for print: what `surfaces.case_figure` draws, of a prediction."""

from pathlib import Path

import numpy as np

from implicitmeshnet.data.volume import Grid, Volume, in_order_of, resample_labels
from implicitmeshnet.predict import Surfaces
from implicitmeshnet.surfaces.case_figure import case_figure
from implicitmeshnet.surfaces.figures import StructureView, save_figure
from implicitmeshnet.surfaces.metrics import volume_ml

ENDINGS = ("png", "svg", "pdf")


def write_figure(stem: Path, name: str, surfaces: Surfaces, labels: Volume | None, theme: str) -> None:
    """Write <stem>.png, .svg and .pdf of a case called `name`, in a theme of `case_figure`.

    Slices are of the first channel on the network's grid, the label filled where there is one; contours and meshes are
    those of the prediction, volumes those of the label map. Raises InputError where a file cannot be written.
    """
    sample = surfaces.sample
    structures = surfaces.structures
    classes = None if labels is None else resample_labels(in_order_of(labels, sample.grid), sample.grid, structures)
    views = []
    volumes_ml = []
    for structure, structure_name in enumerate(structures.names):
        views.append(
            StructureView(
                structure_name,
                None,
                None if classes is None else structures.own(classes, structure),
                surfaces.vertices[structure],
                surfaces.faces,
                encloses=bool(structures.encloses[structure]),
            )
        )
        mask = surfaces.labelmap == structures.written[structure_name]
        volumes_ml.append(volume_ml(mask, surfaces.grid))
    acquired_mm = _acquired_mm(surfaces.grid, sample.grid)
    image = sample.image[0].numpy()
    figure = case_figure(name, image, sample.grid.affine, views, volumes_ml, theme, acquired_mm=acquired_mm)
    for ending in ENDINGS:
        save_figure(figure, stem.with_name(f"{stem.name}.{ending}"))


def _acquired_mm(image: Grid, shown: Grid) -> np.ndarray:
    """The image's spacing (3,) along the axes of the grid that is shown, which are parallel to its own in any order."""
    directions = np.linalg.inv(shown.affine[:3, :3]) @ image.affine[:3, :3]
    return image.spacing_mm[np.abs(directions).argmax(1)]
