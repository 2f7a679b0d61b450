"""The phantom: deterministic, anatomically sound labels, densities as drawn, and the script end to end."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scripts import call, run

import create_phantom_dataset
from implicitmeshnet.data.nifti import read_image, read_labels
from implicitmeshnet.phantom.anatomy import CENTRE, CHEST_CENTRE, table
from implicitmeshnet.phantom.case import (
    MAX_MATRIX,
    WARP_STEP_MM,
    _tiles,
    create_case,
    draw_grid,
    render,
)
from implicitmeshnet.phantom.patient import LABELS, PHASES, VARIETIES, Patient
from implicitmeshnet.phantom.solids import ellipsoid, half_space, intersection, tube, union
from implicitmeshnet.phantom.warp import integrate, jacobian_determinant, velocity_field
from implicitmeshnet.script import InputError
from implicitmeshnet.tissues import BLOOD_OF, Tissue

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "create_phantom_dataset.py"
SPACING_MM = 2.5
VOLUMES_ML = {
    "LV": (50, 220),
    "RV": (75, 250),
    "LA": (35, 145),
    "RA": (50, 180),
    "Myo": (55, 215),
    "AO": (25, 130),
    "PA": (25, 110),
}


@pytest.fixture(scope="module", params=[1, 2, *(pytest.param(case, marks=pytest.mark.slow) for case in range(3, 7))])
def drawn(request):
    """A patient, and his phantom on a coarse axis-aligned grid."""
    rng = np.random.default_rng([3, request.param])
    patient = Patient.draw(rng)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = CENTRE - 100
    return patient, render(patient, (81, 81, 81), affine, np.zeros(3), rng)


@pytest.fixture
def phantom(drawn):
    return drawn[1]


@pytest.fixture
def case(drawn):
    """(patient, image, label)."""
    patient, phantom = drawn
    return patient, phantom.image, phantom.label


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
    patient, image, label = case
    for name, hu in patient.blood_hu.items():
        core = ndimage.binary_erosion(label == LABELS[name])
        spread = 0.08 + (patient.mixing if name in ("RV", "RA") else 0)
        assert abs(np.median(image[core]) - hu) < 20 + spread * hu, name
    assert image.min() < -900
    assert image.max() > 350  # bone, if not blood


def test_the_phase_decides_which_heart_is_bright():
    for number, (name, ranges) in enumerate(PHASES.items()):
        for seed in range(5):
            patient = Patient.draw(np.random.default_rng(seed))
            patient.phase = number + 0.5
            assert patient.phase_name == name
            for tissue, (low, high) in ranges.items():
                assert low <= getattr(patient, f"{tissue}_hu") <= high
    assert PHASES["arterial"]["right"][1] < PHASES["arterial"]["left"][0]


@pytest.mark.parametrize("seed", range(4))
def test_the_warp_is_a_diffeomorphism_of_some_millimetres(seed):
    patient = Patient.draw(np.random.default_rng(seed))
    velocity = velocity_field(patient.warp_noise, patient.warp_sd_mm, patient.warp_smoothing_mm, WARP_STEP_MM)
    displacement, back = (integrate(sign * velocity, WARP_STEP_MM) for sign in (1, -1))
    assert jacobian_determinant(displacement, WARP_STEP_MM).min() > 0.1
    assert 2 < displacement.std() < 4.5
    index = np.indices(velocity.shape[1:], dtype=np.float32) + displacement / WARP_STEP_MM
    again = displacement + np.stack([ndimage.map_coordinates(b, index, order=1, mode="nearest") for b in back])
    assert np.abs(again[:, 6:-6, 6:-6, 6:-6]).max() < 2  # the reversed flow undoes it, but for interpolation


def test_a_uniform_velocity_is_a_shift():
    velocity = np.full((3, 5, 6, 7), 3.0, dtype=np.float32)
    np.testing.assert_allclose(integrate(velocity, WARP_STEP_MM), 3, atol=1e-5)
    np.testing.assert_allclose(jacobian_determinant(velocity, WARP_STEP_MM), 1)


def test_grid_is_the_same_anatomy_in_every_orientation():
    """A flipped, permuted volume holds the same labels at the same world positions."""
    patient = Patient.draw(np.random.default_rng(0))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = CENTRE - 84
    turned = affine @ np.array([[0, 0, -1, 42], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    label = render(patient, (43, 43, 43), affine, np.zeros(3), np.random.default_rng(1)).label
    other = render(patient, (43, 43, 43), turned, np.zeros(3), np.random.default_rng(1)).label
    assert np.mean(label != other.transpose(2, 0, 1)[::-1]) < 1e-4


@pytest.mark.parametrize(("case", "mean", "labelled"), [(1, -341.991, 0.11191), (2, -347.410, 0.05743)])
def test_cases_are_those_that_earlier_versions_drew(case, mean, labelled):
    """To what the rounding of other machines leaves."""
    phantom = create_case(0, case, 5.0)
    assert phantom.image.mean() == pytest.approx(mean, abs=0.01)
    assert np.mean(phantom.label > 0) == pytest.approx(labelled, abs=2e-5)


def test_tissues_are_what_labels_and_densities_say(phantom):
    tissues = phantom.tissues
    assert tissues.dtype == np.uint8
    for name, blood in BLOOD_OF.items():
        assert np.mean(phantom.label[tissues == blood] == LABELS[name]) > 0.98, name
        assert np.mean(tissues[phantom.label == LABELS[name]] == blood) > 0.6, name  # but for trabeculae
    assert np.mean(phantom.label[tissues == Tissue.MYOCARDIUM] == LABELS["Myo"]) > 0.9  # the rest is papillary
    for tissue, low, high in ((Tissue.LUNG, -900, -750), (Tissue.FAT, -130, -60), (Tissue.LIVER, 60, 130)):
        inside = ndimage.binary_erosion(tissues == tissue)
        assert low < np.median(phantom.image[inside]) < high, tissue.name


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow), pytest.param(11, marks=pytest.mark.slow)])
def test_structures_of_wide_variety_are_in_one_part_each_and_touch_what_they_open_into(seed):
    rng = np.random.default_rng([7, seed])
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = CENTRE - 110
    label = render(Patient.draw(rng, "wide"), (56, 56, 56), affine, np.zeros(3), rng).label
    for name, value in LABELS.items():
        assert ndimage.label(label == value)[1] == 1, name
    for one, other in (("LV", "LA"), ("RV", "RA"), ("RV", "PA"), ("RV", "Myo")):
        grown = ndimage.binary_dilation(label == LABELS[one], iterations=2 if other == "Myo" else 1)
        assert np.sum(grown & (label == LABELS[other])) > 5, (one, other)


def test_only_wide_variety_goes_beyond_the_usual_ranges():
    usual, wide = ([Patient.draw(np.random.default_rng(seed), kind) for seed in range(60)] for kind in VARIETIES)
    assert {patient.filling for patient in usual} == {1}
    assert all(patient.cavity_radius == patient.lv_radius for patient in usual)
    assert all(patient.wall_mm == patient.wall_thickness for patient in usual)
    assert {int(patient.veins) for patient in usual} == {4}
    assert {int(patient.veins) for patient in wide} == {3, 4, 5}
    assert max(patient.emptied for patient in wide) > 0.8
    assert 0.2 < np.mean([patient.emptied == 0 for patient in wide]) < 0.6
    assert max(patient.cavity_radius for patient in wide) > 30 > 16 > min(patient.cavity_radius for patient in wide)


def test_at_end_systole_the_cavities_are_small_and_the_muscle_has_its_volume():
    patient = Patient.draw(np.random.default_rng(0), "wide")
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = CENTRE - 96
    volumes = []
    for filling in (1, 0):
        patient.filling = filling
        label = render(patient, (64, 64, 64), affine, np.zeros(3), np.random.default_rng(0)).label
        volumes.append({name: np.sum(label == value) for name, value in LABELS.items()})
    diastole, systole = volumes
    assert 0.3 < systole["LV"] / diastole["LV"] < 0.55
    assert 0.35 < systole["RV"] / diastole["RV"] < 0.65
    assert 0.85 < systole["Myo"] / diastole["Myo"] < 1.2
    assert systole["LA"] > diastole["LA"]


def test_deterministic_per_seed_and_case():
    first, again = create_case(0, 1, 4.0), create_case(0, 1, 4.0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (create_case(1, 1, 4.0), create_case(0, 2, 4.0)):
        assert not np.array_equal(first.affine, other.affine)
        assert first.label.shape != other.label.shape or not np.array_equal(first.label, other.label)


def grids(count, **options):
    """Drawn grids: shape, spacing (3,) mm, directions (3, 3), extent (3,) mm along the patient's axes, centre (3,)."""
    for seed in range(count):
        shape, affine, origin = draw_grid(np.random.default_rng(seed), **options)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        directions = affine[:3, :3] / spacing
        patient_axis = np.abs(directions).argmax(0)
        extent = (shape * spacing)[np.argsort(patient_axis)]
        centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3] - origin
        yield np.array(shape), spacing, directions, extent, centre


