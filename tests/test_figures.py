"""Previews: right pixels in the right places, without touching matplotlib's global state."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from implicitmeshnet.figures import COLOURS, OTHERS, Structure, case_preview, colours, training_overview
from implicitmeshnet.render import render


def sphere(centre, radius_mm=10.0):
    mesh = trimesh.creation.icosphere(subdivisions=3)
    return np.array(mesh.vertices) * radius_mm + centre, np.array(mesh.faces)


def block(shape, start, stop):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = True
    return mask


def near(picture, name, tolerance=0.02):
    """Where a picture (H, W, 3 or more) has the colour of a structure."""
    return (np.abs(picture[..., :3] - to_rgb(colours([name])[name])) < tolerance).all(-1)


def test_colours_are_distinct_and_constant():
    assert len(set(COLOURS.values()) | set(OTHERS)) == len(COLOURS) + len(OTHERS)
    assert colours(["LV", "LA"])["LA"] == colours(["LA"])["LA"] == COLOURS["LA"]
    assert len(set(colours(["anterior", "LV", "posterior"]).values())) == 3


def test_preview_is_radiological(tmp_path):
    # Bright in the patient's right half (low index is left in RAS), structure there too: the viewer's left.
    shape = (40, 50, 60)
    image = np.zeros(shape, dtype=np.float32)
    image[22:] = 100.0
    mask, reference = block(shape, (24, 20, 25), (36, 30, 35)), block(shape, (4, 20, 25), (16, 30, 35))
    structures = [Structure("LV", mask), Structure("LA", None, reference)]
    path = tmp_path / "preview.png"
    figure = case_preview(path, image, (1.0, 1.2, 0.8), structures, (0, 100))
    picture = imread(path)
    assert picture.shape[:2] == (455, 1600)
    axial = picture[45:405, 5:400]
    assert near(axial, "LV").any()
    assert np.argwhere(near(axial, "LV"))[:, 1].max() < axial.shape[1] / 2
    assert not near(axial, "LA").any()  # a reference is white
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
    mask = block(shape, (10, 20, 15), (31, 40, 46))
    figure = case_preview(None, np.zeros(shape), spacing_mm, [Structure("LV", mask)], (0, 1))
    outline = figure.axes[0].collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(outline.min(0), [9.5, 19.5 * 1.5], atol=0.1)
    np.testing.assert_allclose(outline.max(0), [30.5, 39.5 * 1.5], atol=0.1)


def test_preview_with_nothing_in_it(tmp_path):
    empty = np.zeros((8, 9, 10), dtype=bool)
    case_preview(tmp_path / "a.png", np.ones((8, 9, 10)), (1, 1, 1), [Structure("LV", empty, empty)])
    case_preview(tmp_path / "b.png", np.ones((8, 9, 10)), (1, 1, 1), [])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_render_shows_the_left_on_the_right_and_up_on_top():
    meshes = [(*sphere((-30, 0, 0)), to_rgb("blue")), (*sphere((30, 0, 0)), to_rgb("red")),
              (*sphere((0, 0, 40)), to_rgb("lime"))]  # fmt: skip
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
    for meshes in ([(*front, (1, 0, 0)), (*back, (0, 0, 1))], [(*back, (0, 0, 1)), (*front, (1, 0, 0))]):
        picture = render([(vertices @ yaw(), faces, colour) for vertices, faces, colour in meshes], 100)
        assert (picture[..., 0] > 0.4).any()
        assert not (picture[..., 2] > picture[..., 0] + 0.05).any()


def yaw():
    """Turns the anterior axis to the direction from which the renderer looks, seen from above."""
    angle = np.arctan2(0.55, 1.0)
    return np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def test_render_covers_the_disc_of_a_sphere():
    picture = render([(*sphere((5, 6, 7)), (0.5, 0.5, 0.5))], 200)
    assert picture[..., 3].sum() == pytest.approx(np.pi * (0.94 * 100) ** 2, rel=0.02)
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert (picture[90:110, 90:110, 3] == 1).all()  # no cracks


def test_training_overview(tmp_path):
    history = [{"epoch": e + 1, "total": 2 / (e + 1), "occupancy": 1 / (e + 1), "seconds": 3.0} for e in range(6)]
    history[2]["dice"] = {"LV": 0.8, "LA": 0.7}
    history[5]["dice"] = {"LV": 0.75, "LA": float("nan")}
    figure = training_overview(tmp_path / "overview.png", history)
    losses, scores = figure.axes
    assert [line.get_label() for line in losses.lines] == ["total", "occupancy"]
    assert list(losses.lines[0].get_ydata()) == [record["total"] for record in history]
    assert [line.get_label() for line in scores.lines] == ["LV, best 0.800", "LA, best 0.700"]
    assert list(scores.lines[0].get_xdata()) == [3, 6]
    assert imread(tmp_path / "overview.png").shape[:2] == (450, 1200)
    training_overview(tmp_path / "overview.png", history[:1])


def test_importing_leaves_pyplot_alone():
    code = "import implicitmeshnet.figures, sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])
