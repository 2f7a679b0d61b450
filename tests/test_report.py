"""report.html: what stands in it, and that a browser opens it from a file without network and without an error."""

import base64
import json
import re
import zlib
from dataclasses import replace
from types import SimpleNamespace

import meshes
import numpy as np
import pytest
from browser import Browser

from implicitmeshnet.data.volume import Grid, Volume, network_grid
from implicitmeshnet.report import page
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.labelmap import mesh_to_mask

STRUCTURES = Structures(("Myo", "LV"), ((205,), (500,)), ((1,), ()))
OBLIQUE = np.array([[-1.9, 0.3, 0.2, 50], [0.3, 1.8, -0.4, -60], [-0.2, 0.4, 2.4, 10], [0, 0, 0, 1.0]])
SHAPE = (40, 36, 30)
FACES = meshes.sphere((0, 0, 0), 1.0, 2)[1]


def evaluated(name: str, dice: float | None = 0.9, agreement: float = 0.95, warnings: str = "") -> page.ReportedCase:
    """A case of two spheres, one in the other, in an image that is bright inside the inner one."""
    grid = Grid(SHAPE, OBLIQUE)
    middle = OBLIQUE[:3, :3] @ np.array([22.0, 17, 14]) + OBLIQUE[:3, 3]
    outer, _ = meshes.sphere(middle, 22.0, 2)
    inner, _ = meshes.sphere(middle, 12.0, 2)
    inside = mesh_to_mask(inner, FACES, grid)
    image = np.where(inside, 300, 0).astype(np.int16)
    labels = Volume(inside * np.int16(500), grid) if dice is not None else None
    sample = SimpleNamespace(grid=network_grid(grid, (32, 32, 32), 2.0, middle))
    surfaces = SimpleNamespace(
        structures=STRUCTURES, names=STRUCTURES.names, vertices=np.stack([outer, inner]), faces=FACES, sample=sample
    )
    rows = []
    for number, structure in enumerate(STRUCTURES.names):
        row = {"case": name, "structure": structure, "seconds": 1.5, "warnings": warnings}
        row |= dict.fromkeys(page.SHOWN, 7.0)
        rows.append(row | {"dice": dice and dice - number / 10, "hd95_mm": float("nan"), "agreement": agreement})
    return page.reported_case(page.page_image(Volume(image, grid), sample.grid), labels, surfaces, rows)


def tree_of(path) -> dict:
    return json.loads(re.search(r'id="report">(.*?)</script>', path.read_text(), re.DOTALL)[1])


def blobs_of(path) -> dict[str, bytes]:
    found = re.findall(r'<script type="text/plain" id="([\w-]+)">(.*?)</script>', path.read_text())
    return {name: zlib.decompress(base64.b64decode(text)) for name, text in found}


def test_vertices_image_and_label_lie_together_on_the_pages_grid(tmp_path):
    page.write_report(tmp_path / "a.html", STRUCTURES, FACES, [evaluated("a")], {}, {})
    view = tree_of(tmp_path / "a.html")["cases"][0]["view"]
    blobs = blobs_of(tmp_path / "a.html")
    count = 2 * 162 * 3
    packed = np.frombuffer(blobs["case-0"], "<u2", count).reshape(2, 162, 3)
    image, classes = np.frombuffer(blobs["case-0"], np.uint8, offset=2 * count).reshape(2, *view["shape"])
    voxels = view["low"] + packed * np.array(view["step"])
    assert max(view["shape"]) == page.MOST_VOXELS
    affine = np.eye(4)
    affine[:3, :3] = view["axes"]  # in the page's own mm, whose origin is of no matter
    np.testing.assert_allclose(view["spacing_mm"], 64 / 96, rtol=1e-6)
    faces = np.frombuffer(blobs["faces"], "<u4").reshape(-1, 3).astype(int)
    sphere = mesh_to_mask(voxels[1] @ affine[:3, :3].T, faces, Grid(tuple(view["shape"]), affine))
    for bright in (image > 127, classes == STRUCTURES.class_of(1)):
        assert 2 * (bright & sphere).sum() / (bright.sum() + sphere.sum()) > 0.93
    np.testing.assert_allclose(
        np.ptp(voxels[0] @ affine[:3, :3].T, axis=0), np.ptp(meshes.sphere((0, 0, 0), 22.0, 2)[0], axis=0), atol=0.01
    )


def test_slices_are_named_and_lettered_by_where_they_lie(tmp_path):
    view = evaluated("a").view
    assert view["planes"] == ["sagittal", "coronal", "axial"]
    assert view["letters"] == [["L", "R"], ["P", "A"], ["I", "S"]]