def test_grids_vary_within_their_ranges():
    turns, hands, axes, planes, throughs, wide = [], [], set(), [], [], []
    for shape, spacing, directions, extent, centre in grids(80):
        nearest = np.rint(directions)
        turns.append(np.degrees(np.arccos(np.clip((np.trace(directions @ nearest.T) - 1) / 2, -1, 1))))
        hands.append(np.linalg.det(directions))
        axes.add(tuple(nearest.ravel()))
        slices = np.abs(directions)[2].argmax()
        in_plane = np.delete(spacing, slices)
        assert in_plane[0] == pytest.approx(in_plane[1])
        assert 0.3 <= in_plane[0] <= 1.0
        assert 0.4 <= spacing[slices] <= 1.6
        assert np.delete(shape, slices).max() <= MAX_MATRIX
        assert shape.prod() < 72e6
        assert 138 < extent[2] < 192
        assert np.linalg.norm(centre - CENTRE) < 8
        planes.append(in_plane[0])
        throughs.append(spacing[slices])
        wide.append(extent[0] > 300)
        assert wide[-1] or (180 < extent[0] < 262 and abs(extent[0] - extent[1]) < 2)
    assert {round(hand) for hand in hands} == {-1, 1}
    assert len(axes) > 20
    assert min(turns) < 0.1
    assert 5 < max(turns) <= 10.01
    assert max(planes) - min(planes) > 0.5
    assert max(throughs) - min(throughs) > 1
    assert 0.1 < np.mean(wide) < 0.4


