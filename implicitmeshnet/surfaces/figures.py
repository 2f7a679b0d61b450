"""Previews of cases, and what their figures for print share with them: colours, slices, contours, names of planes.

Nothing global of matplotlib is touched (no pyplot).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image
from scipy.ndimage import gaussian_filter

from implicitmeshnet.script import atomic_path
from implicitmeshnet.surfaces.render import Mesh, render

COLOURS = {
    "LV": "#ce3e2d", "Myo": "#f28405", "LA": "#fbb3be", "RV": "#0097fc",
    "RA": "#00deff", "AO": "#f3f43f", "PA": "#1a866c",
}  # fmt: skip
OTHERS = ("#9cf460", "#a3628d", "#5a8300", "#e694b1", "#d6deff", "#fe5071", "#2173e7", "#00b1ff")
"""For other structures. Those of either list are at least 15 apart (CIEDE2000) from each other to normal sight, with
deuteranopia, protanopia and tritanopia, which is about as far as so many colours can be."""
BACKGROUND = "#0d1117"
REFERENCE_ALPHA = 0.35  # of fillings, so that the image shows through
ENCLOSING_ALPHA = 0.4  # of meshes that hold others
MARGIN_MM = 20.0
RENDER_PIXELS = 400
PLANES = ("sagittal", "coronal", "axial")  # across the body's axes, in the order of RAS
ENDS = ("LR", "PA", "IS")  # letters of the body's axes, from their negative to their positive end
OBLIQUE_DEGREES = 20.0
"""A slice that is turned further than this from a body plane is called oblique, and its edges get a second letter."""
CONTOUR_SIGMA_VOXELS = 0.7
THICK = 2.5
"""Slices are thick from so many times the pixels' spacing on: a stack, of which the other planes show steps."""
LONG_AXIS_DEGREES = 35.0
"""Slices of a stack are short-axis ones where their normal lies no further than this from the ventricle's long axis."""
ELONGATED = 1.15
"""Of a ventricle's longest side and the next; below it the long axis says nothing."""
VENTRICLE = ("LV", "Myo")  # whose long axis it is, the first that is there

VECTORS = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # endings, and what is left out of the file
VECTOR_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "ImplicitMeshNet", "pdf.fonttype": 42}


@dataclass
class StructureView:
    """What a preview shows of one structure; a part that is None is not drawn."""

    name: str
    mask: np.ndarray | None = None  # (X, Y, Z) bool on the preview's image: a contour
    reference: np.ndarray | None = None  # the same: a translucent filling, which no prediction has
    vertices_mm: np.ndarray | None = None  # (V, 3) RAS
    faces: np.ndarray | None = None  # (F, 3) counter-clockwise from outside
    encloses: bool = False  # its mesh holds another structure's, which shines through it


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: the whole-heart structures have their own, others take one each in their order."""
    palette = {}
    others = [name for name in names if name not in COLOURS]
    for name in names:
        if name in COLOURS:
            palette[name] = COLOURS[name]
        else:
            palette[name] = OTHERS[others.index(name) % len(OTHERS)]
    return palette


def case_preview(
    path: Path | str | None,
    image: np.ndarray,
    affine: np.ndarray,
    views: Sequence[StructureView],
    window: Sequence[float] | None = None,
) -> Figure:
    """Three slices through the structures' centre with contours, and their meshes in 3-D; PNG where path is not None.

    image (X, Y, Z) has axes nearest to R, A, S, as a canonical volume has, and affine (4, 4) takes its voxels to mm
    RAS. window is (low, high) of the grey values, by default their 1st and 99th percentile. Slices run along the
    image's own axes and are named by where these lie in the body, oblique ones as oblique, short-axis ones as such. The
    display is radiological: the patient's right on the viewer's left, anterior on the left of the sagittal slice. Masks
    are smoothed by 0.7 voxels before their contours are drawn. Raises InputError where the file cannot be written.
    """
    palette = colours([view.name for view in views])
    low, high = np.percentile(image, (1, 99)) if window is None else window
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing_mm
    centre, middle_mm, half_mm = _focus(image.shape, spacing_mm, views)
    figure = Figure(figsize=(16, 4.55), dpi=100, facecolor=BACKGROUND)
    axes = figure.subplots(1, 4)
    figure.subplots_adjust(left=0.004, right=0.996, bottom=0.1, top=0.93, wspace=0.015)
    for normal in (2, 1, 0):
        panel = axes[2 - normal]
        index = centre[normal]
        draw_slice(panel, image, spacing_mm, normal, index, (low, high))
        _frame(panel, normal, middle_mm, half_mm, directions)
        draw_structures(panel, views, palette, spacing_mm, normal, index)
        panel.set_title(slice_name(spacing_mm, directions, normal, views), color="white", fontsize=11)
    _draw_meshes(axes[3], views, palette)
    for panel in axes:
        panel.set_axis_off()
    _draw_legend(figure, views, palette)
    return save_figure(figure, path)


def _draw_meshes(panel: Axes, views: Sequence[StructureView], palette: dict[str, str]) -> None:
    meshes = coloured_meshes(views, palette)
    panel.imshow(render(meshes, RENDER_PIXELS) if meshes else np.zeros((2, 2, 4)))
    panel.set_title("meshes", color="white", fontsize=11)


def coloured_meshes(
    views: Sequence[StructureView], palette: dict[str, str], enclosing_alpha: float = ENCLOSING_ALPHA
) -> list[Mesh]:
    """The structures' meshes for `render`; what encloses others is translucent."""
    meshes: list[Mesh] = []
    for view in views:
        if view.vertices_mm is not None and view.faces is not None:
            alpha = enclosing_alpha if view.encloses else 1
            colour = to_rgba(palette[view.name], alpha)
            meshes.append((view.vertices_mm, view.faces, colour))
    return meshes