def test_the_worst_case_comes_first_by_dice_and_without_a_label_by_agreement(tmp_path):
    cases = [evaluated("good"), evaluated("bad", 0.4), evaluated("unlabelled", None, 0.2), evaluated("fair", None, 0.8)]
    page.write_report(tmp_path / "a.html", STRUCTURES, FACES, cases, {}, {})
    tree = tree_of(tmp_path / "a.html")
    assert [(case["rank"], case["name"]) for case in tree["cases"]] == [
        (1, "unlabelled"), (2, "bad"), (3, "fair"), (4, "good")
    ]  # fmt: skip
    assert [case["view"]["labelled"] for case in tree["cases"]] == [False, True, False, True]
    assert tree["labelled"]
    assert tree["cases"][1]["structures"]["LV"]["hd95_mm"] is None  # what JSON lacks
    assert [each["encloses"] for each in tree["structures"]] == [True, False]


def test_names_and_settings_cannot_end_an_element_or_fill_another_place(tmp_path):
    name = "</script><script>alert(1)</script>@script@"
    page.write_report(
        tmp_path / "a.html", STRUCTURES, FACES, [evaluated(name)], {"command": "@blobs@<b>"}, {"c": "<!--"}
    )
    tree = tree_of(tmp_path / "a.html")
    assert tree["cases"][0]["name"] == name
    assert tree["settings"] == {"command": "@blobs@<b>"}
    assert tree["failed"] == {"c": "<!--"}
    assert "alert(1)</script>" not in (tmp_path / "a.html").read_text()


def test_of_cases_beyond_the_room_the_figures_alone_stand(tmp_path, monkeypatch):
    cases = [evaluated("good"), evaluated("bad", 0.4)]
    monkeypatch.setattr(page, "MOST_BYTES", int(1.4 * len(cases[0].packed)))
    page.write_report(tmp_path / "a.html", STRUCTURES, FACES, cases, {}, {})
    assert [case["view"] is not None for case in tree_of(tmp_path / "a.html")["cases"]] == [True, False]
    assert set(blobs_of(tmp_path / "a.html")) == {"faces", "case-0"}


def test_cases_added_one_by_one_keep_the_worst_ones_meshes(monkeypatch):
    cases = [evaluated("good"), evaluated("bad", 0.4), evaluated("fair", 0.7)]
    monkeypatch.setattr(page, "MOST_BYTES", int(1.4 * len(cases[0].packed)))
    kept = []
    for case in cases:
        kept = page.worst_first([*kept, case])
    assert [(case.name, case.packed is not None) for case in kept] == [("bad", True), ("fair", False), ("good", False)]


def test_an_image_beside_the_box_is_black_and_a_constant_one_is_no_error():
    grid = Grid(SHAPE, OBLIQUE)
    far = network_grid(grid, (16, 16, 16), 2.0, (2000, 0, 0))
    flat = Volume(np.full(SHAPE, 7, np.int16), grid)
    assert not page.grey_image(flat, page.page_grid(far)).any()
    near = network_grid(grid, (16, 16, 16), 2.0)
    assert np.ptp(page.grey_image(flat, page.page_grid(near))) == 0


def test_cutting_to_the_box_changes_no_voxel_of_the_page():
    grid = Grid(SHAPE, OBLIQUE)
    noise = Volume(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), grid)
    box = page.page_grid(network_grid(grid, (12, 12, 12), 2.0))
    whole = page.resample_image(page.in_order_of(noise, box), box, 0.0)
    cut = page.resample_image(page.cut_to_box(page.in_order_of(noise, box), box), box, 0.0)
    np.testing.assert_allclose(cut, whole, atol=1e-5)


