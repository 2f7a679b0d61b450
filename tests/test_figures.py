"""Previews: right pixels in the right places, without touching matplotlib's global state."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.image import imread
from meshes import sphere
from nibabel.orientations import io_orientation
from scipy.spatial.transform import Rotation
from volumes import ball_mask, block_mask

from implicitmeshnet.surfaces.figures import (
    COLOURS,
    ENCLOSING_ALPHA,
    OTHERS,
    REFERENCE_ALPHA,
    StructureView,
    case_preview,
    colours,
)
from implicitmeshnet.surfaces.render import render


def near(picture, name, tolerance=0.02):
    """Where a picture (H, W, 3 or more) has the colour of a structure."""
    return (np.abs(picture[..., :3] - to_rgb(colours([name])[name])) < tolerance).all(-1)


def test_colours_are_distinct_and_constant():
    assert len(set(COLOURS.values()) | set(OTHERS)) == len(COLOURS) + len(OTHERS)
    assert colours(["LV", "LA"])["LA"] == colours(["LA"])["LA"] == COLOURS["LA"]
    assert len(set(colours(["anterior", "LV", "posterior"]).values())) == 3


def test_a_preview_shows_the_patients_right_on_the_left(tmp_path):
    # Bright in the patient's right half (low index is left in RAS), structure there too: the viewer's left.
    shape = (40, 50, 60)
    image = np.zeros(shape, dtype=np.float32)
    image[22:] = 100.0
    mask, reference = block_mask(shape, (24, 20, 25), (36, 30, 35)), block_mask(shape, (4, 20, 25), (16, 30, 35))
    structures = [StructureView("LV", mask), StructureView("LA", None, reference)]
    path = tmp_path / "preview.png"
    figure = case_preview(path, image, np.diag([1.0, 1.2, 0.8, 1.0]), structures, (0, 100))
    picture = imread(path)
    assert picture.shape[:2] == (455, 1600)
    axial = picture[45:405, 5:400]
    assert near(axial, "LV").any()
    assert np.argwhere(near(axial, "LV"))[:, 1].max() < axial.shape[1] / 2
    assert not near(axial, "LA").any()  # a reference is a filling
    assert axial[100:300, :190, :3].mean() > axial[100:300, 205:, :3].mean() + 0.3
    assert [text.get_text() for text in figure.axes[0].texts] == ["R", "L", "A"]
    assert [text.get_text() for text in figure.axes[2].texts] == ["A", "P", "S"]
    for panel in figure.axes[:2]:
        low, high = panel.get_xlim()
        assert low > high
    assert figure.axes[2].get_xlim()[0] > figure.axes[2].get_xlim()[1]  # anterior on the left
    assert all(panel.get_ylim()[0] < panel.get_ylim()[1] for panel in figure.axes[:3])


def test_contours_lie_on_the_mask_in_mm():
    shape, spacing_mm = (40, 50, 60), (1.0, 1.5, 0.5)
    mask = block_mask(shape, (10, 20, 15), (31, 40, 46))
    affine = np.diag([*spacing_mm, 1.0])
    figure = case_preview(None, np.zeros(shape), affine, [StructureView("LV", mask)], (0, 1))
    outline = figure.axes[0].collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(outline.min(0), [9.5, 19.5 * 1.5], atol=0.1)
    np.testing.assert_allclose(outline.max(0), [30.5, 39.5 * 1.5], atol=0.1)


def test_previews_of_empty_masks_and_of_no_structures_are_written(tmp_path):
    empty = np.zeros((8, 9, 10), dtype=bool)
    case_preview(tmp_path / "a.png", np.ones((8, 9, 10)), np.eye(4), [StructureView("LV", empty, empty)])
    case_preview(tmp_path / "b.png", np.ones((8, 9, 10)), np.eye(4), [])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mask", [np.ones((8, 9, 10), bool), block_mask((8, 9, 10), (4, 4, 4), (5, 5, 5))])
def test_preview_of_all_or_hardly_anything(mask):
    case_preview(None, np.ones((8, 9, 10)), np.eye(4), [StructureView("LV", mask, mask)])


def test_references_that_touch_are_fillings_and_nothing_else(tmp_path):
    shape = (40, 40, 40)
    left, right = block_mask(shape, (8, 8, 8), (20, 32, 32)), block_mask(shape, (20, 8, 8), (32, 32, 32))
    structures = [StructureView("LV", None, left), StructureView("RV", None, right)]
    case_preview(tmp_path / "a.png", np.zeros(shape), np.eye(4), structures, (0, 1))
    middle = imread(tmp_path / "a.png")[150:300, 100:300, :3]  # of the axial panel, within both
    wanted = [REFERENCE_ALPHA * np.array(to_rgb(COLOURS[name])) for name in ("RV", "LV")]  # right is on the left
    for pixels, colour in ((middle[:, :90], wanted[0]), (middle[:, 110:], wanted[1])):
        np.testing.assert_allclose(pixels.reshape(-1, 3), np.tile(colour, (90 * 150, 1)), atol=0.02)
    assert middle.max() < max(colour.max() for colour in wanted) + 0.1  # no line between them


def test_an_enclosed_structures_contour_lies_over_its_enclosers(tmp_path):
    shape = (40, 40, 40)
    inner, outer = block_mask(shape, (14, 14, 14), (26, 26, 26)), block_mask(shape, (8, 8, 8), (32, 32, 32))
    structures = [StructureView("LV", inner), StructureView("Myo", outer & ~inner, encloses=True)]
    case_preview(tmp_path / "a.png", np.zeros(shape), np.eye(4), structures, (0, 1))
    axial = imread(tmp_path / "a.png")[45:405, 5:400]
    assert near(axial, "LV").sum() > 300
    assert near(axial[100:260, 110:280], "Myo").sum() < 0.2 * near(axial, "LV").sum()


def test_thick_slices_keep_their_shape(tmp_path):
    shape, spacing_mm = (60, 60, 9), np.array([1.0, 1.0, 8.0])
    ball = ball_mask(shape, (np.array(shape) - 1) / 2, 22, spacing_mm)
    case_preview(tmp_path / "a.png", np.zeros(shape), np.diag([*spacing_mm, 1]), [StructureView("LV", ball)], (0, 1))
    picture = imread(tmp_path / "a.png")[45:405]
    for left in (5, 403, 801):
        seen = np.argwhere(near(picture[:, left : left + 390], "LV"))
        height, width = np.ptp(seen, axis=0) + 1
        assert height == pytest.approx(width, rel=0.12)  # 5 slices of 8 mm of a ball 44 mm across


def preview_words(directions):
    """Titles and letters of the panels of an image whose axes run along the columns of directions (3, 3)."""
    affine = np.eye(4)
    affine[:3, :3] = directions
    figure = case_preview(None, np.zeros((6, 6, 6)), affine, [], (0, 1))
    return [(panel.get_title(), [text.get_text() for text in panel.texts]) for panel in figure.axes[:3]]


@pytest.mark.parametrize(("degrees", "title", "letters"), [
    (0, "axial", ["R", "L", "A"]),
    (-19, "axial", ["R", "L", "A"]),
    (21, "oblique, 21° off axial", ["R", "L", "AS"]),
    (-40, "oblique, 40° off axial", ["R", "L", "AI"]),
])  # fmt: skip
def test_a_slice_is_named_by_where_it_lies_in_the_body(degrees, title, letters):
    turned = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    words = preview_words(turned * [1.5, 1.5, 10])
    assert words[0] == (title, letters)
    assert words[2][0] == "sagittal"  # across the axis of the turn


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_no_oblique_slice_has_a_planes_name(seed):
    directions = Rotation.random(random_state=seed).as_matrix()
    orientation = io_orientation(np.block([[directions, np.zeros((3, 1))], [np.zeros(3), np.ones(1)]]))
    order = np.argsort(orientation[:, 0])
    directions = directions[:, order] * orientation[order, 1]  # canonical
    for normal, (title, letters) in zip((2, 1, 0), preview_words(directions), strict=True):
        degrees = np.degrees(np.arccos(np.abs(directions[:, normal]).max()))
        name = ("sagittal", "coronal", "axial")[np.abs(directions[:, normal]).argmax()]
        assert title == (name if degrees <= 20 else f"oblique, {degrees:.0f}° off {name}")
        across, up = directions[:, 1 if normal == 0 else 0], directions[:, 1 if normal == 2 else 2]
        for letter, direction in zip(letters, (across, -across, up), strict=True):
            nearest = np.abs(direction).argmax()
            assert letter[0] == ("LR", "PA", "IS")[nearest][int(direction[nearest] > 0)]
            assert len(letter) == (np.abs(direction) > np.sin(np.radians(20))).sum()


def test_render_shows_the_left_on_the_right_and_up_on_top():
    meshes = [(*sphere((-30, 0, 0), 10), to_rgba("blue")), (*sphere((30, 0, 0), 10), to_rgba("red")),
              (*sphere((0, 0, 40), 10), to_rgba("lime"))]  # fmt: skip
    picture = render(meshes, 120)
    assert picture.shape == (120, 120, 4)
    row, column = {}, {}
    for channel, name in enumerate(("red", "lime", "blue")):
        where = (picture[..., channel] > 0.5) & (picture[..., :3].argmax(-1) == channel)
        row[name], column[name] = np.argwhere(where).mean(0)
    assert column["red"] < column["lime"] < column["blue"]
    assert row["lime"] < min(row["red"], row["blue"])


def test_render_hides_what_is_behind():
    front, back = sphere((0, 20, 7), 12), sphere((0, -20, -7), 8)
    red, blue = to_rgba("red"), to_rgba("blue")
    for meshes in ([(*front, red), (*back, blue)], [(*back, blue), (*front, red)]):
        picture = render([(vertices @ yaw(), faces, colour) for vertices, faces, colour in meshes], 100)
        assert (picture[..., 0] > 0.4).any()
        assert not (picture[..., 2] > picture[..., 0] + 0.05).any()


def test_render_shows_what_a_translucent_mesh_holds_and_hides_what_is_behind_an_opaque_one():
    """An outer, translucent ball around a blue one, and a lime one in front of or behind both."""
    nested = [(*sphere((0, 0, 0), 20), (1, 0, 0, ENCLOSING_ALPHA)), (*sphere((0, 0, 0), 8), to_rgba("blue"))]
    toward = np.divide((-0.55, 1.0, 0.35), np.linalg.norm((-0.55, 1.0, 0.35)))
    for along, seen in ((30, "lime"), (-30, "blue")):
        meshes = [*nested, (*sphere(along * toward, 5), to_rgba("lime"))]
        picture = render(meshes, 120)
        np.testing.assert_allclose(render(meshes[::-1], 120), picture, atol=1e-9)
        middle = picture[55:65, 55:65].mean((0, 1))
        assert middle[3] == 1
        assert middle[:3].argmax() == {"lime": 1, "blue": 2}[seen]
    row = picture[60]
    beside = row[95]  # of the outer ball alone
    assert ENCLOSING_ALPHA <= beside[3] < 0.7
    assert beside[:3].argmax() == 0
    assert row[55:65, 0].min() > 0.1  # and the outer one is seen over the inner


def yaw():
    """Turns the anterior axis to the direction from which the renderer looks, seen from above."""
    angle = np.arctan2(0.55, 1.0)
    return np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def test_render_covers_the_disc_of_a_sphere():
    picture = render([(*sphere((5, 6, 7), 10), (0.5, 0.5, 0.5, 1.0))], 200)
    assert picture[..., 3].sum() == pytest.approx(np.pi * (0.94 * 100) ** 2, rel=0.02)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert (picture[90:110, 90:110, 3] == 1).all()  # no cracks


def test_importing_leaves_pyplot_alone():
    code = "import implicitmeshnet.surfaces.figures, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