def _focus(
    shape: tuple[int, ...], spacing_mm: np.ndarray, views: Sequence[StructureView]
) -> tuple[np.ndarray, np.ndarray, float]:
    """The voxel (3,) at the structures' centre, and the middle (3,) and half the side, in mm, of the square view."""
    ends = _ends(shape, views)
    size_mm = np.multiply(shape, spacing_mm)
    extent_mm = (np.ptp(ends, axis=1) + 1) * spacing_mm
    # One square for all three slices: as large as the structures with a margin, but no larger than the image.
    half_mm = min(extent_mm.max() / 2 + MARGIN_MM, size_mm.max() / 2)
    room_mm = np.maximum(size_mm - 2 * half_mm, 0) / 2  # how far the view can move within the image
    edge_mm = (size_mm - spacing_mm) / 2
    middle_mm = np.clip(ends.mean(1) * spacing_mm, edge_mm - room_mm, edge_mm + room_mm)
    return ends.sum(1) // 2, middle_mm, half_mm


def _ends(shape: tuple[int, ...], views: Sequence[StructureView]) -> np.ndarray:
    """The first and last voxel of all the masks along each axis, of the whole image where they are empty: (3, 2)."""
    filled = np.zeros(shape, dtype=bool)
    for view in views:
        for mask in (view.mask, view.reference):
            if mask is not None:
                filled |= mask
    if not filled.any():
        filled[:] = True
    ends = []
    for axis in range(3):
        line = np.flatnonzero(filled.any(axis=plane_of(axis)))
        ends.append((line[0], line[-1]))
    return np.array(ends)


def plane_of(normal: int) -> tuple[int, int]:
    """The axes that a slice shows, horizontal and vertical."""
    return ((1, 2), (0, 2), (0, 1))[normal]


def draw_slice(
    panel: Axes, image: np.ndarray, spacing_mm: np.ndarray, normal: int, index: int, window: tuple[float, float]
) -> None:
    horizontal, vertical = plane_of(normal)
    left, right = _edges_mm(image.shape[horizontal], spacing_mm[horizontal])
    bottom, top = _edges_mm(image.shape[vertical], spacing_mm[vertical])
    panel.imshow(
        image.take(index, normal).T,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=(left, right, bottom, top),
        interpolation="bicubic",
    )


def _edges_mm(count: int, spacing_mm: float) -> tuple[float, float]:
    """The outer edges of the first and the last voxel along an axis; the first one's centre is at 0."""
    return -0.5 * spacing_mm, (count - 0.5) * spacing_mm


