"""Figures for print: one scale, true contours, named slices, volumes; RGB PNG, SVG and PDF."""

import re
from itertools import combinations
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from meshes import box, sphere
from PIL import Image
from scipy.spatial.transform import Rotation
from skimage.color import deltaE_ciede2000, rgb2lab
from volumes import block_mask

import implicitmeshnet_eval
from implicitmeshnet.data.volume import Grid
from implicitmeshnet.report.figure import ENDINGS, write_figure
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces import case_figure as module
from implicitmeshnet.surfaces.case_figure import THEMES, bar_mm, case_figure, volume_text
from implicitmeshnet.surfaces.figures import COLOURS, OTHERS, StructureView, save_figure, slice_name
from implicitmeshnet.surfaces.sections import section

SHAPE = (40, 44, 36)
MIDDLE = (np.array(SHAPE) - 1) / 2

SIGHTS = {  # of linear RGB, by Machado, Oliveira and Fernandes 2009, severity 1
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """A third of the dots, which no test needs."""
    monkeypatch.setattr(module, "DPI", 100)


def view(name, mesh, encloses=False, reference=None):
    return StructureView(name, None, reference, *mesh, encloses=encloses)


def nested(affine=None):
    """A ventricle within its epicardium, balls of 8 and 13 mm around the middle of SHAPE."""
    affine = np.eye(4) if affine is None else affine
    middle = affine[:3, :3] @ MIDDLE + affine[:3, 3]
    return [view("LV", sphere(middle, 8, 2)), view("Myo", sphere(middle, 13, 2), encloses=True)]


def figure_of(views, affine=None, image=None, **options):
    affine = np.eye(4) if affine is None else affine
    image = np.zeros(SHAPE, np.float32) if image is None else image
    return case_figure("case_7", image, affine, views, [12.3] * len(views), window=(0, 1), **options)


def words(figure):
    """All texts of a figure."""
    texts = list(figure.texts)
    for panel in figure.axes:
        texts += panel.texts
    return [text.get_text() for text in texts]


def slices_of(figure):
    """The panels with a slice."""
    return [panel for panel in figure.axes if panel.images and panel.images[0].get_cmap().name == "gray"]


def bars_of(figure):
    return [line for panel in figure.axes for line in panel.lines if line.get_gid() == "scale-bar"]


def linear(rgb):
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def seen(rgb, matrix):
    """Colours (N, 3) as a person of some sight has them, in CIELAB."""
    light = (linear(rgb) @ np.transpose(matrix)).clip(0, 1)
    return rgb2lab(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)[None])[0]


@pytest.mark.parametrize("sight", SIGHTS)
@pytest.mark.parametrize("palette", [tuple(COLOURS.values()), OTHERS], ids=["whole heart", "others"])
def test_colours_are_told_apart_by_every_sight(sight, palette):
    lab = seen(np.array([to_rgb(colour) for colour in palette]), SIGHTS[sight])
    assert min(deltaE_ciede2000(*pair) for pair in combinations(lab, 2)) > 15


def test_a_section_of_a_ball_is_a_circle():
    vertices, faces = sphere((3, -4, 5), 10, 4)
    (line,) = section(vertices, faces, 1, -4 + 6)
    assert np.linalg.norm(line - (3, 5), axis=1) == pytest.approx(8, abs=0.1)
    turns = np.unwrap(np.arctan2(*(line - (3, 5)).T))
    assert abs(turns[-1] - turns[0]) == pytest.approx(2 * np.pi, abs=0.3)  # once around, in order


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_section_has_a_line_for_each_part_and_none_beside_the_mesh(axis):
    a, b = box((0, 0, 0), (4, 4, 4)), box((10, 10, 0), (14, 14, 4))
    vertices, faces = np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1] + len(a[0])])
    lines = section(vertices, faces, axis, 1.5)
    assert len(lines) == (2 if axis == 2 else 1)
    assert sorted(np.ptp(line, axis=0).tolist() for line in lines) == [[4, 4]] * len(lines)
    assert section(vertices, faces, axis, 20) == []