def test_chest_views_hold_the_whole_chest_and_have_the_heart_off_centre():
    for shape, _, directions, extent, centre in grids(20, field_of_view="chest"):
        assert np.all((extent > [373, 268, 258]) & (extent < [402, 332, 332]))
        assert np.linalg.norm(centre - CHEST_CENTRE) < 8
        assert np.linalg.norm(centre - CENTRE) > 25
        assert np.delete(shape, np.abs(directions)[2].argmax()).max() <= MAX_MATRIX


@pytest.mark.parametrize("field_of_view", ["cardiac", "chest"])
def test_shift_puts_the_heart_off_centre_and_loses_nothing(field_of_view):
    for seed in range(10):
        shape, affine, origin = draw_grid(np.random.default_rng(seed), 2.0, field_of_view)
        moved_shape, moved, moved_origin = draw_grid(np.random.default_rng(seed), 2.0, field_of_view, 40.0)
        assert np.array_equal(origin, moved_origin)
        np.testing.assert_allclose(moved[:3, :3], affine[:3, :3])
        centre = moved[:3, :3] @ ((np.array(moved_shape) - 1) / 2) + moved[:3, 3]
        assert np.linalg.norm(centre - origin - CENTRE) == pytest.approx(40)
        corner = np.linalg.solve(moved[:3, :3], affine[:3, 3] - moved[:3, 3])  # of the old volume, in new voxels
        assert np.all(corner > -1)
        assert np.all(corner + shape < np.array(moved_shape) + 1)


@pytest.mark.slow
def test_every_view_of_a_case_is_of_the_same_patient():
    """Where two views of a case have a voxel at the same place, its label is the same, up to rounding at surfaces."""
    (_, near, _, near_affine), (_, far, _, far_affine) = (
        create_case(5, 2, 4.0, field_of_view="chest"),
        create_case(5, 2, 4.0, field_of_view="chest", shift_mm=50),
    )
    index = np.argwhere(near > 0)
    world = index @ near_affine[:3, :3].T + near_affine[:3, 3]
    other = np.rint((world - far_affine[:3, 3]) @ np.linalg.inv(far_affine[:3, :3]).T).astype(int)
    assert np.all((other >= 0) & (other < far.shape))
    assert np.mean(near[tuple(index.T)] == far[tuple(other.T)]) > 0.8