def _frame(panel: Axes, normal: int, middle_mm: np.ndarray, half_mm: float, directions: np.ndarray) -> None:
    """A square view of a slice in radiological display, with its directions lettered."""
    set_view(panel, normal, middle_mm, half_mm)
    across, up = plane_of(normal)
    draw_letters(panel, -directions[:, across], directions[:, up], fontsize=10)


def set_view(panel: Axes, normal: int, middle_mm: np.ndarray, half_mm: float) -> None:
    """A square view of a slice in radiological display, around the middle (3,) in mm along the image's axes."""
    horizontal, vertical = plane_of(normal)
    # From high to low: the patient's right, or anterior, is on the left.
    panel.set_xlim(middle_mm[horizontal] + half_mm, middle_mm[horizontal] - half_mm)
    panel.set_ylim(middle_mm[vertical] - half_mm, middle_mm[vertical] + half_mm)


def draw_letters(panel: Axes, right: np.ndarray, up: np.ndarray, fontsize: float, colour: str = "white") -> None:
    """Letter a panel's left, right and upper edge by the directions (3,) in RAS to its right and upwards."""
    places = ((-right, 0.02, 0.5, "left"), (right, 0.98, 0.5, "right"), (up, 0.5, 0.96, "center"))
    for direction, x, y, side in places:
        panel.text(
            x,
            y,
            letters(direction),
            transform=panel.transAxes,
            color=colour,
            fontsize=fontsize,
            ha=side,
            va="center",
            path_effects=halo(fontsize / 4) if colour == "white" else [],
        )


def halo(width: float) -> list[AbstractPathEffect]:
    """A black rim of some points around white text or lines, for any grey behind them."""
    return [withStroke(linewidth=width, foreground="black")]


def letters(direction: np.ndarray) -> str:
    """What a direction (3,) in RAS points to, as DICOM letters it: the nearest body axis first, then any other axis
    towards which it is turned by more than OBLIQUE_DEGREES."""
    share = np.abs(direction)
    least = np.sin(np.radians(OBLIQUE_DEGREES))
    letters = ""
    for axis in np.argsort(-share):
        if share[axis] > least:
            letters += ENDS[axis][int(direction[axis] > 0)]
    return letters


def plane_name(directions: np.ndarray, normal: int) -> str:
    """What a slice is called by its true normal: axial, coronal or sagittal, or how far off the nearest of these."""
    horizontal, vertical = plane_of(normal)
    across = np.cross(directions[:, horizontal], directions[:, vertical])
    share = np.abs(across) / np.linalg.norm(across)
    nearest = share.argmax()
    degrees = np.degrees(np.arccos(min(share[nearest], 1.0)))
    if degrees <= OBLIQUE_DEGREES:
        return PLANES[nearest]
    return f"oblique, {degrees:.0f}\u00b0 off {PLANES[nearest]}"


def slice_name(spacing_mm: np.ndarray, directions: np.ndarray, normal: int, views: Sequence[StructureView]) -> str:
    """What a slice across one of an image's axes is called: "short axis" for those of such a stack, else its plane."""
    if stack_axis(spacing_mm) == normal and _across_the_long_axis(directions, normal, views):
        return "short axis"
    return plane_name(directions, normal)


def stack_axis(spacing_mm: np.ndarray) -> int | None:
    """The axis along which an image of some spacing (3,) is a stack of thick slices; None where it is none."""
    return int(spacing_mm.argmax()) if spacing_mm.max() >= THICK * np.median(spacing_mm) else None


def _across_the_long_axis(directions: np.ndarray, normal: int, views: Sequence[StructureView]) -> bool:
    """Whether slices lie across the left ventricle's long axis, as its mesh has it. Headers often do not say."""
    meshes = {view.name: view for view in views if view.vertices_mm is not None and view.faces is not None}
    for name in VENTRICLE:
        if name in meshes:
            axis = _long_axis(meshes[name])
            horizontal, vertical = plane_of(normal)
            across = np.cross(directions[:, horizontal], directions[:, vertical])
            along = abs(across @ axis) / np.linalg.norm(across)
            return bool(along > np.cos(np.radians(LONG_AXIS_DEGREES)))
    return False