def test_a_plane_through_vertices_cuts_closed_lines():
    vertices, faces = box((0, 0, 0), (2, 2, 2))
    for position in (0.0, 2.0):
        for line in section(vertices, faces, 2, position):
            assert np.isfinite(line).all()
    assert len(section(vertices, faces, 2, 0.0)) == 1
    assert section(vertices, faces, 2, 2.0) == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_is_rgb_in_its_size_on_its_ground(tmp_path, theme):
    figure = figure_of(nested(), theme=theme)
    save_figure(figure, tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert picture.mode == "RGB"
    assert picture.size == tuple(int(side) for side in figure.get_size_inches() * 100)
    assert picture.size[0] == 710
    assert picture.info["dpi"] == pytest.approx((100, 100), abs=0.1)
    ground = tuple(round(255 * value) for value in to_rgb(THEMES[theme].background))
    assert picture.getpixel((2, 2)) == ground
    pixels = np.asarray(picture).reshape(-1, 3)
    assert (pixels == ground).all(1).mean() > 0.1


def test_the_svg_is_xml_with_its_text_and_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        figure = case_figure("pa $x$ & <b>", np.zeros(SHAPE), np.eye(4), nested(), [305.32, 0.5], window=(0, 1))
        save_figure(figure, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    tree = ElementTree.parse(tmp_path / "a.svg")
    found = {"".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert {"pa $x$ & <b>", "LV", "305.3 ml", "Myo", "0.50 ml"} <= found
    assert tree.getroot().get("width") == "511.2pt"  # 7.1 inches


def test_the_pdf_is_one_page(tmp_path):
    save_figure(figure_of(nested()), tmp_path / "a.pdf")
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", content)) == 1


def test_all_panels_have_one_scale_and_the_bar_is_as_long_as_it_says(tmp_path):
    views = [view("LV", box((5, 10, 8), (35, 30, 28)))]  # 30 x 20 x 20 mm
    figure = figure_of(views, image=np.ones(SHAPE, np.float32))
    panels = slices_of(figure)
    sides = [abs(np.subtract(*limits)) for panel in panels for limits in (panel.get_xlim(), panel.get_ylim())]
    assert np.ptp(sides) < 1e-9
    boxes = [panel.get_window_extent() for panel in panels]
    assert np.ptp([side for each in boxes for side in (each.width, each.height)]) < 1e-6
    pixels_per_mm = boxes[0].width / sides[0]
    length_mm = bar_mm(sides[0])
    assert f"{length_mm:g} mm" in words(figure)
    for bar in bars_of(figure):
        ends = bar.get_transform().transform(bar.get_xydata())
        assert ends[1, 0] - ends[0, 0] == pytest.approx(length_mm * pixels_per_mm)
    # The same box is as wide in the slice, between its contour's ends, as it is in the view of the meshes.
    contour = panels[0].lines[0].get_xdata()
    assert np.ptp(contour) == pytest.approx(30)
    save_figure(figure, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    meshes = next(panel for panel in figure.axes if "from anterior" in [text.get_text() for text in panel.texts])
    area = meshes.get_window_extent()
    part = picture[-int(area.y1) : -int(area.y0) - 20 or None, int(area.x0) : int(area.x1)][20:-15]
    red = (part[..., 0] - part[..., 1]) > 60
    assert np.ptp(np.flatnonzero(red.any(0))) + 1 == pytest.approx(30 * pixels_per_mm, abs=4)


@pytest.mark.parametrize(("side_mm", "length"), [(121, 50), (119, 20), (47.7, 20), (0.5, 0.2), (2500, 1000)])
def test_the_bar_is_round_and_at_most_so_long(side_mm, length):
    assert bar_mm(side_mm) == pytest.approx(length)


def test_an_isotropic_image_has_three_planes_of_four_slices():
    figure = figure_of(nested())
    captions = [word for word in words(figure) if "every" in word]
    assert captions == [
        "axial, S to I, every 6.5 mm",
        "coronal, A to P, every 6.5 mm",
        "sagittal, R to L, every 6.5 mm",
    ]
    assert len(slices_of(figure)) == 12
    first = [text.get_text() for text in slices_of(figure)[0].texts]
    assert sorted(first) == ["10 mm", "A", "L", "R"]


def test_slices_begin_at_the_end_that_the_caption_names():
    image = np.broadcast_to(np.arange(SHAPE[2]), SHAPE)  # brighter towards superior
    shown = [panel.images[0].get_array().mean() for panel in slices_of(figure_of(nested(), image=image))[:4]]
    assert shown == sorted(shown, reverse=True)
    assert np.diff(shown) == pytest.approx(-6.5, abs=1)


def ellipsoid(direction, middle=(0, 0, 0)):
    """A ventricle 40 mm long and 20 mm wide along a direction."""
    vertices, faces = sphere((0, 0, 0), 10, 2)
    direction = np.asarray(direction) / np.linalg.norm(direction)
    return vertices + np.outer(vertices @ direction, direction) + middle, faces


@pytest.mark.parametrize("turn", [(0, 0, 0), (50, 0, 20), (35, -30, 0)])
def test_a_stack_across_the_ventricle_is_called_short_axis_and_shown_alone(turn):
    directions = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = directions * [1, 1, 6]
    middle = affine[:3, :3] @ MIDDLE
    across = view("LV", ellipsoid(directions[:, 2], middle))
    along = view("LV", ellipsoid(directions[:, 0], middle))
    figure = figure_of([across], affine)
    (caption,) = [word for word in words(figure) if "every" in word]
    assert re.match(r"short axis[,\n]", caption)
    assert len(slices_of(figure)) == 6  # of 40 mm
    (caption,) = [word for word in words(figure_of([along], affine)) if "every" in word]
    assert "short axis" not in caption
    (caption,) = [word for word in words(figure_of([view("hippocampus", mesh_of(across))], affine)) if "every" in word]
    assert "short axis" not in caption


def mesh_of(of):
    return of.vertices_mm, of.faces


def test_only_the_thick_axis_of_a_stack_is_short_axis():
    lv = [view("LV", ellipsoid((0, 0, 1)))]
    assert slice_name(np.array([1, 1, 8.0]), np.eye(3), 2, lv) == "short axis"
    assert slice_name(np.array([1, 1, 8.0]), np.eye(3), 1, lv) == "coronal"
    assert slice_name(np.array([1, 1, 1.5]), np.eye(3), 2, lv) == "axial"
    assert slice_name(np.array([1, 1, 8.0]), np.eye(3), 2, [view("LV", sphere((0, 0, 0), 9, 2))]) == "axial"


def test_a_stack_resampled_for_the_network_is_still_one():
    lv = [view("LV", ellipsoid((0, 0, 1), MIDDLE))]
    figure = figure_of(lv, acquired_mm=np.array([1.4, 1.4, 10.0]))
    (caption,) = [word for word in words(figure) if "every" in word]
    assert caption.startswith("short axis, ")
    assert len(slices_of(figure)) == 4


def test_an_enclosed_structure_is_seen_through_its_encloser(tmp_path):
    save_figure(figure_of(nested()), tmp_path / "a.png")
    outer = [StructureView("Myo", None, None, *mesh_of(nested()[1]), encloses=False)]
    save_figure(figure_of([nested()[0], *outer]), tmp_path / "b.png")
    middles = []
    for name in ("a", "b"):
        figure = figure_of(nested())
        meshes = next(panel for panel in figure.axes if "from left" in [text.get_text() for text in panel.texts])
        area = meshes.get_window_extent()
        picture = np.asarray(Image.open(tmp_path / f"{name}.png"))
        x, y = round((area.x0 + area.x1) / 2), picture.shape[0] - round((area.y0 + area.y1) / 2)
        middles.append(picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0) / 255)
    hue = np.array([to_rgb(COLOURS["LV"]), to_rgb(COLOURS["Myo"])])
    share = middles / np.linalg.norm(middles, axis=1, keepdims=True) @ (hue / np.linalg.norm(hue, axis=1)[:, None]).T
    assert share[0, 0] > share[0, 1]  # through the epicardium the ventricle
    assert share[1, 1] > share[1, 0]  # opaque, the epicardium alone


def test_contours_are_the_meshes_own_and_the_enclosed_ones_lie_above():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    views = nested(affine)
    panel = slices_of(figure_of(views, affine))[1]
    colours = [line.get_color() for line in panel.lines]
    assert colours == [COLOURS["Myo"], COLOURS["LV"]]
    for line, radius in zip(panel.lines, (13, 8), strict=True):
        beside = line.get_xydata() - MIDDLE[:2]
        assert np.linalg.norm(beside, axis=1).max() <= radius + 1e-6


def test_references_are_fillings_with_a_key():
    reference = block_mask(SHAPE, (15, 15, 12), (25, 28, 24))
    (lv, _) = nested()
    figure = figure_of([view("LV", mesh_of(lv), reference=reference)])
    assert any("filled: reference" in word for word in words(figure))
    assert sum(len(panel.collections) for panel in slices_of(figure)) >= 6
    assert not any("reference" in word for word in words(figure_of(nested())))


@pytest.mark.parametrize(
    ("volume", "text"), [(0.0, "0.00 ml"), (3.456, "3.46 ml"), (85.71, "85.7 ml"), (1234.5, "1234 ml")]
)
def test_volumes_have_about_three_figures(volume, text):
    assert volume_text(volume) == text


def test_many_structures_with_long_names_stay_within_the_figure_and_off_their_volumes():
    views = [view(f"a structure with a long name {number}", sphere(MIDDLE, 3 + number / 4, 1)) for number in range(24)]
    figure = figure_of(views)
    figure.draw_without_rendering()
    for text in (text for panel in figure.axes for text in panel.texts):
        extent = text.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width
        assert extent.y0 >= -1 and extent.y1 <= figure.bbox.height
    assert words(figure).count("12.3 ml") == 24
    names = [text for text in legend_of(figure) if text.get_text().startswith("a str")]
    volumes = [text for text in legend_of(figure) if text.get_text().endswith(" ml")]
    assert len(names) == 24
    for name, volume in zip(names, volumes, strict=True):
        assert name.get_window_extent().x1 < volume.get_window_extent().x0


def legend_of(figure):
    """The texts of the panel with the volumes."""
    return next(panel.texts for panel in figure.axes if "volume" in [text.get_text() for text in panel.texts])


def test_captions_of_oblique_planes_have_two_lines_within_their_strip():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xy", [25, 30], degrees=True).as_matrix()
    figure = figure_of(nested(affine), affine)
    figure.draw_without_rendering()
    captions = [text for panel in figure.axes for text in panel.texts if "every" in text.get_text()]
    assert captions[0].get_text().split("\n")[0].startswith("oblique, ")
    for caption in captions:
        extent, strip = caption.get_window_extent(), caption.axes.get_window_extent()
        assert caption.get_fontsize() >= 4.5
        assert extent.height <= strip.height + 1
        assert extent.x1 <= strip.x1 + 1 and extent.x0 >= 0


def test_without_structures_the_image_alone_is_shown(tmp_path):
    save_figure(figure_of([]), tmp_path / "a.png")
    assert len(slices_of(figure_of([]))) == 12


def test_a_long_name_loses_its_middle():
    name = "first_" + "x" * 200 + "_last"
    figure = case_figure(name, np.zeros(SHAPE), np.eye(4), nested(), [1, 2])
    title = figure.texts[0].get_text()
    assert len(title) <= 76
    assert title.startswith("first_") and title.endswith("_last") and "…" in title


def test_a_prediction_is_written_in_each_format_with_its_label_maps_volumes(tmp_path):
    import torch

    grid = Grid(SHAPE, np.diag([-2.0, 1.0, 1.0, 1.0]))  # the network's is canonical
    structures = Structures(("LV", "Myo"), ((5,), (7,)), ((), (0,)))
    shown = Grid(SHAPE, np.diag([2.0, 1.0, 1.0, 1.0]))
    meshes = [sphere(MIDDLE * (2, 1, 1), radius, 2) for radius in (8, 13)]
    labelmap = np.zeros(SHAPE, np.int16)
    labelmap[:10, :10, :10] = 5
    surfaces = SimpleNamespace(
        structures=structures,
        vertices=np.stack([vertices for vertices, _ in meshes]),
        faces=meshes[0][1],
        labelmap=labelmap,
        grid=grid,
        sample=SimpleNamespace(image=torch.zeros(1, *SHAPE), grid=shown),
    )
    write_figure(tmp_path / "p.1_figure", "p.1", surfaces, None, "dark")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"p.1_figure.{each}" for each in ENDINGS)
    text = (tmp_path / "p.1_figure.svg").read_text()
    assert ">2.00 ml<" in text
    assert ">0.00 ml<" in text
    assert ">p.1<" in text


def test_the_scripts_themes_are_the_packages():
    assert set(implicitmeshnet_eval.FIGURE_THEMES) == set(THEMES)
