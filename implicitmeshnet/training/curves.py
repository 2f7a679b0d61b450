"""Pictures of a training: its losses and scores, and what a DeepRepresentationNetwork has learnt."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from implicitmeshnet.surfaces.figures import colours, save_figure
from implicitmeshnet.training.history import History

FEW_EPOCHS = 30  # of which each is marked, as one alone draws no line


def training_overview(path: Path | None, history: History) -> Figure:
    """Losses and validation scores over the epochs of a training; PNG where path is not None."""
    figure = Figure(figsize=(12, 4.5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in history]
    marker = "o" if len(numbers) <= FEW_EPOCHS else None
    for name in history.epochs[0].losses:
        values = [epoch.losses.get(name, np.nan) for epoch in history]
        left.plot(numbers, values, label=name, lw=2.2 if name == "total" else 1.3, marker=marker, ms=3)
    best = history.best
    validated = [epoch for epoch in history if epoch.scores]
    for name, colour in colours(history.score_names if validated else ()).items():
        scores = [epoch.scores[name] for epoch in validated]
        label = f"{name}, {best.scores[name]:.3f}" if best else name
        right.plot([epoch.number for epoch in validated], scores, "o-", ms=3, color=colour, label=label)
    if best:
        right.axvline(best.number, color="grey", lw=1, ls=":")
    left.set(title="training losses", xlabel="epoch", yscale="log")
    right.set(title=f"validation, best epoch {best.number}" if best else "validation", xlabel="epoch", ylim=(0, 1.05))
    for panel in (left, right):
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        if panel.lines:
            panel.legend(frameon=False, fontsize=9, loc="lower right" if panel is right else "best")
    return save_figure(figure, path)


def distance_preview(path: Path | str | None, predicted: np.ndarray, target: np.ndarray) -> Figure:
    """A predicted and a true SDF (X, Y, Z) on three central slices, zero levels drawn; PNG where path is not None.

    Raises InputError where the file cannot be written.
    """
    figure = Figure(figsize=(9.6, 6.6), dpi=100, layout="constrained")
    axes = figure.subplots(2, 3)
    limit = float(np.abs(target).max())
    for row, (name, volume) in enumerate((("predicted", predicted), ("true", target))):
        for normal in range(3):
            panel = axes[row, normal]
            middle = volume.shape[normal] // 2
            plane = volume.take(middle, normal)
            picture = panel.imshow(plane.T, cmap="RdBu", vmin=-limit, vmax=limit, origin="lower")
            _draw_zero_level(panel, target.take(middle, normal), "dashed")
            _draw_zero_level(panel, predicted.take(middle, normal), "solid")
            panel.set_title(f"{name}, across axis {normal}", fontsize=9)
            panel.set_axis_off()
    figure.colorbar(picture, ax=axes, shrink=0.8, label="SDF, half sides of the cube; zero levels: solid predicted")
    return save_figure(figure, path)


def _draw_zero_level(panel: Axes, plane: np.ndarray, style: str) -> None:
    # matplotlib warns of a level that the values do not cross.
    if plane.min() < 0 < plane.max():
        panel.contour(plane.T, [0], colors="black", linestyles=[style], linewidths=1)
