"""A case as a figure for print or a talk: slices in rows, two views of the meshes and the volumes, all at one scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from implicitmeshnet.coordinates import transform
from implicitmeshnet.surfaces import figures
from implicitmeshnet.surfaces.figures import (
    BACKGROUND,
    StructureView,
    coloured_meshes,
    colours,
    draw_letters,
    draw_references,
    draw_slice,
    halo,
    letters,
    outermost_first,
    plane_of,
    set_view,
    slice_name,
    stack_axis,
)
from implicitmeshnet.surfaces.render import camera_from, render
from implicitmeshnet.surfaces.sections import section

DPI = 300
WIDTH_INCHES = 7.1  # 180 mm, two columns of most journals
EDGE_INCHES = 0.06
GAP_INCHES = 0.03
TITLE_INCHES = 0.26
CAPTION_INCHES = 0.19  # left of the slices
ROWS = 3
COLUMNS = 4
"""Of slices, at most; a stack of fewer thick slices has fewer columns."""
FILLED = 0.78  # of a panel's side, by the structures' longest one
TITLE_LETTERS = 76
CAPTION_LETTERS = 34
TEXT_POINTS = 7.0
SMALLEST_POINTS = 4.0
LETTER_WIDTH = 0.6  # of a letter's height, on average
LINE_POINTS = 1.0
ENCLOSING_ALPHA = 0.2  # of meshes that hold others: less than in previews, so that print keeps the inner one's colour
BAR_STEPS = (1, 2, 5)  # a scale bar's length, times a power of ten
BAR_SHARE = 0.42  # of a panel's side, at most
SIDES = {"anterior": (0.0, 1.0, 0.0), "left": (-1.0, 0.0, 0.0)}
"""From where the meshes are seen, RAS."""


@dataclass(frozen=True)
class Theme:
    """Colours of all that is neither image nor structure."""

    background: str
    text: str
    faint: str


THEMES = {"light": Theme("#ffffff", "#1a1a1a", "#5c5c5c"), "dark": Theme(BACKGROUND, "#f2f2f2", "#a8b0b8")}


@dataclass(frozen=True, eq=False)
class Scene:
    """What every panel of a figure needs."""

    image: np.ndarray  # (X, Y, Z)
    affine: np.ndarray  # (4, 4) voxel -> mm RAS
    views: list[StructureView]
    palette: dict[str, str]
    window: tuple[float, float]
    low_mm: np.ndarray  # (3,) the structures' first end along the image's axes, in mm from its first voxel's centre
    high_mm: np.ndarray  # (3,) their last one
    side_mm: float  # of every panel
    theme: Theme

    @property
    def spacing_mm(self) -> np.ndarray:
        """Of the voxels, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def directions(self) -> np.ndarray:
        """Of the image's axes in RAS, as columns (3, 3)."""
        return self.affine[:3, :3] / self.spacing_mm