def test_the_table_lies_under_the_back_and_only_wide_views_reach_it():
    patient = Patient.draw(np.random.default_rng(0))
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-180, -204, -10]
    image = render(patient, (97, 70, 6), affine, np.zeros(3), np.random.default_rng(0)).image
    points = np.tensordot(affine[:3, :3], np.indices(image.shape), 1) + affine[:3, 3].reshape(3, 1, 1, 1)
    height = -table(points.astype(np.float32), patient)  # mm above the table's upper surface
    assert np.median(image[(height < -6) & (height > -28)]) == pytest.approx(-850, abs=30)  # foam
    assert np.median(image[height < -44]) == pytest.approx(-1000, abs=30)
    middle = image.shape[0] // 2
    assert np.median(image[middle][(height[middle] > 4) & (height[middle] < 20)]) > -200  # the back rests on it


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
    fine = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in (99, 7, 6)), indexing="ij"))
    for values, wanted in zip(coarse, fine, strict=True):
        result = np.empty((99, 7, 6))
        for tile in _tiles(result.shape, values.shape):
            result[tile.voxels] = tile.upsample(values)
        np.testing.assert_allclose(result, wanted, atol=1e-6)


@pytest.mark.slow
def test_script_writes_cases_in_mmwhs_naming_whatever_the_workers(tmp_path):
    """Two workers in a process of its own, and one in this process, write the same case."""
    command = [sys.executable, ROOT / SCRIPT, "--cases=2", "--first_case=13", "--seed=4", "--workers=2"]
    both = subprocess.run([*command, f"--output_dir={tmp_path / 'two'}"], capture_output=True, text=True, check=False)
    assert both.returncode == 0, both.stderr
    names = {f"ct_train_{number}_{kind}.nii.gz" for number in (1013, 1014) for kind in ("image", "label", "tissues")}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    options = [f"--output_dir={tmp_path / 'one'}", "--first_case=14", "--seed=4", "--workers=1"]
    call(create_phantom_dataset, *options, "--cases=1")
    one, two = (read_image(tmp_path / folder / "ct_train_1014_image.nii.gz") for folder in ("one", "two"))
    label = read_labels(tmp_path / "two" / "ct_train_1014_label.nii.gz")
    assert np.array_equal(one.data, two.data)
    np.testing.assert_allclose(one.grid.affine, label.grid.affine)
    assert set(np.unique(label.data)) == {0, *LABELS.values()}

    before = (tmp_path / "one" / "ct_train_1014_image.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"ct_train_1014_image\.nii\.gz: exists already"):
        call(create_phantom_dataset, *options, "--cases=2")
    assert (tmp_path / "one" / "ct_train_1014_image.nii.gz").read_bytes() == before
    assert len(list((tmp_path / "one").iterdir())) == 3


@pytest.mark.parametrize("argument", ["--cases=0", "--first_case=0", "--seed=-1", "--workers=0"])
def test_script_refuses_numbers_out_of_range(tmp_path, capsys, argument):
    status = run(SCRIPT, f"--output_dir={tmp_path / 'out'}", argument)
    said = capsys.readouterr().err
    name, value = argument.split("=")
    assert status == 2
    assert said.startswith(f"create_phantom_dataset.py: {name}: wanted an integer of at least ")
    assert said.rstrip().endswith(f"found {value}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("--field_of_view=head", "cardiac or chest"),
        ("--shift_mm=-1", "a length of 0 to 100 mm"),
        ("--shift_mm=101", "a length of 0 to 100 mm"),
        ("--shift_mm=nan", "a length of 0 to 100 mm"),
        ("--variety=none", "usual or wide"),
        ("--spacing_mm=0.2", "a length of 0.3 to 8 mm"),
        ("--files=image,mesh", "some of image,label,tissues"),
    ],
)
def test_script_refuses_views_it_does_not_have(tmp_path, capsys, argument, wanted):
    status = run(SCRIPT, f"--output_dir={tmp_path / 'out'}", argument)
    name, value = argument.split("=")
    assert status == 2
    assert capsys.readouterr().err == f"create_phantom_dataset.py: {name}: wanted {wanted}, found {value}\n"
    assert not (tmp_path / "out").exists()


def test_script_names_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(SCRIPT, f"--output_dir={tmp_path / 'file'}", "--cases=1") == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