def _long_axis(view: StructureView) -> np.ndarray:
    """The direction (3,) in which a mesh is longest, of length 1; zero where two directions are about as long."""
    assert view.vertices_mm is not None and view.faces is not None
    a, b, c = view.vertices_mm[view.faces].transpose(1, 0, 2)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    covariance = np.cov((a + b + c).T / 3, aweights=areas + 1e-12)
    squares, axes = np.linalg.eigh(covariance)  # rising
    return axes[:, 2] if squares[2] > ELONGATED**2 * squares[1] else np.zeros(3)


def draw_structures(
    panel: Axes,
    views: Sequence[StructureView],
    palette: dict[str, str],
    spacing_mm: np.ndarray,
    normal: int,
    index: int,
) -> None:
    """References as fillings, and over them predictions as contours: no border of two fillings passes for a contour."""
    draw_references(panel, views, palette, spacing_mm, normal, index)
    for view in outermost_first(views):
        if view.mask is not None:
            x, y, field = _smoothed(view.mask, spacing_mm, normal, index)
            if field.min() < 0.5 < field.max():
                panel.contour(x, y, field, [0.5], colors=[palette[view.name]], linewidths=[2])


def draw_references(
    panel: Axes,
    views: Sequence[StructureView],
    palette: dict[str, str],
    spacing_mm: np.ndarray,
    normal: int,
    index: int,
) -> None:
    """The references of a slice as translucent fillings."""
    for view in views:
        if view.reference is not None:
            x, y, field = _smoothed(view.reference, spacing_mm, normal, index)
            if field.max() > 0.5:
                panel.contourf(x, y, field, [0.5, 2], colors=[palette[view.name]], alpha=REFERENCE_ALPHA)


def outermost_first(views: Sequence[StructureView]) -> list[StructureView]:
    """The structures that enclose others come first, so that the contours of those inside lie over theirs."""
    return sorted(views, key=lambda view: not view.encloses)


def _smoothed(
    mask: np.ndarray, spacing_mm: np.ndarray, normal: int, index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in mm along a slice's two axes, and the mask there, smoothed: (vertical, horizontal)."""
    horizontal, vertical = plane_of(normal)
    x = np.arange(mask.shape[horizontal]) * spacing_mm[horizontal]
    y = np.arange(mask.shape[vertical]) * spacing_mm[vertical]
    plane = mask.take(index, normal).astype(np.float32)
    return x, y, gaussian_filter(plane, CONTOUR_SIGMA_VOXELS).T


def _draw_legend(figure: Figure, views: Sequence[StructureView], palette: dict[str, str]) -> None:
    handles: list[Line2D | Patch] = []
    for name, colour in palette.items():
        handles.append(Line2D([], [], color=colour, lw=3, label=name))
    if any(view.reference is not None for view in views):
        handles.append(Line2D([], [], color="white", lw=2, label="prediction"))
        handles.append(Patch(facecolor=to_rgba("white", REFERENCE_ALPHA), label="reference"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor="white")


def save_figure(figure: Figure, path: Path | str | None) -> Figure:
    """Write a figure where a path is given, and give it back: .svg and .pdf as vectors, any other name as RGB PNG.

    An SVG has its text as text, a PDF its fonts. Files of the same figure are the same bytes. Raises InputError where
    the file cannot be written.
    """
    if path is not None:
        kind = Path(path).suffix.lower().removeprefix(".")
        with atomic_path(path) as temporary:
            if kind in VECTORS:
                _save_vectors(figure, temporary, kind)
            else:
                _save_rgb(figure, temporary)
    return figure


def _save_vectors(figure: Figure, path: Path, kind: str) -> None:
    with matplotlib.rc_context(VECTOR_SETTINGS):
        figure.savefig(path, format=kind, metadata=VECTORS[kind], dpi=figure.dpi)


def _save_rgb(figure: Figure, path: Path) -> None:
    """As PNG without an alpha channel, which journals refuse and some viewers draw on black."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG", dpi=(figure.dpi, figure.dpi))