def case_figure(
    name: str,
    image: np.ndarray,
    affine: np.ndarray,
    views: Sequence[StructureView],
    volumes_ml: Sequence[float],
    theme: str = "light",
    window: Sequence[float] | None = None,
    acquired_mm: np.ndarray | None = None,
) -> Figure:
    """Slices with the meshes' contours, the meshes from anterior and from the left, and each structure's volume.

    image (X, Y, Z) and affine (4, 4) as for `case_preview`; views are the structures' with their meshes, of which each
    has a volume in ml; theme is one of THEMES. Four slices in each of the three planes, at equal distances through the
    structures; of a stack of thick slices its own alone, up to twelve, called short-axis where they lie across the left
    ventricle. `acquired_mm` (3,) is the spacing at which the image was taken, along the same axes, by default the
    affine's. All panels are squares of one scale, for which a bar stands. The figure is 180 mm wide, at 300 dots per
    inch.
    """
    low, high = np.percentile(image, (1, 99)) if window is None else window
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    low_mm, high_mm, side_mm = _room(image.shape, affine, spacing_mm, views)
    palette = colours([view.name for view in views])
    scene = Scene(
        image, affine, list(views), palette, (float(low), float(high)), low_mm, high_mm, side_mm, THEMES[theme]
    )
    acquired = spacing_mm if acquired_mm is None else acquired_mm
    rows = _rows(scene, acquired)
    columns = max(map(len, rows.values())) if len(rows) > 1 else -(-sum(map(len, rows.values())) // ROWS)
    figure, panels, captions, legend = _panels(columns, scene.theme)
    _draw_title(figure, name, scene.theme)
    _draw_slices(panels[:, :-1], captions, rows, scene, acquired)
    for panel, side in zip(panels[:2, -1], SIDES, strict=True):
        _draw_side(panel, side, scene)
    _draw_volumes(legend, scene, volumes_ml)
    return figure


def _room(
    shape: tuple[int, ...], affine: np.ndarray, spacing_mm: np.ndarray, views: Sequence[StructureView]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Where the meshes begin and end along the image's axes, mm (3,) each, and the side in mm of a panel that holds
    them in any slice and from each side; of the whole image where there are none."""
    meshes = [view.vertices_mm for view in views if view.vertices_mm is not None]
    if not meshes:
        size_mm = (np.array(shape) - 1) * spacing_mm
        return np.zeros(3), size_mm, float(size_mm.max())
    vertices = np.concatenate(meshes)
    along = transform(np.linalg.inv(affine), vertices) * spacing_mm
    longest = max(np.ptp(along, axis=0).max(), np.ptp(vertices, axis=0).max())
    return along.min(0), along.max(0), float(longest) / FILLED


def _rows(scene: Scene, acquired_mm: np.ndarray) -> dict[int, np.ndarray]:
    """The slices' places along the axis across them, in mm, by that axis."""
    stack = stack_axis(acquired_mm)
    if stack is None:
        return {normal: _places(scene, normal, COLUMNS) for normal in (2, 1, 0)}
    thick = int((scene.high_mm - scene.low_mm)[stack] / acquired_mm[stack])
    return {stack: _places(scene, stack, min(max(thick, ROWS), ROWS * COLUMNS))}


def _places(scene: Scene, normal: int, count: int) -> np.ndarray:
    """Equally far apart through the structures, from superior, anterior or right on."""
    shares = (np.arange(count)[::-1] + 0.5) / count
    return scene.low_mm[normal] + shares * (scene.high_mm - scene.low_mm)[normal]


def _panels(columns: int, theme: Theme) -> tuple[Figure, np.ndarray, list[Axes], Axes]:
    """A figure with square panels (ROWS, columns + 1), a caption's place left of each row, and the legend's."""
    gaps = columns * GAP_INCHES
    side = (WIDTH_INCHES - 2 * EDGE_INCHES - CAPTION_INCHES - gaps) / (columns + 1)
    height = TITLE_INCHES + ROWS * side + (ROWS - 1) * GAP_INCHES + EDGE_INCHES
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, facecolor=theme.background)

    def add(left: float, row: int, width: float) -> Axes:
        bottom = EDGE_INCHES + (ROWS - 1 - row) * (side + GAP_INCHES)
        panel = figure.add_axes((left / WIDTH_INCHES, bottom / height, width / WIDTH_INCHES, side / height))
        panel.set_axis_off()
        return panel

    captions = [add(EDGE_INCHES, row, CAPTION_INCHES) for row in range(ROWS)]
    panels = np.empty((ROWS, columns + 1), dtype=object)
    for row, column in np.ndindex(panels.shape):
        left = EDGE_INCHES + CAPTION_INCHES + column * (side + GAP_INCHES)
        panels[row, column] = add(left, row, side)
    return figure, panels, captions, panels[-1, -1]


def _draw_title(figure: Figure, name: str, theme: Theme) -> None:
    height = figure.get_size_inches()[1]
    figure.text(
        EDGE_INCHES / WIDTH_INCHES,
        1 - TITLE_INCHES / 2 / height,
        _shortened(name, TITLE_LETTERS),
        color=theme.text,
        fontsize=9,
        fontweight="bold",
        va="center",
        parse_math=False,
    )


def _shortened(text: str, letters: int) -> str:
    """A text without its middle, where it is longer than so many letters."""
    if len(text) <= letters:
        return text
    kept = (letters - 1) // 2
    return f"{text[:kept]}…{text[-kept:]}"


def _draw_slices(
    panels: np.ndarray, captions: list[Axes], rows: dict[int, np.ndarray], scene: Scene, acquired_mm: np.ndarray
) -> None:
    """Fill the panels row by row, a plane in each or one stack in all, with a caption for each plane."""
    for row, (normal, places) in enumerate(rows.items()):
        chosen = panels[row] if len(rows) > 1 else panels.ravel()
        for number, (panel, place) in enumerate(zip(chosen, places, strict=False)):
            _draw_slice(panel, scene, normal, place, lettered=number == 0)
        if row == 0:
            _draw_bar(chosen[0], scene.side_mm, "white")
        name = slice_name(acquired_mm, scene.directions, normal, scene.views)
        end = letters(scene.directions[:, normal])
        start = letters(-scene.directions[:, normal])
        apart_mm = abs(places[0] - places[1])
        caption = captions[row] if len(rows) > 1 else captions[ROWS // 2]
        _draw_caption(caption, (name, f"{end} to {start}, every {apart_mm:.3g} mm"), scene.theme)


def _draw_slice(panel: Axes, scene: Scene, normal: int, place_mm: float, lettered: bool) -> None:
    index = round(place_mm / scene.spacing_mm[normal])
    index = min(max(index, 0), scene.image.shape[normal] - 1)
    draw_slice(panel, scene.image, scene.spacing_mm, normal, index, scene.window)
    panel.add_patch(Rectangle((0, 0), 1, 1, transform=panel.transAxes, color="black", zorder=-1))
    set_view(panel, normal, (scene.low_mm + scene.high_mm) / 2, scene.side_mm / 2)
    draw_references(panel, scene.views, scene.palette, scene.spacing_mm, normal, index)
    to_voxels = np.linalg.inv(scene.affine)
    for view in outermost_first(scene.views):
        if view.vertices_mm is None or view.faces is None:
            continue
        vertices = transform(to_voxels, view.vertices_mm) * scene.spacing_mm
        for line in section(vertices, view.faces, normal, index * scene.spacing_mm[normal]):
            closed = np.concatenate([line, line[:1]])
            panel.plot(*closed.T, color=scene.palette[view.name], lw=LINE_POINTS, solid_joinstyle="round")
    if lettered:
        across, up = plane_of(normal)
        draw_letters(panel, -scene.directions[:, across], scene.directions[:, up], TEXT_POINTS)


def _draw_caption(panel: Axes, lines: Sequence[str], theme: Theme) -> None:
    """Beside a row of slices, from its lower end up: on one line, or on two where that is too long."""
    text = ", ".join(lines)
    if len(text) > CAPTION_LETTERS:
        text = "\n".join(lines)
    longest = max(map(len, text.split("\n")))
    size = min(TEXT_POINTS - 0.5, _points(panel) / longest / LETTER_WIDTH)
    if "\n" in text:
        size = min(size, TEXT_POINTS - 1.5)
    panel.text(0.4, 0.5, text, color=theme.text, fontsize=size, rotation=90, ha="center", va="center", ma="center")


def _points(panel: Axes) -> float:
    """A panel's height on paper."""
    return panel.bbox.height * 72 / DPI


def _draw_bar(panel: Axes, side_mm: float, colour: str) -> None:
    """A scale bar at a panel's lower edge, of a round length."""
    length_mm = bar_mm(side_mm)
    share = length_mm / side_mm
    effects = halo(2.5) if colour == "white" else []
    panel.plot(
        (0.95 - share, 0.95),
        (0.06, 0.06),
        color=colour,
        lw=1.8,
        solid_capstyle="butt",
        transform=panel.transAxes,
        path_effects=effects,
        gid="scale-bar",
    )
    panel.text(
        0.95,
        0.085,
        f"{length_mm:g} mm",
        color=colour,
        fontsize=TEXT_POINTS,
        ha="right",
        va="bottom",
        transform=panel.transAxes,
        path_effects=effects,
    )


def bar_mm(side_mm: float) -> float:
    """The longest round length, in mm, that is at most BAR_SHARE of a side."""
    longest = BAR_SHARE * side_mm
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step * power for step in BAR_STEPS if step * power <= longest))


