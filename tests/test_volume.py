"""Orientation, resampling, intensity."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import structures_of
from scipy.spatial.transform import Rotation

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.nifti import read_grid, read_image, read_labels, write_volume
from implicitmeshnet.data.volume import (
    TIE_BREAK,
    Grid,
    Volume,
    box_inside,
    canonical,
    in_order_of,
    network_grid,
    normalise_intensity,
    resample_image,
    resample_labels,
    resample_nearest,
    resample_nearest_onto,
    slices_along,
    thick_axis,
    turned_by,
    voxels_apart,
)
from implicitmeshnet.script import InputError

fast = settings(max_examples=60, derandomize=True, deadline=None)
INSIDE = slice(1, -1)


@st.composite
def grids(draw):
    """Any rotation, permutation and handedness, anisotropic spacing, an origin up to a metre away."""
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    affine = np.eye(4)
    flips = np.diag(draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3)))
    order = draw(st.permutations(range(3)))
    affine[:3, :3] = (Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ flips)[:, order] * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-1000, 1000)] * 3))
    return Grid(draw(st.tuples(*[st.integers(2, 300)] * 3)), affine)


shapes = st.tuples(*[st.integers(2, 160)] * 3)
spacings = st.floats(0.5, 4)


@fast
@given(grids(), shapes, spacings, st.integers(0, 2**31))
def test_world_network_and_voxel_coordinates_round_trip(grid, shape, spacing_mm, seed):
    target = network_grid(grid, shape, spacing_mm)
    world_from_network, world_from_voxel = target.world_from_normalised, grid.affine
    points = np.random.default_rng(seed).uniform(-1, 1, (20, 3))
    world = transform(world_from_network, points)
    back = transform(world_from_network, transform(np.linalg.inv(world_from_network), world))
    assert np.abs(back - world).max() < 1e-3 * grid.spacing_mm.min()
    voxel = transform(np.linalg.inv(world_from_voxel) @ world_from_network, points)
    assert np.abs(transform(world_from_voxel, voxel) - world).max() < 1e-3 * grid.spacing_mm.min()
    again = transform(np.linalg.inv(world_from_voxel), world)
    assert np.abs(again - voxel).max() < 1e-3


@fast
@given(grids(), shapes, spacings)
def test_network_grid_is_isotropic_centred_and_canonical(grid, shape, spacing_mm):
    target = network_grid(grid, shape, spacing_mm)
    np.testing.assert_allclose(target.spacing_mm, spacing_mm)
    centre = transform(np.linalg.inv(grid.affine) @ target.world_from_normalised, np.zeros(3))
    assert np.abs(centre - (np.array(grid.shape) - 1.0) / 2).max() < 0.502  # voxels of the volume
    middle = transform(np.linalg.inv(grid.affine) @ target.affine, (np.array(shape) - 1.0) // 2)
    np.testing.assert_allclose(middle, middle.round(), atol=1e-6)
    cosines = np.abs(np.linalg.inv(grid.affine[:3, :3] / grid.spacing_mm) @ target.affine[:3, :3]) / spacing_mm
    np.testing.assert_allclose(np.sort(cosines, 0), [[0] * 3, [0] * 3, [1] * 3], atol=1e-9)
    assert nib.aff2axcodes(target.affine) == ("R", "A", "S")


@settings(max_examples=25, derandomize=True, deadline=None)
@given(grids(), st.floats(0.4, 5), st.tuples(*[st.integers(8, 14)] * 3))
def test_a_linear_ramp_in_the_world_stays_exact(grid, spacing_mm, shape):
    """Downsampled, upsampled, oblique, left-handed: the value of a voxel is the ramp at its own world position."""
    grid = Grid(shape, grid.affine)
    slope = np.array([0.3, -0.2, 0.5])

    def ramp(grid):
        voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).astype(float)
        return (transform(grid.affine, voxels) - grid.affine[:3, 3]) @ slope, voxels

    offset = grid.affine[:3, 3] @ slope
    target = network_grid(grid, (6, 7, 8), spacing_mm)
    result = resample_image(canonical(Volume(ramp(grid)[0], grid)), target, background=0.0)
    wanted, voxels = ramp(target)
    wanted = wanted + target.affine[:3, 3] @ slope - offset
    source = transform(np.linalg.inv(grid.affine) @ target.affine, voxels)
    reach = np.maximum(1, spacing_mm / grid.spacing_mm)  # where the kernel does not touch the border
    clear = ((source >= reach - 1) & (source <= np.array(shape) - reach)).all(-1)
    np.testing.assert_allclose(result[clear], wanted[clear], atol=2e-4 * np.abs(wanted).max() + 1e-4)


def unit_grid(*shape, spacing=(1.0, 1.0, 1.0)):
    return Grid(shape, np.diag([*spacing, 1.0]))


def test_resampling_onto_its_own_grid_changes_nothing():
    rng = np.random.default_rng(0)
    grid = unit_grid(5, 6, 7, spacing=(0.7, 1.1, 1.3))
    image, labels = rng.normal(size=grid.shape).astype(np.float32), rng.integers(0, 4, grid.shape).astype(np.int32)
    assert (resample_image(Volume(image, grid), grid, 0.0) == image).all()
    expected = np.choose(labels, [0, 2, 1, 2])
    assert (resample_labels(Volume(labels, grid), grid, structures_of(2, (1, 3))) == expected).all()


def test_what_lies_more_than_half_a_voxel_outside_is_background():
    volume = Volume(np.full((4, 4, 4), 5, np.int32), unit_grid(4, 4, 4))
    target = network_grid(volume.grid, (8, 4, 10), 1.0)
    image, labels = resample_image(volume, target, -1.0), resample_labels(volume, target, structures_of(5))
    assert (image[2:6, :, 3:7] == 5).all()
    assert (labels[2:6, :, 3:7] == 1).all()
    assert (image == 5).sum() == (labels == 1).sum() == 64
    assert set(np.unique(image)) == {-1, 5}


def test_what_is_ignored_is_resampled_like_a_structure_and_is_no_background():
    labels = np.zeros((12, 8, 8), np.int32)
    labels[2:6] = 5
    labels[6:10] = 7
    volume = Volume(labels, unit_grid(12, 8, 8))
    coarse = resample_labels(volume, network_grid(volume.grid, (6, 4, 4), 2.0), structures_of(5, ignore=(7,)))
    assert coarse[:, 2, 2].tolist() == [0, 1, 1, 2, 2, 0]


def test_cropping_takes_the_middle_voxels():
    data = np.random.default_rng(0).normal(size=(10, 12, 14)).astype(np.float32)
    grid = unit_grid(10, 12, 14)
    assert (resample_image(Volume(data, grid), network_grid(grid, (4, 6, 8), 1.0), 0.0) == data[3:7, 3:9, 3:11]).all()


def test_a_checkerboard_averages_out_when_downsampled_by_four():
    data = (np.indices((32, 32, 32)).sum(0) % 2).astype(np.float32)
    grid = unit_grid(32, 32, 32)
    result = resample_image(Volume(data, grid), network_grid(grid, (8, 8, 8), 4.0), 0.0)
    assert np.abs(result[INSIDE, INSIDE, INSIDE] - 0.5).max() < 1e-5
    assert np.abs(result - 0.5).max() < 0.05


@pytest.mark.parametrize("spacing_mm", [0.7, 1.0, 1.3, 2.0])
def test_the_volume_of_a_ball_survives(spacing_mm):
    grid = unit_grid(60, 61, 48, spacing=(0.6, 0.6, 0.9))
    points = transform(grid.affine, np.indices(grid.shape).reshape(3, -1).T.astype(float)) - [18.1, 17.7, 21.0]
    ball = (np.linalg.norm(points, axis=1) < 14).reshape(grid.shape)
    shape = (np.array([36.6, 36.6, 43]) / spacing_mm).astype(int) + 1
    labels = resample_labels(Volume(ball * np.int32(7), grid), network_grid(grid, shape, spacing_mm), structures_of(7))
    assert labels.sum() * spacing_mm**3 == pytest.approx(ball.sum() * 0.6 * 0.6 * 0.9, rel=0.02)


def test_the_networks_grid_has_a_spacing_for_each_axis_where_it_is_given_three():
    affine = np.diag([1.4, 1.4, 8.0, 1.0])
    target = network_grid(Grid((40, 40, 10), affine), (16, 12, 8), (2.0, 1.5, 5.0))
    assert target.spacing_mm == pytest.approx([2.0, 1.5, 5.0])
    middle = transform(target.affine, (np.array(target.shape) - 1) // 2)
    assert middle == pytest.approx(np.rint(middle / affine.diagonal()[:3]) * affine.diagonal()[:3])
    centre = transform(target.affine, (np.array(target.shape) - 1) / 2)
    assert np.abs(centre - affine.diagonal()[:3] * [19.5, 19.5, 4.5]).max() <= 4


def test_the_networks_grid_copies_voxels_at_the_volumes_own_spacing():
    data = np.random.default_rng(0).normal(size=(21, 22, 20)).astype(np.float32)
    grid = unit_grid(21, 22, 20)
    result = resample_image(Volume(data, grid), network_grid(grid, (22, 21, 20), 1.0), -9.0)
    assert np.isin(data[:, :21], result).all()
    assert (result == -9).sum() == 21 * 20


def test_grids_half_a_voxel_apart_keep_the_volume_of_a_small_label():
    labels = np.zeros((20, 20, 20), np.int32)
    labels[6:14, 5:15, 6:14] = 1
    grid, apart = unit_grid(20, 20, 20), np.eye(4)
    apart[:3, 3] = 0.5
    result = resample_labels(Volume(labels, grid), Grid((20, 20, 20), apart), structures_of(1))
    assert result.sum() == pytest.approx(labels.sum(), rel=0.06)  # corners; ties to the background would lose a third


def test_touching_structures_leave_no_gap():
    labels = np.zeros((40, 40, 40), np.int32)
    labels[5:20, 5:35, 5:35], labels[20:35, 5:35, 5:35] = 4, 9
    grid = unit_grid(40, 40, 40)
    result = resample_labels(Volume(labels, grid), network_grid(grid, (30, 30, 30), 1.3), structures_of(4, 9))
    middle = result[5:-5, 15, 15]
    assert (middle > 0).all()
    assert (np.diff(middle.astype(int)) >= 0).all()
    assert set(middle) == {1, 2}


def test_grids_with_other_directions_are_refused():
    volume = Volume(np.zeros((4, 4, 4), np.float32), unit_grid(4, 4, 4))
    turned = Grid((4, 4, 4), np.diag([1.0, 1, 1, 1]))
    turned.affine[:3, :3] = Rotation.from_euler("z", 5, degrees=True).as_matrix()
    with pytest.raises(ValueError, match="target: wanted axes parallel"):
        resample_image(volume, turned, 0.0)


def test_canonical_keeps_every_voxel_where_it_is():
    grid = Grid((3, 4, 5), np.array([[0, -2, 0.1, 7], [0.1, 0, -3, 8], [1.5, 0, 0, 9], [0, 0, 0, 1.0]]))
    data = np.arange(60).reshape(3, 4, 5)
    turned = canonical(Volume(data, grid))
    assert nib.aff2axcodes(turned.grid.affine) == ("R", "A", "S")
    assert turned.grid.shape == turned.data.shape == (4, 5, 3)
    for value in (0, 17, 42, 59):
        before, after = (np.argwhere(volume == value)[0].astype(float) for volume in (data, turned.data))
        np.testing.assert_allclose(transform(grid.affine, before), transform(turned.grid.affine, after))


def test_the_window_maps_its_borders_to_minus_one_and_one():
    config = DataConfig(intensity="window", level_hu=200.0, window_hu=1000.0)
    result = normalise_intensity(np.array([[[-2000.0, -300, -50, 200, 700, 3000]]]), config)
    np.testing.assert_allclose(result, [[[-1, -1, -0.5, 0, 1, 1]]], atol=1e-6)
    assert result.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_percentiles_do_not_depend_on_the_scale(scale):
    config = DataConfig(intensity="percentile", percentiles=(1.0, 99.0))
    data = np.random.default_rng(0).normal(size=(20, 20, 20)) * scale + 7 * scale
    result = normalise_intensity(data, config)
    low, high = np.percentile(data, (1, 99))
    np.testing.assert_allclose(result, np.clip(2 * (data - low) / (high - low) - 1, -1, 1), atol=1e-4)
    assert np.mean(result == -1) == pytest.approx(0.01, abs=2e-3)


def test_percentiles_of_a_big_volume_are_close_from_its_subset():
    config = DataConfig(intensity="percentile", percentiles=(0.5, 99.5))
    data = np.random.default_rng(0).normal(size=(160, 160, 160)).astype(np.float32)
    low, high = np.percentile(data, config.percentiles)
    expected = np.clip(2 * (data - low) / (high - low) - 1, -1, 1)
    assert np.abs(normalise_intensity(data, config) - expected).max() < 0.02


@pytest.mark.parametrize("intensity", ["window", "percentile"])
def test_constant_and_nearly_constant_volumes_stay_in_range(intensity):
    config = DataConfig(intensity=intensity)
    constant = normalise_intensity(np.full((4, 4, 4), -5000, np.float32), config)
    assert (constant == -1).all()
    data = np.zeros((10, 10, 10), np.float32)
    data[0, 0, 0] = 1000
    result = normalise_intensity(data, config)
    assert result[0, 0, 0] == 1
    assert np.isfinite(result).all()
    assert np.ptp(result[1:]) == 0
    assert result.min() >= -1


def test_all_48_orientations_give_the_network_the_same_tensor(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [10, -7, 12], degrees=True).as_matrix() * [0.8, 1.1, 1.7]
    affine[:3, 3] = [-120, 35, 400]
    data = rng.integers(0, 1000, (9, 10, 11)).astype(np.int16)
    images, labels = [], []
    for order in itertools.permutations(range(3)):
        for flips in itertools.product([1, -1], repeat=3):
            turned = np.stack([order, flips], -1).astype(float)
            path = tmp_path / "turned.nii"
            volume = nib.as_closest_canonical(nib.Nifti1Image(data, affine)).as_reoriented(turned)
            write_volume(path, np.asarray(volume.dataobj), volume.affine)
            target = network_grid(read_grid(path), (8, 9, 10), 1.2)
            images.append(resample_image(canonical(read_image(path)), target, -1.0))
            found = read_labels(path)
            labels.append(resample_labels(canonical(Volume(found.data % 3, found.grid)), target, structures_of(1, 2)))
    assert len(images) == 48
    np.testing.assert_allclose(images, [images[0]] * 48, atol=0.05)  # of 1000; origins are float32 in the files
    assert (np.array(labels) == labels[0]).all()


def test_up_to_half_a_voxel_beyond_its_border_a_volume_goes_on():
    volume = Volume(np.full((4, 4, 4), 5, np.int32), unit_grid(4, 4, 4))
    finer = Grid((12, 2, 2), np.diag([0.5, 1, 1, 1.0]))
    finer.affine[:3, 3] = -1.0, 0.0, 0.0  # x from -1 to 4.5
    for result in (resample_image(volume, finer, -1.0) == 5, resample_labels(volume, finer, structures_of(5)) == 1):
        assert result[:, 0, 0].tolist() == [False] + [True] * 9 + [False] * 2


@pytest.mark.parametrize(("values", "wanted"), [((4, 9), [1, 1, 1, 1, 2, 2]), ((9, 4), [2, 2, 2, 1, 1, 1])])
def test_a_voxel_that_two_structures_fill_alike_goes_to_the_first(values, wanted):
    """On a grid that lies half a voxel aside along x where labels are sampled: the border runs through its voxel 3."""
    labels = np.full((8, 6, 6), 4, np.int32)
    labels[4:] = 9
    aside = np.eye(4)
    aside[0, 3] = 0.5 - TIE_BREAK[0]
    result = resample_labels(Volume(labels, unit_grid(8, 6, 6)), Grid((6, 4, 4), aside), structures_of(*values))
    assert result[:, 2, 2].tolist() == wanted


def test_a_voxel_that_a_structure_and_the_background_fill_alike_is_background():
    labels = np.zeros((8, 6, 6), np.int32)
    labels[:4] = 7
    aside = np.eye(4)
    aside[0, 3] = 0.5 - TIE_BREAK[0]
    result = resample_labels(Volume(labels, unit_grid(8, 6, 6)), Grid((6, 4, 4), aside), structures_of(7))
    assert result[:, 2, 2].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("axis", range(3))
def test_affines_are_as_far_apart_as_the_corner_where_they_differ_most(axis):
    shape = (11, 21, 31)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    stretched, moved = affine.copy(), affine.copy()
    stretched[axis, axis] *= 1.01
    moved[axis, 3] -= 0.5 * affine[axis, axis]
    assert voxels_apart(shape, affine, affine) == 0
    assert voxels_apart(shape, affine, stretched) == pytest.approx(0.01 * (shape[axis] - 1))
    assert voxels_apart(shape, affine, moved) == pytest.approx(0.5)


def test_nearest_neighbours_at_another_spacing_by_hand():
    data = np.arange(16, dtype=np.int16).reshape(4, 2, 2)
    affine = np.array([[0, -1, 0, 7], [1.5, 0, 0, 8], [0, 0, 1, 9], [0, 0, 0, 1.0]])  # axes permuted, one flipped
    result = resample_nearest(Volume(data, Grid((4, 2, 2), affine)), 1.0)
    # Six voxels of 1 mm for four of 1.5 mm around the same middle: -1/6, 1/2, 7/6, 11/6, 5/2 and 19/6 of the old.
    assert (result.data == data[[0, 1, 1, 2, 3, 3]]).all()
    assert result.data.dtype == np.int16
    assert result.grid.shape == (6, 2, 2)
    np.testing.assert_allclose(result.grid.affine, [[0, -1, 0, 7], [1, 0, 0, 7.75], [0, 0, 1, 9], [0, 0, 0, 1]])


def test_nearest_neighbours_want_two_voxels_along_each_axis_and_not_too_many(monkeypatch):
    volume = Volume(np.zeros((4, 4, 8), np.int16), unit_grid(4, 4, 8))
    assert resample_nearest(volume, 2.0).grid.shape == (2, 2, 4)
    for spacing_mm in (4.0, 1e-3):
        with pytest.raises(InputError, match=f"volume: wanted 2 to 2\\^31 voxels at {spacing_mm:g} mm, found"):
            resample_nearest(volume, spacing_mm)
    huge = unit_grid(2**11, 2**10, 2**10 + 1)
    with pytest.raises(InputError, match=r"grid: wanted at most 2\^31 voxels, found \[2048, 1024, 1025\]"):
        resample_nearest_onto(volume, huge)
    monkeypatch.setattr("implicitmeshnet.data.volume.MAX_VOXELS", 16)
    assert resample_nearest(volume, 2.0).grid.shape == (2, 2, 4)
    assert resample_nearest_onto(volume, unit_grid(2, 2, 4)).data.shape == (2, 2, 4)


def test_nearest_neighbours_onto_a_grid_that_sticks_out_are_zero_there():
    volume = Volume(np.arange(1, 28, dtype=np.int16).reshape(3, 3, 3), unit_grid(3, 3, 3))
    affine = np.eye(4)
    affine[:3, 3] = [-1, 0.4, 1]
    result = resample_nearest_onto(volume, Grid((5, 2, 3), affine))
    wanted = np.zeros((5, 2, 3), np.int16)
    wanted[1:4, :, :2] = volume.data[:, :2, 1:]
    assert (result.data == wanted).all()


def test_the_middle_of_the_networks_grid_lies_at_the_volumes_voxel_nearest_to_a_given_centre():
    grid = Grid((30, 40, 50), np.array([[0, -2, 0, 7], [0, 0, 3, 8], [1.5, 0, 0, 9], [0, 0, 0, 1.0]]))
    for shape in ((9, 11, 13), (8, 10, 12)):
        target = network_grid(grid, shape, 1.2, [-31.0, 65.0, 30.0])
        middle = target.affine[:3, :3] @ ((np.array(shape) - 1) / 2) + target.affine[:3, 3]
        assert (np.abs(middle - [-31, 65, 30]) <= np.array([2, 3, 1.5]) / 2 + 1e-6).all()


def test_the_voxels_inside_a_grid_are_those_whose_centres_its_outer_faces_enclose():
    target = Grid((4, 4, 4), np.diag([2.0, 2.0, -2.0, 1.0]))
    target.affine[:3, 3] = [3, -3, 8]  # outer faces at 2 and 10, -4 and 4, 9 and 1
    assert box_inside(unit_grid(20, 20, 5), target) == (slice(2, 11), slice(0, 5), slice(1, 10))
    target.affine[0, 3] = -20
    assert box_inside(unit_grid(20, 20, 5), target)[0] == slice(0, 0)


def test_a_volume_in_the_order_of_another_grid_keeps_its_world():
    data = np.arange(24).reshape(2, 3, 4)
    volume = Volume(data, unit_grid(2, 3, 4, spacing=(1.0, 2.0, 3.0)))
    turned = in_order_of(volume, Grid((4, 2, 3), np.array([[0, 1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])))
    assert (turned.data == data.transpose(2, 0, 1)[:, :, ::-1]).all()
    assert turned.grid.shape == (4, 2, 3)
    np.testing.assert_allclose(turned.grid.affine, [[0, 1, 0, 0], [0, 0, -2, 4], [3, 0, 0, 0], [0, 0, 0, 1]])


@fast
@given(grids(), st.sampled_from([0, 1, 2]))
def test_thick_slices_follow_each_other_along_the_networks_thick_axis(grid, wanted):
    spacing = np.ones(3)
    spacing[wanted] = 4
    turn = slices_along(grid, spacing.tolist())
    np.testing.assert_array_equal(turn @ turn.T, np.eye(4))
    if thick_axis(grid.spacing_mm) is None:
        np.testing.assert_array_equal(turn, np.eye(4))
        return
    turned = turned_by(Volume(np.zeros((1, 1, 1)), grid), turn)
    along = network_grid(turned.grid, (8, 8, 8), 1.0)
    assert thick_axis(canonical(replace(turned, data=np.zeros(grid.shape, np.uint8))).grid.spacing_mm) == wanted
    in_the_header = turn.T @ along.affine
    assert (in_the_header.diagonal()[:3] >= -1e-9).all()  # each axis points the way of the patient's


def test_isotropic_networks_and_volumes_are_not_turned():
    slices = Grid((20, 20, 20), np.diag([5.0, 1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(slices_along(slices, 2.0), np.eye(4))
    np.testing.assert_array_equal(slices_along(unit_grid(20, 20, 20), (1.0, 1.0, 5.0)), np.eye(4))
    assert (slices_along(slices, (1.0, 1.0, 5.0)) != np.eye(4)).any()


@pytest.mark.parametrize(("padding", "is_padding"), [(-3024, True), (-2000, True), (-1100, False), (-1024, False)])
def test_what_a_scanner_writes_beyond_its_field_of_view_is_no_intensity(padding, is_padding):
    hu = np.random.default_rng(0).uniform(-1024, 1500, (30, 30, 30)).round().astype(np.float32)
    padded = hu.copy()
    padded[:, :6, :6] = padding
    config = DataConfig(intensity="percentile")
    seen = normalise_intensity(padded, config, 0)
    wanted = normalise_intensity(hu, config, 0)
    inside = np.s_[:, 6:, 6:]
    difference = np.abs(seen[inside] - wanted[inside]).max()
    assert difference < (0.01 if is_padding else 0.2)
    if is_padding:
        assert (seen[:, :6, :6] == -1).all()
