"""The phantom: deterministic, anatomically sound labels, densities as drawn, and the script end to end."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from implicitmeshnet.anatomy import CENTRE
from implicitmeshnet.phantom import LABELS, Parameters, _upsample, create_case, draw_grid, render
from implicitmeshnet.signed_distance import ellipsoid, half_space, intersection, tube, union
from implicitmeshnet.volume import read_image, read_labels

ROOT = Path(__file__).resolve().parents[1]
SPACING_MM = 2.5
VOLUMES_ML = {"LV": (70, 180), "RV": (95, 220), "LA": (50, 125), "RA": (60, 145), "Myo": (75, 185), "AO": (25, 75),
              "PA": (25, 75)}


@pytest.fixture(scope="module", params=range(1, 7))
def case(request):
    """(parameters, image, label) of a case on a coarse axis-aligned grid."""
    rng = np.random.default_rng([3, request.param])
    parameters = Parameters.draw(rng)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = CENTRE - 90
    return parameters, *render(parameters, (73, 73, 73), affine, np.zeros(3), rng)


def test_label_values_are_exact_and_volumes_plausible(case):
    _, image, label = case
    assert image.dtype == label.dtype == np.int16
    assert set(np.unique(label)) == {0, *LABELS.values()}
    for name, (low, high) in VOLUMES_ML.items():
        volume_ml = np.sum(label == LABELS[name]) * SPACING_MM**3 / 1000
        assert low < volume_ml < high, (name, volume_ml)


def test_each_structure_is_one_part_without_cavities(case):
    *_, label = case
    for name, value in LABELS.items():
        assert ndimage.label(label == value)[1] == 1, name
        if name != "Myo":
            assert ndimage.label(label != value)[1] == 1, name


def test_myocardium_is_a_cup_around_the_left_ventricle_open_at_the_base(case):
    *_, label = case
    cavity = label == LABELS["LV"]
    border = label[ndimage.binary_dilation(cavity) & ~cavity]
    shares = {name: np.mean(border == value) for name, value in LABELS.items()}
    assert shares["Myo"] > 0.75
    assert shares["LA"] > 0.02
    assert shares["AO"] > 0.005
    assert shares["Myo"] + shares["LA"] + shares["AO"] > 0.9


@pytest.mark.parametrize(("one", "other"), [("LV", "LA"), ("LV", "AO"), ("RA", "RV"), ("RV", "PA"), ("RV", "Myo")])
def test_connected_structures_touch(case, one, other):
    *_, label = case
    grown = ndimage.binary_dilation(label == LABELS[one])
    assert np.sum(grown & (label == LABELS[other])) > 5


@pytest.mark.parametrize(("one", "other"), [("LV", "RV"), ("LV", "RA"), ("AO", "PA"), ("AO", "RA")])
def test_separate_structures_have_a_wall_between_them(case, one, other):
    *_, label = case
    grown = ndimage.binary_dilation(label == LABELS[one])
    assert np.sum(grown & (label == LABELS[other])) <= 0.02 * np.sum(label == LABELS[other])


def test_arrangement_is_a_hearts(case):
    *_, label = case
    centre = {name: np.argwhere(label == value).mean(0) for name, value in LABELS.items()}  # RAS
    assert centre["RA"][0] > centre["RV"][0] > centre["LV"][0]
    assert centre["RV"][1] > centre["LV"][1] > centre["LA"][1]
    assert min(centre["AO"][2], centre["PA"][2]) > max(centre["LA"][2], centre["RA"][2]) > centre["LV"][2]


def test_densities_are_those_drawn(case):
    parameters, image, label = case
    for name, hu in parameters.blood_hu.items():
        core = ndimage.binary_erosion(label == LABELS[name])
        spread = 0.08 + (parameters.mixing if name in ("RV", "RA") else 0)
        assert abs(np.median(image[core]) - hu) < 20 + spread * hu, name
    assert image.min() < -900
    assert image.max() > 350


def test_grid_is_the_same_anatomy_in_every_orientation():
    """A flipped, permuted volume holds the same labels at the same world positions."""
    parameters = Parameters.draw(np.random.default_rng(0))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = CENTRE - 84
    turned = affine @ np.array([[0, 0, -1, 42], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    _, label = render(parameters, (43, 43, 43), affine, np.zeros(3), np.random.default_rng(1))
    _, other = render(parameters, (43, 43, 43), turned, np.zeros(3), np.random.default_rng(1))
    assert np.mean(label != other.transpose(2, 0, 1)[::-1]) < 1e-4


def test_deterministic_per_seed_and_case():
    first, again = create_case(0, 1, 4.0), create_case(0, 1, 4.0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (create_case(1, 1, 4.0), create_case(0, 2, 4.0)):
        assert not np.array_equal(first[2], other[2])
        assert first[1].shape != other[1].shape or not np.array_equal(first[1], other[1])


def test_grids_vary_within_their_ranges():
    turns, hands, axes = [], [], set()
    for seed in range(60):
        shape, affine, origin = draw_grid(np.random.default_rng(seed))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        directions = affine[:3, :3] / spacing
        nearest = np.rint(directions)
        turns.append(np.degrees(np.arccos(np.clip((np.trace(directions @ nearest.T) - 1) / 2, -1, 1))))
        hands.append(np.linalg.det(directions))
        axes.add(tuple(nearest.ravel()))
        assert spacing[0] == pytest.approx(spacing[1])
        assert 0.9 <= spacing[0] <= 1.4
        assert 1.0 <= spacing[2] <= 2.0
        assert np.all((shape * spacing > 170) & (shape * spacing < 192))
        middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
        assert np.linalg.norm(middle - origin - CENTRE) < 8
    assert {round(hand) for hand in hands} == {-1, 1}
    assert len(axes) > 20
    assert min(turns) < 0.1
    assert 5 < max(turns) <= 10.01


def test_distances_of_sphere_tube_and_half_space_are_exact():
    points = np.random.default_rng(0).uniform(-20, 20, (3, 6, 5, 4)).astype(np.float32)
    radius = np.linalg.norm(points, axis=0)
    np.testing.assert_allclose(ellipsoid(points, [0, 0, 0], [7, 7, 7]), radius - 7, atol=1e-3)
    axis = np.hypot(points[0], points[1])
    np.testing.assert_allclose(ellipsoid(points, [0, 0, 0], [7, 7, np.inf]), axis - 7, atol=1e-3)
    along = np.maximum(np.abs(points[2]) - 10, 0)
    np.testing.assert_allclose(tube(points, [[0, 0, -10], [0, 0, 10]], [3, 3]), np.hypot(axis, along) - 3, atol=1e-3)
    np.testing.assert_allclose(half_space(points, [0, 0, 2], [0, 0, 1]), points[2] - 2, atol=1e-5)


def test_turned_ellipsoid_has_its_surface_where_it_should():
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    centre, semi_axes = np.array([1, 2, 3]), np.array([10, 6, 4])
    tips = centre[:, None] + axes * semi_axes  # column a: the end of axis a
    np.testing.assert_allclose(ellipsoid(tips.astype(np.float32), centre, semi_axes, axes), 0, atol=1e-4)
    assert ellipsoid(centre[:, None].astype(np.float32), centre, semi_axes, axes) == pytest.approx(-4, abs=0.1)


def test_blends_stay_on_the_safe_side():
    first, second = np.random.default_rng(0).normal(0, 5, (2, 100)).astype(np.float32)
    assert np.array_equal(union(first, second), np.minimum(first, second))
    assert np.all(union(first, second, blend_mm=4) <= np.minimum(first, second))
    assert np.all(union(first, second, blend_mm=4) >= np.minimum(first, second) - 1)
    assert np.all(intersection(first, second, blend_mm=4) >= np.maximum(first, second))


def test_upsampling_keeps_a_linear_field():
    coarse = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in (4, 5, 6)), indexing="ij")).astype(np.float32)
    fine = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in (9, 7, 6)), indexing="ij"))
    for values, wanted in zip(coarse, fine, strict=True):
        np.testing.assert_allclose(_upsample(values, (9, 7, 6)), wanted, atol=1e-6)


def script(*arguments):
    return subprocess.run([sys.executable, ROOT / "create_phantom_dataset.py", *arguments], capture_output=True,
                          text=True)


def test_script_writes_cases_in_mmwhs_naming_whatever_the_workers(tmp_path):
    run = script(f"--output_dir={tmp_path / 'two'}", "--cases=2", "--first_case=7", "--seed=4", "--workers=2")
    assert run.returncode == 0, run.stderr
    names = {f"ct_train_{number}_{kind}.nii.gz" for number in (1007, 1008) for kind in ("image", "label")}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    run = script(f"--output_dir={tmp_path / 'one'}", "--cases=1", "--first_case=8", "--seed=4", "--workers=1")
    assert run.returncode == 0, run.stderr
    one, two = (read_image(tmp_path / folder / "ct_train_1008_image.nii.gz") for folder in ("one", "two"))
    label = read_labels(tmp_path / "two" / "ct_train_1008_label.nii.gz")
    assert np.array_equal(one.data, two.data)
    np.testing.assert_allclose(one.grid.affine, label.grid.affine)
    assert set(np.unique(label.data)) == {0, *LABELS.values()}

    before = (tmp_path / "one" / "ct_train_1008_image.nii.gz").read_bytes()
    run = script(f"--output_dir={tmp_path / 'one'}", "--cases=2", "--first_case=8")
    assert run.returncode == 2
    assert "ct_train_1008_image.nii.gz: exists already" in run.stderr
    assert (tmp_path / "one" / "ct_train_1008_image.nii.gz").read_bytes() == before
    assert len(list((tmp_path / "one").iterdir())) == 2


@pytest.mark.parametrize("argument", ["--cases=0", "--first_case=0", "--seed=-1", "--workers=0"])
def test_script_refuses_numbers_out_of_range(tmp_path, argument):
    run = script(f"--output_dir={tmp_path / 'out'}", argument)
    name, value = argument.split("=")
    assert run.returncode == 2
    assert run.stderr.startswith(f"create_phantom_dataset.py: {name}: wanted an integer of at least ")
    assert run.stderr.rstrip().endswith(f"found {value}")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_script_names_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    run = script(f"--output_dir={tmp_path / 'file'}", "--cases=1")
    assert run.returncode == 2
    assert str(tmp_path / "file") in run.stderr
    assert "Traceback" not in run.stderr
