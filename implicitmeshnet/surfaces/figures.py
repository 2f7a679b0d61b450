"""Previews of cases. Nothing global of matplotlib is touched (no pyplot)."""

from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from scipy.ndimage import gaussian_filter

from implicitmeshnet.script import atomic_path
from implicitmeshnet.surfaces.render import render

COLOURS = {
    "LV": "#e4434b", "Myo": "#f2a65a", "LA": "#ff8fb1", "RV": "#4f86f7",
    "RA": "#35c2c9", "AO": "#f6d743", "PA": "#9d7bea",
}  # fmt: skip
OTHERS = ("#ff6f4e", "#3ddc97", "#6cb4ff", "#f7c948", "#d48cff", "#a3d55d", "#ff9ecb", "#4dd0e1")
BACKGROUND = "#0d1117"
REFERENCE_ALPHA = 0.35  # of fillings, so that the image shows through
ENCLOSING_ALPHA = 0.4  # of meshes that hold others
MARGIN_MM = 20.0
RENDER_PIXELS = 700
PLANES = ("sagittal", "coronal", "axial")  # across the body's axes, in the order of RAS
ENDS = ("LR", "PA", "IS")  # letters of the body's axes, from their negative to their positive end
OBLIQUE_DEGREES = 20.0
"""An axis that lies further off a body axis has no plane's name and a letter more."""


@dataclass
class Structure:
    """What a preview shows of one structure; what is None is not drawn."""

    name: str
    mask: np.ndarray | None = None  # (X, Y, Z) bool on the preview's image: a contour
    reference: np.ndarray | None = None  # the same: a translucent filling, which no prediction has
    vertices_mm: np.ndarray | None = None  # (V, 3) RAS
    faces: np.ndarray | None = None  # (F, 3) counter-clockwise from outside
    encloses: bool = False  # its mesh holds another structure's, which shines through it


def colours(names) -> dict[str, str]:
    """A colour for each name: the whole-heart structures have their own, others take one each in their order."""
    others = [name for name in names if name not in COLOURS]
    return {name: COLOURS.get(name) or OTHERS[others.index(name) % len(OTHERS)] for name in names}


def case_preview(path, image, affine, structures: list[Structure], window=None) -> Figure:
    """Three slices through the structures' centre with contours, and their meshes in 3-D; PNG where path is not None.

    image (X, Y, Z) with axes nearest to R, A, S, such as a canonical volume's, and its affine (4, 4) to mm RAS; window
    is (low, high) of the grey values, by default their 1st and 99th percentile. Slices run along the image's own axes
    and are named by where these lie in the body, oblique ones as oblique; in radiological display: the patient's right
    on the viewer's left, anterior on the left of the sagittal one. Contours are of masks smoothed by 0.7 voxels.
    """
    palette = colours([structure.name for structure in structures])
    window = np.percentile(image, (1, 99)) if window is None else window
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing_mm
    centre, middle_mm, half_mm = _focus(image.shape, spacing_mm, structures)
    figure = Figure(figsize=(16, 4.55), dpi=100, facecolor=BACKGROUND)
    axes = figure.subplots(1, 4)
    figure.subplots_adjust(left=0.004, right=0.996, bottom=0.1, top=0.93, wspace=0.015)
    for normal in (2, 1, 0):
        panel = axes[2 - normal]
        _draw_slice(panel, image, spacing_mm, normal, centre[normal], window)
        _frame(panel, normal, middle_mm, half_mm, directions)
        _draw_structures(panel, structures, palette, spacing_mm, normal, centre[normal])
        panel.set_title(_plane_name(directions, normal), color="white", fontsize=11)
    meshes = [
        (
            structure.vertices_mm,
            structure.faces,
            to_rgba(palette[structure.name], ENCLOSING_ALPHA if structure.encloses else 1),
        )
        for structure in structures
        if structure.vertices_mm is not None
    ]
    axes[3].imshow(render(meshes, RENDER_PIXELS) if meshes else np.zeros((2, 2, 4)))
    axes[3].set_title("meshes", color="white", fontsize=11)
    for panel in axes:
        panel.set_axis_off()
    _draw_legend(figure, structures, palette)
    return save_figure(figure, path)