def _draw_side(panel: Axes, side: str, scene: Scene) -> None:
    """The meshes from one side, at the slices' scale, lettered as these are."""
    view_from = SIDES[side]
    meshes = coloured_meshes(scene.views, scene.palette, ENCLOSING_ALPHA)
    if not meshes:
        return
    pixels = min(round(_points(panel) * DPI / 72), figures.RENDER_PIXELS)
    panel.imshow(render(meshes, pixels, view_from, scene.side_mm), extent=(0, 1, 0, 1))
    right, up, _ = camera_from(view_from).T
    draw_letters(panel, right, up, TEXT_POINTS, scene.theme.faint)
    panel.text(0.04, 0.06, f"from {side}", color=scene.theme.text, fontsize=TEXT_POINTS - 0.5, va="center")
    _draw_bar(panel, scene.side_mm, scene.theme.text)


def _draw_volumes(panel: Axes, scene: Scene, volumes_ml: Sequence[float]) -> None:
    """A line for each structure: its colour, name and volume; and what filling means where there are references."""
    points = _points(panel)
    panel.set_xlim(0, points)
    panel.set_ylim(points, 0)
    referenced = any(view.reference is not None for view in scene.views)
    count = len(scene.views) + 1 + 2 * referenced
    step = min(1.6 * TEXT_POINTS, (points - 4) / count)
    size = max(min(TEXT_POINTS, step / 1.3), SMALLEST_POINTS)
    y = 0.8 * step
    panel.text(0.06 * points, y, "volume", color=scene.theme.faint, fontsize=size, va="center")
    for view, volume in zip(scene.views, volumes_ml, strict=True):
        y += step
        _draw_swatch(panel, y, size, scene, view)
        text = volume_text(volume)
        room = 0.77 * points - len(text) * LETTER_WIDTH * size
        smaller = max(min(size, room / len(view.name) / LETTER_WIDTH), 0.75 * size)
        name = _shortened(view.name, int(room / smaller / LETTER_WIDTH))
        panel.text(0.17 * points, y, name, color=scene.theme.text, fontsize=smaller, va="center", parse_math=False)
        panel.text(0.97 * points, y, text, color=scene.theme.text, fontsize=size, va="center", ha="right")
    if referenced:
        key = "line: mesh\nfilled: reference"
        panel.text(0.06 * points, y + step, key, color=scene.theme.faint, fontsize=size, va="top", linespacing=1.3)


def _draw_swatch(panel: Axes, y: float, size: float, scene: Scene, view: StructureView) -> None:
    """A square of a structure's colour."""
    corner = (0.06 * np.ptp(panel.get_xlim()), y - size / 2)
    panel.add_patch(Rectangle(corner, size, size, facecolor=scene.palette[view.name], edgecolor="none"))


def volume_text(volume_ml: float) -> str:
    """A volume with about three figures, and its unit."""
    decimals = 2 if volume_ml < 10 else 1 if volume_ml < 1000 else 0
    return f"{volume_ml:.{decimals}f} ml"
