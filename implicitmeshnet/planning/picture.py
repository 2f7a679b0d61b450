"""The network's box over cases, for a person to check."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid, Volume, canonical
from implicitmeshnet.surfaces.figures import save_figure

PANEL_INCHES = 3.2
CONTRAST = (1, 99)  # percentiles of the grey values
PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}  # of canonical volumes, by the axis across


def draw_boxes(path: Path | str, cases: Sequence[tuple[Volume, np.ndarray, Grid]]) -> Figure:
    """A row for each case: three slices through the box's centre, the labels tinted, the box as a frame; PNG.

    Each case is its image, the mask (X, Y, Z) of its structures in the image's order, and the network's grid. Raises
    InputError where the file cannot be written.
    """
    rows = len(cases)
    figure = Figure(figsize=(3 * PANEL_INCHES, rows * PANEL_INCHES), dpi=100)
    panels = figure.subplots(rows, 3, squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.94, wspace=0.03, hspace=0.12)
    for row, (image, mask, grid) in zip(panels, cases, strict=True):
        seen = canonical(image)
        tinted = canonical(Volume(mask, image.grid)).data
        corners = _box_in_voxels(grid, seen.grid)
        for panel, (normal, name) in zip(row, PLANES.items(), strict=True):
            _draw(panel, seen, tinted, corners, normal)
            of_case = Path(image.name).name.encode(errors="replace").decode()  # a file's name may be of any bytes
            panel.set_title(f"{of_case}, {name}" if normal == 2 else name, fontsize=8)
    return save_figure(figure, path)


def _box_in_voxels(grid: Grid, of: Grid) -> np.ndarray:
    """The outer faces (2, 3) of a grid, lower and upper, in voxels of another whose axes are parallel."""
    ends = np.array([[-0.5] * 3, np.array(grid.shape) - 0.5])
    in_voxels = transform(np.linalg.inv(of.affine) @ grid.affine, ends)
    return np.sort(in_voxels, 0)


def _draw(panel: Axes, image: Volume, mask: np.ndarray, corners: np.ndarray, normal: int) -> None:
    """One slice across an axis through the box's middle, in mm."""
    across, up = (axis for axis in range(3) if axis != normal)
    index = int(np.clip(np.rint(corners.mean(0)[normal]), 0, image.data.shape[normal] - 1))
    spacing_mm = image.grid.spacing_mm
    size_mm = np.array(image.data.shape) * spacing_mm
    extent = (0, size_mm[across], 0, size_mm[up])
    shade = image.data.take(index, normal).T
    low, high = np.percentile(image.data, CONTRAST)
    panel.imshow(shade, cmap="gray", origin="lower", extent=extent, vmin=low, vmax=high)
    tint = np.ma.masked_equal(mask.take(index, normal).T, 0)
    panel.imshow(tint, cmap="autumn", origin="lower", extent=extent, alpha=0.4, vmin=0, vmax=1)
    low_mm, high_mm = (corners + 0.5) * spacing_mm
    sides = high_mm - low_mm
    frame = Rectangle((low_mm[across], low_mm[up]), sides[across], sides[up], fill=False, color="deepskyblue")
    panel.add_patch(frame)
    panel.set_xlim(min(0, low_mm[across]) - 2, max(size_mm[across], high_mm[across]) + 2)
    panel.set_ylim(min(0, low_mm[up]) - 2, max(size_mm[up], high_mm[up]) + 2)
    panel.set_axis_off()
