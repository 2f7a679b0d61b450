"""Statistical shape models: of shapes whose modes are known, of an evaluation's folder, and of what cannot be one."""

import csv
import json
import shutil
from pathlib import Path

import matplotlib.image
import meshes
import numpy as np
import pytest
from browser import Browser
from scipy.spatial.transform import Rotation
from scripts import call, run

import create_shape_model
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.script import InputError
from implicitmeshnet.shape_model import picture
from implicitmeshnet.shape_model.cohort import Cohort, Parts, read_cohort
from implicitmeshnet.shape_model.measures import compactness, generalisation, measure_model, specificity
from implicitmeshnet.shape_model.model import align, build_model, principal_modes, read_modes, write_model
from implicitmeshnet.shape_model.page import write_model_page
from implicitmeshnet.shape_model.picture import enclosing
from implicitmeshnet.shape_model.sliding import Sphere, slide
from implicitmeshnet.surfaces.files import read_mesh, write_mesh
from implicitmeshnet.surfaces.soundness import winding_numbers

UNIT, FACES = meshes.sphere(subdivisions=2)
AXES = np.array([30.0, 20.0, 15.0])  # mm


def ellipsoids(lengths) -> np.ndarray:
    """Ellipsoids (N, V, 3) whose first semi-axis has these lengths in mm, the others those of AXES."""
    return np.stack([UNIT * [length, *AXES[1:]] for length in lengths])