def _focus(shape, spacing_mm, structures):
    """The voxel at the structures' centre, and the middle (3,) and half the side, in mm, of the square view there."""
    masks = [mask for structure in structures for mask in (structure.mask, structure.reference) if mask is not None]
    filled = np.any(masks, axis=0) if masks else np.zeros(shape, dtype=bool)
    if not filled.any():
        filled = np.ones(shape, dtype=bool)
    lines = [np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    ends = np.array([(line[0], line[-1]) for line in lines])
    size_mm, extent_mm = np.multiply(shape, spacing_mm), (np.ptp(ends, axis=1) + 1) * spacing_mm
    half_mm = min(extent_mm.max() / 2 + MARGIN_MM, size_mm.max() / 2)
    room_mm = np.maximum(size_mm - 2 * half_mm, 0) / 2  # how far the view can move within the image
    edge_mm = (size_mm - spacing_mm) / 2
    middle_mm = np.clip(ends.mean(1) * spacing_mm, edge_mm - room_mm, edge_mm + room_mm)
    return ends.sum(1) // 2, middle_mm, half_mm


def _plane(normal: int) -> tuple[int, int]:
    """The axes that a slice shows, horizontal and vertical."""
    return ((1, 2), (0, 2), (0, 1))[normal]


def _draw_slice(panel, image, spacing_mm, normal: int, index: int, window):
    extent = [
        edge
        for axis in _plane(normal)
        for edge in (-0.5 * spacing_mm[axis], (image.shape[axis] - 0.5) * spacing_mm[axis])
    ]
    panel.imshow(
        image.take(index, normal).T,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=extent,
        interpolation="bicubic",
    )


def _frame(panel, normal: int, middle_mm, half_mm: float, directions):
    """A square view of a slice in radiological display, with its directions lettered."""
    horizontal, vertical = _plane(normal)
    panel.set_xlim(middle_mm[horizontal] + half_mm, middle_mm[horizontal] - half_mm)
    panel.set_ylim(middle_mm[vertical] - half_mm, middle_mm[vertical] + half_mm)
    across, up = directions[:, horizontal], directions[:, vertical]
    places = ((across, 0.02, 0.5, "left"), (-across, 0.98, 0.5, "right"), (up, 0.5, 0.96, "center"))
    for direction, x, y, side in places:
        panel.text(
            x,
            y,
            _letters(direction),
            transform=panel.transAxes,
            color="white",
            fontsize=10,
            ha=side,
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
        )


def _letters(direction) -> str:
    """What a direction (3,) in RAS points to, as DICOM letters it: the nearest first, those it hardly has left out."""
    share = np.abs(direction)
    return "".join(
        ENDS[axis][int(direction[axis] > 0)]
        for axis in np.argsort(-share)
        if share[axis] > np.sin(np.radians(OBLIQUE_DEGREES))
    )


def _plane_name(directions, normal: int) -> str:
    """What a slice is called by its true normal: axial, coronal or sagittal, or how far off the nearest of these."""
    across = np.cross(*(directions[:, axis] for axis in _plane(normal)))
    share = np.abs(across) / np.linalg.norm(across)
    nearest = share.argmax()
    degrees = np.degrees(np.arccos(min(share[nearest], 1.0)))
    return PLANES[nearest] if degrees <= OBLIQUE_DEGREES else f"oblique, {degrees:.0f}\u00b0 off {PLANES[nearest]}"


def _draw_structures(panel, structures, palette, spacing_mm, normal: int, index: int):
    """The references as fillings, which no contour is mistaken for even where two touch; the predictions' contours
    over them, last of these what others enclose."""
    for structure in structures:
        if structure.reference is not None:
            x, y, field = _smoothed(structure.reference, spacing_mm, normal, index)
            if field.max() > 0.5:
                panel.contourf(x, y, field, [0.5, 2], colors=[palette[structure.name]], alpha=REFERENCE_ALPHA)
    for structure in sorted(structures, key=lambda structure: not structure.encloses):
        if structure.mask is not None:
            x, y, field = _smoothed(structure.mask, spacing_mm, normal, index)
            if field.min() < 0.5 < field.max():
                panel.contour(x, y, field, [0.5], colors=[palette[structure.name]], linewidths=[2])


def _smoothed(mask, spacing_mm, normal: int, index: int):
    """Positions in mm along a slice's two axes, and a mask there smoothed by 0.7 voxels, (vertical, horizontal)."""
    x, y = (np.arange(mask.shape[axis]) * spacing_mm[axis] for axis in _plane(normal))
    return x, y, gaussian_filter(mask.take(index, normal).astype(np.float32), 0.7).T


def _draw_legend(figure, structures, palette):
    handles = [Line2D([], [], color=colour, lw=3, label=name) for name, colour in palette.items()]
    if any(structure.reference is not None for structure in structures):
        handles += [
            Line2D([], [], color="white", lw=2, label="prediction"),
            Patch(facecolor=to_rgba("white", REFERENCE_ALPHA), label="reference"),
        ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor="white")


def save_figure(figure, path) -> Figure:
    if path is not None:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
    return figure