def test_a_page_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        page.write_report(tmp_path / "taken/report.html", STRUCTURES, FACES, [evaluated("a")], {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.fixture(scope="module")
def browser():
    chromium = Browser()
    yield chromium
    chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """The page of three cases, opened from a file, its worst case shown."""
    cases = [evaluated("good"), evaluated("bad", 0.4, warnings="bad: may be wrong"), evaluated("plain", None, 0.97)]
    page.write_report(
        tmp_path / "report.html",
        STRUCTURES,
        FACES,
        cases,
        {"made by": "a test", "config": "{\n}"},
        {"d": "d: unreadable"},
    )
    browser.requests.clear()
    browser.open(tmp_path / "report.html")
    browser.wait_for("document.body && document.body.dataset.opened === '0'")
    yield browser
    assert browser.errors == []
    assert browser.requests == [(tmp_path / "report.html").as_uri()]


def coloured(canvas: str) -> str:
    """How many pixels of a canvas are redder than they are green, as JavaScript."""
    return (
        f"(() => {{ const c = document.querySelector('{canvas}');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;"
        " for (let i = 0; i < d.length; i += 4) n += d[i] > 1.5 * d[i + 1]; return n; })()"
    )


def pixels(canvas: str) -> str:
    return f"document.querySelector('{canvas}').toDataURL()"


CASES = "[...document.querySelectorAll('#cohort tbody tr td:nth-child(2)')].map((cell) => cell.textContent).join()"


@pytest.mark.slow
def test_a_structure_is_switched_off_in_the_meshes_and_in_the_slices(opened):
    """The ventricle is red, and is seen through the epicardium before and alone after that is switched off."""
    before = opened.value(coloured("#meshes"))
    assert before > 1000
    slices = opened.value(pixels("#canvas-2"))
    opened.press(" ", "#show-1")
    opened.wait_for(f"{coloured('#meshes')} < {before / 4}")
    assert opened.value(pixels("#canvas-2")) != slices
    opened.click("#show-1")
    opened.wait_for(f"{coloured('#meshes')} === {before}")


@pytest.mark.slow
def test_the_table_sorts_by_mouse_and_by_keyboard(opened):
    assert opened.value(CASES) == "bad,good,plain"
    heading = 'th[data-key="dice"] button'
    opened.click(heading)
    opened.wait_for(f"{CASES} === 'bad,good,plain'")
    assert opened.value("document.querySelector('th[data-key=dice]').ariaSort") == "ascending"
    opened.press("Enter", heading)
    opened.wait_for(f"{CASES} === 'good,bad,plain'")  # what has none stays last
    opened.press("Enter", 'th[data-key="name"] button')
    opened.wait_for(f"{CASES} === 'bad,good,plain'")
    assert opened.value("document.activeElement.textContent") == "Case"
    warned = "document.querySelector('#cohort td.sentences.warning')"
    assert opened.value(f"{warned}.textContent") == "bad: may be wrong"
    assert opened.value(f"getComputedStyle({warned}).color") != opened.value("getComputedStyle(document.body).color")


@pytest.mark.slow
def test_another_case_is_opened_and_its_slices_are_gone_through(opened):
    opened.press("Enter", "#cohort tbody tr[data-case='2'] button")
    opened.wait_for("document.body.dataset.opened === '2'")
    assert opened.value("document.getElementById('case-title').textContent") == "plain"
    for normal in range(3):
        before = opened.value(pixels(f"#canvas-{normal}"))
        for _ in range(12):
            opened.press("ArrowRight", f"#slice-{normal}")
        opened.wait_for(f"{pixels(f'#canvas-{normal}')} !== '{before}'")
    assert opened.value("document.getElementById('place-2').textContent").endswith("of 96")


@pytest.mark.slow
def test_meshes_turn_fade_and_follow_the_theme(opened):
    for act in (
        lambda: opened.press("ArrowLeft", "#meshes"),
        lambda: opened.click('[data-view="feet"]'),
        lambda: opened.press("ArrowRight", "#structures input[type=range]"),
        lambda: opened.click("#theme"),
    ):
        before = opened.value(pixels("#meshes"))
        act()
        opened.wait_for(f"{pixels('#meshes')} !== '{before}'")


@pytest.mark.slow
def test_every_control_has_a_name_and_the_distribution_is_told_in_words(opened):
    nodes = opened.ask("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "checkbox", "slider", "combobox", "application", "img", "image"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in controls
    ]
    assert {role for role, _ in named} >= {"button", "checkbox", "slider", "combobox", "application"}
    assert all(name for _, name in named), named
    label = opened.value("document.querySelector('#spread svg').getAttribute('aria-label')")
    assert label.startswith("Dice. Myo: median 0.650")
    opened.value(
        "(() => { const s = document.getElementById('metric'); s.value = 'volume_ml';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    label = opened.value("document.querySelector('#spread svg').getAttribute('aria-label')")
    assert label.startswith("Volume, ml. Myo: median 7.0")


@pytest.mark.slow
def test_a_case_without_a_view_shows_its_figures(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 0)
    page.write_report(tmp_path / "a.html", STRUCTURES, FACES, [replace(evaluated("a"), name="b")], {}, {})
    browser.open(tmp_path / "a.html")
    browser.wait_for("document.getElementById('case-note')?.textContent.startsWith('Of this case')")
    assert browser.value("document.getElementById('views').hidden")
    assert browser.errors == []
