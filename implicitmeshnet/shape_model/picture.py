"""A picture of a shape model: each mode a row, from its mean less two standard deviations to its mean and two more."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from implicitmeshnet.shape_model.cohort import Parts
from implicitmeshnet.shape_model.model import ShapeModel
from implicitmeshnet.surfaces.figures import BACKGROUND, ENCLOSING_ALPHA, colours, save_figure
from implicitmeshnet.surfaces.render import FILLED, VIEW_FROM, Mesh, camera_from, render
from implicitmeshnet.surfaces.soundness import winding_numbers

DEVIATIONS = (-2.0, 0.0, 2.0)
"""Standard deviations of a mode at which it is shown: the mean, and where 95 % of a normal population end."""
PANEL_PIXELS = 420
TITLES = ("\u2212 2 SD", "mean", "+ 2 SD")
ENOUGH_INSIDE = 0.5
"""Share of a structure's vertices in another's mesh from which that one encloses it, and is drawn translucent."""


def draw_modes(path: Path | str | None, model: ShapeModel, count: int) -> Figure:
    """The first `count` modes at the DEVIATIONS, all in one scale; PNG where path is not None.

    Raises InputError where the file cannot be written.
    """
    figure = Figure(figsize=(3 * PANEL_PIXELS / 100, count * PANEL_PIXELS / 100 + 0.3), dpi=100, facecolor=BACKGROUND)
    panels = figure.subplots(count, len(DEVIATIONS), squeeze=False)
    top = 1 - 0.3 / figure.get_figheight()
    figure.subplots_adjust(left=0.03, right=1, bottom=0, top=top, wspace=0, hspace=0)
    shown = shapes_shown(model, count)
    opacities = [ENCLOSING_ALPHA if holds else 1.0 for holds in enclosing(model.parts, model.modes.mean)]
    sides_mm = [_side_mm(points) for row in shown for points in row]
    shares = model.modes.variances / model.modes.variances.sum()
    for mode, row in enumerate(shown):
        for column, points in enumerate(row):
            panel = panels[mode, column]
            panel.imshow(render(coloured(model.parts, points, opacities), PANEL_PIXELS, side_mm=max(sides_mm)))
            panel.set_axis_off()
            if mode == 0:
                panel.set_title(TITLES[column], color="white", fontsize=11)
        words = f"mode {mode + 1}: {100 * shares[mode]:.0f} % of the variance"
        panels[mode, 0].text(
            -0.04, 0.5, words, transform=panels[mode, 0].transAxes, color="white", rotation=90, va="center"
        )
    return save_figure(figure, path)


def shapes_shown(model: ShapeModel, count: int) -> list[list[np.ndarray]]:
    """The points (P, 3) of each of the first `count` modes at each of the DEVIATIONS."""
    rows = []
    for mode in range(count):
        only = np.eye(count)[mode]
        rows.append([model.modes.shape(deviation * only) for deviation in DEVIATIONS])
    return rows


def _side_mm(points: np.ndarray) -> float:
    """The side of a picture in which points (P, 3) just fit."""
    on_screen = points @ camera_from(VIEW_FROM)[:, :2]
    return float(np.ptp(on_screen, axis=0).max() / FILLED)


def enclosing(parts: Parts, points: np.ndarray) -> list[bool]:
    """Of each structure whether it holds another one; points (P, 3)."""
    split = parts.split(points)
    holds = []
    for outer in range(len(split)):
        others = [vertices for inner, vertices in enumerate(split) if inner != outer]
        shares = [_share_inside(vertices, split[outer], parts.faces) for vertices in others]
        holds.append(max(shares, default=0.0) > ENOUGH_INSIDE)
    return holds


def _share_inside(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> float:
    """The share of points, of which some are tried, inside a mesh."""
    tried = points[:: max(len(points) // 50, 1)]
    return float(np.mean(winding_numbers(tried, vertices, faces) > 0.5))


def coloured(parts: Parts, points: np.ndarray, opacities: Sequence[float]) -> list[Mesh]:
    """The meshes of points (P, 3) in their structures' colours."""
    palette = colours(parts.names)
    meshes: list[Mesh] = []
    for name, vertices, alpha in zip(parts.names, parts.split(points), opacities, strict=True):
        meshes.append((vertices, parts.faces, to_rgba(palette[name], alpha)))
    return meshes