def moved(shapes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Each shape turned and moved by its own."""
    rng = np.random.default_rng(seed)
    turns = Rotation.random(len(shapes), random_state=seed).as_matrix()
    return shapes @ turns + rng.normal(scale=50, size=(len(shapes), 1, 3))


def cohort_of(shapes: np.ndarray) -> Cohort:
    cases = tuple(f"c{number}" for number in range(len(shapes)))
    return Cohort(cases, Parts(("LV",), FACES), shapes)


def evaluated(folder: Path, shapes: np.ndarray, structures=("LV", "LA"), mesh_format="ply", faces=FACES) -> Path:
    """A folder as an evaluation leaves it: of each case the shape, and beside it one half as large, in its own pose."""
    folder.mkdir(exist_ok=True)
    beside = shapes / 2 + [70.0, 0, 0]
    both = moved(np.concatenate([shapes, beside], axis=1))
    cases = []
    for number, points in enumerate(both):
        case = f"c{number}"
        for place, name in enumerate(structures):
            stem = case if len(structures) == 1 else f"{case}_{name}"
            write_mesh(folder / f"{stem}_mesh.{mesh_format}", np.split(points, 2)[place], faces)
        cases.append({"case": case, "structures": {name: {} for name in structures}})
    (folder / "statistics.json").write_text(json.dumps({"cases": cases, "failed": {}}))
    return folder


@pytest.mark.parametrize("move", [np.asarray, moved])
def test_ellipsoids_with_one_varying_axis_have_one_mode_and_it_is_the_axis(move):
    lengths = np.random.default_rng(1).normal(30, 2, size=12)
    model = build_model(cohort_of(move(ellipsoids(lengths))))
    assert compactness(model.modes)[0] > 0.999
    assert np.corrcoef(model.scores[:, 0], lengths)[0, 1] > 0.9999
    # A vertex moves along the axis by its place on the unit sphere, so the mode's variance is known.
    assert model.modes.variances[0] == pytest.approx(np.var(lengths, ddof=1) * np.sum(UNIT[:, 0] ** 2), rel=1e-6)


def test_two_independent_axes_are_two_modes_in_the_order_of_their_variances():
    first = np.array([-1, 1, -1, 1.0]) * 3
    second = np.array([-1, -1, 1, 1.0])
    shapes = np.stack([UNIT * (AXES + np.array([a, b, 0])) for a, b in zip(first, second, strict=True)])
    model = build_model(cohort_of(shapes))
    assert abs(np.corrcoef(model.scores[:, 0], first)[0, 1]) > 0.999
    assert abs(np.corrcoef(model.scores[:, 1], second)[0, 1]) > 0.999
    assert model.modes.variances[:2].sum() > 0.999 * model.modes.variances.sum()


def test_motion_of_the_cases_leaves_the_model_as_it_is():
    rng = np.random.default_rng(2)
    shapes = ellipsoids([30] * 6) + rng.normal(scale=1.0, size=(6, len(UNIT), 3))
    still = build_model(cohort_of(shapes))
    turned = build_model(cohort_of(moved(shapes)))
    np.testing.assert_allclose(turned.modes.variances, still.modes.variances, rtol=1e-6)
    np.testing.assert_allclose(turned.scores, still.scores, atol=1e-4)
    size = np.linalg.norm(still.modes.mean)
    assert np.linalg.norm(turned.modes.mean) == pytest.approx(size)


def test_a_mirrored_shape_is_not_turned_into_its_mirror_image():
    points = np.random.default_rng(3).normal(size=(50, 3))
    aligned = align(np.stack([points, points, points * [-1, 1, 1]]))
    assert np.linalg.norm(aligned[1] - aligned[0]) < 1e-9
    assert np.linalg.norm(aligned[2] - aligned[0]) > 1


def test_the_model_keeps_the_orientation_that_the_cases_have_on_average():
    shapes = ellipsoids([25, 28, 30, 33, 34])
    turns = Rotation.from_euler("z", [[-20], [-10], [0], [10], [20]], degrees=True).as_matrix()
    mean = align(shapes @ turns).mean(axis=0)
    np.testing.assert_allclose(mean, shapes.mean(axis=0), atol=0.02)


def test_modes_are_orthonormal_and_scores_have_unit_deviation():
    shapes = ellipsoids([30] * 7) + np.random.default_rng(4).normal(size=(7, len(UNIT), 3))
    model = build_model(cohort_of(shapes))
    flat = model.modes.directions.reshape(6, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(6), atol=1e-9)
    np.testing.assert_allclose(model.scores.std(axis=0, ddof=1), 1, rtol=1e-9)
    again = np.stack([model.modes.shape(scores) for scores in model.scores])
    np.testing.assert_allclose(again, model.aligned, atol=1e-9)


def test_the_positive_side_of_a_mode_is_the_larger_one():
    model = build_model(cohort_of(ellipsoids([26, 28, 31, 35])))
    assert (
        np.ptp(model.modes.shape(np.array([2.0])), axis=0)[0] > np.ptp(model.modes.shape(np.array([-2.0])), axis=0)[0]
    )


def test_a_case_within_the_span_of_the_others_is_approximated_without_error():
    errors = generalisation(ellipsoids([26, 28, 31, 35]), 2)
    np.testing.assert_allclose(errors, 0, atol=1e-6)


def test_a_case_outside_the_span_keeps_the_part_that_no_other_has():
    shapes = ellipsoids([26, 28, 31, 35])
    odd = UNIT * [30, 25.0, 15]  # 5 mm more along an axis in which the others are the same
    errors = generalisation(np.concatenate([shapes, [odd]]), 2)
    assert errors[-1, -1] == pytest.approx(5 * np.mean(np.abs(UNIT[:, 1])), rel=1e-3)


def test_generalisation_falls_with_the_modes():
    shapes = ellipsoids(np.linspace(25, 35, 8)) + np.random.default_rng(5).normal(size=(8, len(UNIT), 3))
    mean = generalisation(shapes, 6).mean(axis=0)
    assert (np.diff(mean) <= 1e-9).all()


def test_random_shapes_of_a_dense_family_lie_near_a_case_and_of_a_sparse_one_do_not():
    dense = align(ellipsoids(np.linspace(25, 35, 41)))
    sparse = align(ellipsoids([25, 25, 35, 35]))
    near = specificity(principal_modes(dense), dense, 1).mean()
    far = specificity(principal_modes(sparse), sparse, 1).mean()
    # Cases lie 0.25 mm apart along the axis, so what lies between is at most half as far from one.
    assert near < 0.2
    assert far > 1.0


def test_measures_of_three_cases_have_one_mode():
    shapes = align(ellipsoids([26, 28, 31]) + np.random.default_rng(6).normal(size=(3, len(UNIT), 3)))
    measures = measure_model(principal_modes(shapes), shapes)
    assert measures.generalisation_mm.shape == (3, 1)
    assert measures.specificity_mm.shape == (200, 1)


def test_one_shape_in_several_poses_is_no_model():
    with pytest.raises(InputError, match="4 cases: wanted shapes that differ, found the same one in all of them"):
        build_model(cohort_of(moved(ellipsoids([30] * 4))))


def test_a_models_file_gives_back_its_shapes(tmp_path):
    model = build_model(cohort_of(ellipsoids([26, 28, 31, 35])))
    write_model(tmp_path / "a.npz", model)
    parts, modes = read_modes(tmp_path / "a.npz")
    assert parts.names == ("LV",)
    np.testing.assert_array_equal(parts.faces, FACES)
    np.testing.assert_allclose(modes.shape(np.array([1.5])), model.modes.shape(np.array([1.5])), atol=1e-4)
    (tmp_path / "a.npz").write_bytes(b"PK damaged")
    with pytest.raises(InputError, match=r"a.npz: cannot be read as a shape model \("):
        read_modes(tmp_path / "a.npz")


def test_a_mesh_winds_once_around_what_is_inside_and_not_at_all_around_the_rest():
    box, faces = meshes.box((0, 0, 0), (2, 3, 4))
    found = winding_numbers(np.array([[1, 1, 1], [1.9, 2.9, 3.9], [3, 1, 1], [1, 1, -9.0]]), box, faces)
    np.testing.assert_allclose(found, [1, 1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(winding_numbers(np.array([[1, 1, 1.0]]), box, faces[:, ::-1]), -1)


def test_the_structure_around_another_encloses_it():
    parts = Parts(("Myo", "LV", "LA"), FACES)
    points = np.concatenate([UNIT * 30, UNIT * 20, UNIT * 10 + [80, 0, 0]])
    assert enclosing(parts, points) == [True, False, False]


# ---- sliding ----


def slid_apart(count: int = 6) -> tuple[Cohort, Sphere]:
    """One bumpy surface in all cases, whose vertices lie elsewhere on it in each, by rotations of the sphere."""
    sphere = Sphere(UNIT, FACES)
    turns = Rotation.from_rotvec(np.random.default_rng(7).normal(scale=0.1, size=(count, 3))).as_matrix()
    shapes = []
    for turn in turns:
        directions = UNIT @ turn
        bumps = 1 + 0.2 * np.sin(3 * directions[:, [0]]) + 0.2 * directions[:, [1]] ** 2
        shapes.append(directions * bumps * AXES)
    return cohort_of(np.stack(shapes)), sphere


def test_turning_the_sphere_by_nothing_changes_nothing_and_by_a_turn_gives_the_points_there():
    sphere = Sphere(UNIT, FACES)
    np.testing.assert_allclose(sphere.turned(UNIT * AXES, np.eye(3)), UNIT * AXES, atol=1e-9)
    turn = Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix()
    found = sphere.turned(UNIT * AXES, turn)
    np.testing.assert_allclose(found, UNIT @ turn * AXES, atol=0.04 * AXES.max())  # a face lies inside the sphere
    assert (np.linalg.norm(found / AXES, axis=1) <= 1 + 1e-9).all()


def test_vertices_that_lie_elsewhere_on_one_surface_slide_together():
    cohort, sphere = slid_apart()
    before = build_model(cohort).modes.variances.sum()
    after = build_model(slide(cohort, sphere)).modes.variances.sum()
    assert after < 0.05 * before


# ---- the script ----


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(picture, "PANEL_PIXELS", 100)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "in"
    return evaluated(folder, ellipsoids([25, 28, 30, 33, 36]))


@pytest.fixture
def copied(results, tmp_path):
    return Path(shutil.copytree(results, tmp_path / "in"))


def test_the_script_writes_mean_modes_picture_and_tables(results, tmp_path, capsys):
    out = tmp_path / "out"
    call(create_shape_model, f"--input_dir={results}", f"--out={out}", "--modes=1")
    assert "5 cases of 2 structures" in capsys.readouterr().out
    expected = {"report.html", "shape_model.npz", "modes.png", "modes.csv", "scores.csv"}
    for title in ("mean", "mode1_minus_2sd", "mode1_plus_2sd"):
        expected |= {f"{title}_LV_mesh.ply", f"{title}_LA_mesh.ply"}
    assert {path.name for path in out.iterdir()} == expected
    scores = [float(row["mode1"]) for row in csv.DictReader((out / "scores.csv").open())]
    assert np.corrcoef(scores, [25, 28, 30, 33, 36])[0, 1] > 0.999
    rows = list(csv.DictReader((out / "modes.csv").open()))
    assert float(rows[0]["variance_share"]) > 0.99
    assert float(rows[0]["generalisation_mm"]) < 0.1
    assert matplotlib.image.imread(out / "modes.png").std() > 0.02


def test_the_meshes_written_are_the_mean_and_two_deviations_of_the_file(results, tmp_path):
    call(create_shape_model, f"--input_dir={results}", f"--out={tmp_path / 'out'}", "--modes=1", "--space=RAS")
    parts, modes = read_modes(tmp_path / "out/shape_model.npz")
    for title, deviation in (("mean", 0), ("mode1_minus_2sd", -2), ("mode1_plus_2sd", 2)):
        wanted = parts.split(modes.shape(np.array([deviation])))
        for name, points in zip(parts.names, wanted, strict=True):
            vertices, _ = read_mesh(tmp_path / f"out/{title}_{name}_mesh.ply")
            np.testing.assert_allclose(vertices, points, atol=1e-3)


def test_sliding_wants_the_template_and_changes_no_number_of_vertices(tmp_path, capsys):
    vertices, faces = (each.numpy() for each in icosphere(1))
    shapes = np.stack([vertices * [length, 20, 15] for length in (25, 28, 31)])
    source = evaluated(tmp_path / "in", shapes, ("LV",), faces=faces)
    call(create_shape_model, f"--input_dir={source}", f"--out={tmp_path / 'out'}", "--slide")
    assert read_mesh(tmp_path / "out/mean_LV_mesh.ply")[0].shape == (42, 3)
    other = evaluated(tmp_path / "other", shapes, ("LV",), faces=faces[::-1])
    with pytest.raises(InputError, match="--slide: wanted meshes of a template sphere, not subdivided, found 80 other"):
        call(create_shape_model, f"--input_dir={other}", f"--out={tmp_path / 'none'}", "--slide")
    assert not (tmp_path / "none").exists()


def test_a_second_run_leaves_no_mesh_of_the_first(results, tmp_path):
    out = tmp_path / "out"
    call(create_shape_model, f"--input_dir={results}", f"--out={out}", "--modes=2")
    (out / "mean_notes.txt").write_text("mine")
    call(create_shape_model, f"--input_dir={results}", f"--out={out}", "--modes=1", "--mesh_format=stl")
    assert not list(out.glob("*.ply"))
    assert not list(out.glob("mode2*"))
    assert (out / "mean_notes.txt").exists()


@pytest.mark.parametrize("structures", [("LV",), ("LV", "LA")])
def test_obj_meshes_of_one_structure_or_several_are_read_in_order(tmp_path, structures):
    shapes = ellipsoids([25, 28, 30])
    cohort = read_cohort(evaluated(tmp_path / "in", shapes, structures, "obj"))
    assert cohort.parts.names == structures
    found = align(cohort.points[:, : len(UNIT)])
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), np.linalg.norm(shapes, axis=2), atol=1e-4)


def drop_structure(folder):
    (folder / "c1_LA_mesh.ply").unlink()


def list_fewer_structures(folder):
    tree = json.loads((folder / "statistics.json").read_text())
    del tree["cases"][2]["structures"]["LA"]
    (folder / "statistics.json").write_text(json.dumps(tree))


def keep_two_cases(folder):
    tree = json.loads((folder / "statistics.json").read_text())
    tree["cases"] = tree["cases"][:2]
    (folder / "statistics.json").write_text(json.dumps(tree))


def subdivide_one(folder):
    write_mesh(folder / "c1_LA_mesh.ply", *meshes.sphere(subdivisions=3))


def other_template(folder):
    vertices, faces = read_mesh(folder / "c1_LA_mesh.ply")
    write_mesh(folder / "c1_LA_mesh.ply", vertices, np.roll(faces, 1, axis=0))


def open_one(folder):
    vertices, faces = read_mesh(folder / "c1_LA_mesh.ply")
    write_mesh(folder / "c1_LA_mesh.ply", vertices, faces[1:])


def open_first(folder):
    vertices, faces = read_mesh(folder / "c0_LV_mesh.ply")
    write_mesh(folder / "c0_LV_mesh.ply", vertices, faces[1:])


def not_a_number(folder):
    vertices, faces = read_mesh(folder / "c1_LA_mesh.ply")
    vertices[3] = np.nan
    write_mesh(folder / "c1_LA_mesh.ply", vertices, faces)


def stl_instead(folder):
    write_mesh(folder / "c1_LA_mesh.stl", *read_mesh(folder / "c1_LA_mesh.ply"))
    (folder / "c1_LA_mesh.ply").unlink()


def damage(folder):
    (folder / "c1_LA_mesh.ply").write_bytes((folder / "c1_LA_mesh.ply").read_bytes()[:500])


def no_statistics(folder):
    (folder / "statistics.json").unlink()


def other_json(folder):
    (folder / "statistics.json").write_text('{"cases": [1, 2, 3]}')


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (drop_structure, "in: wanted c1_LA_mesh.ply or .obj, whose vertices have an order, found none"),
        (list_fewer_structures, "statistics.json: wanted LV, LA in every case, found LV in c2"),
        (keep_two_cases, "statistics.json: wanted at least 3 cases for a shape model, found 2"),
        (subdivide_one, "c1_LA_mesh.ply: wanted 162 vertices, as in c0_LV_mesh.ply, found 642"),
        (
            other_template,
            "c1_LA_mesh.ply: wanted the faces of c0_LV_mesh.ply, found those of another template",
        ),
        (open_one, "c1_LA_mesh.ply: wanted a closed mesh, found edges that do not lie in exactly two faces"),
        (open_first, "c0_LV_mesh.ply: wanted a closed mesh"),
        (not_a_number, "c1_LA_mesh.ply: wanted finite coordinates, found NaN or infinity"),
        (stl_instead, "wanted c1_LA_mesh.ply or .obj, whose vertices have an order, found c1_LA_mesh.stl alone"),
        (damage, "c1_LA_mesh.ply: wanted a triangle mesh"),
        (no_statistics, "statistics.json: cannot be read as the statistics of an evaluation"),
        (other_json, "statistics.json: wanted cases with structures, as implicitmeshnet_eval.py writes them"),
    ],
)
def test_meshes_that_do_not_correspond_are_one_sentence_and_nothing_is_written(copied, tmp_path, harm, sentence):
    harm(copied)
    with pytest.raises(InputError) as error:
        call(create_shape_model, f"--input_dir={copied}", f"--out={tmp_path / 'out'}")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--input_dir=none", "--out=out"],
            "--input_dir: wanted a folder that implicitmeshnet_eval.py wrote, found none",
        ),
        (["--input_dir={0}", "--out={0}"], "--out: wanted another folder than --input_dir"),
        (["--input_dir={0}", "--out=out", "--modes=0"], "--modes: wanted 1 to 10, found 0"),
        (["--input_dir={0}", "--out=file"], "--out: wanted a folder, found the file file"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_status_2(results, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert run("create_shape_model.py", *(each.format(results) for each in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


# ---- the page ----


@pytest.fixture(scope="module")
def browser():
    chromium = Browser()
    yield chromium
    chromium.close()


@pytest.mark.slow
def test_the_pages_sliders_move_the_meshes_and_a_case_sets_them(browser, tmp_path):
    model = build_model(cohort_of(ellipsoids([26, 28, 31, 35])))
    measures = measure_model(model.modes, model.aligned)
    write_model_page(tmp_path / "a.html", model, create_shape_model.rows_of_modes(model, measures))
    browser.requests.clear()
    browser.open(tmp_path / "a.html")
    browser.wait_for("document.body && document.body.dataset.opened === 'model'")
    picture_now = "document.querySelector('#meshes').toDataURL()"
    mean = browser.value(picture_now)
    browser.press("ArrowRight", "#mode-0")
    browser.wait_for(f"{picture_now} !== '{mean}'")
    assert browser.value("document.getElementById('place-0').textContent") == "0.1"
    browser.value(
        "(() => { const s = document.getElementById('case'); s.value = '0'; s.dispatchEvent(new Event('change')); })()"
    )
    browser.wait_for(f"document.getElementById('place-0').textContent === '{model.scores[0, 0]:.1f}'")
    browser.click("#mean")
    browser.wait_for(f"{picture_now} === '{mean}'")
    assert "1.000" in browser.value("document.getElementById('table').textContent")
    assert browser.errors == []
    assert browser.requests == [(tmp_path / "a.html").as_uri()]
