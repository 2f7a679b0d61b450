"""Metrics against figures worked out by hand."""

import warnings

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from meshes import sphere
from volumes import ball_mask, block_mask

from implicitmeshnet.data.volume import Grid
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.metrics import (
    LARGEST_MOVE_MM,
    LEAST_AGREEMENT,
    agreement_warning,
    agreements,
    dice,
    mean_and_deviation,
    move_warning,
    outside_warning,
    share_outside,
    surface_distances,
    volume_ml,
)
from implicitmeshnet.surfaces.soundness import euler_characteristic, is_closed, mesh_volume_ml, self_intersecting_faces

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])  # of a corner at 0 and the unit vectors


def spaced(*spacing_mm) -> Grid:
    """A grid along the world's axes."""
    return Grid((1, 1, 1), np.diag([*spacing_mm, 1.0]))


def crossing_by_hand(a, b):
    """Whether an edge of either triangle passes through the other, by solving p + t (q - p) = a + u e1 + v e2."""
    for edged, face in ((a, b), (b, a)):
        for p, q in zip(edged, np.roll(edged, -1, axis=0), strict=True):
            t, u, v = np.linalg.solve(np.stack([p - q, face[1] - face[0], face[2] - face[0]], axis=1), p - face[0])
            if 0 < t < 1 and u > 0 and v > 0 and u + v < 1:
                return True
    return False


def test_dice_by_hand():
    a, b = block_mask((8, 8, 8), (0, 0, 0), (4, 4, 4)), block_mask((8, 8, 8), (1, 0, 0), (5, 4, 4))
    assert dice(a, b) == 2 * 48 / 128
    assert dice(a, a) == 1
    assert dice(a, ~a & False) == 0
    assert np.isnan(dice(a & False, a & False))


def test_what_is_ignored_is_out_of_the_metrics():
    """A prediction that is right but for ignored voxels, into which it grows, and which cut the reference off."""
    reference = block_mask((20, 20, 20), (4, 4, 4), (10, 16, 16))
    prediction = block_mask((20, 20, 20), (4, 4, 4), (18, 16, 16))
    ignored = block_mask((20, 20, 20), (10, 0, 0), (20, 20, 20))
    assert dice(prediction, reference) < 0.7
    assert dice(prediction, reference, ignored) == 1
    assert surface_distances(prediction, reference, spaced(1, 1, 1))["hd95_mm"] > 4
    assert surface_distances(prediction, reference, spaced(1, 1, 1), ignored) == {"assd_mm": 0, "hd95_mm": 0}


def test_an_ignored_cut_is_no_border_and_what_has_no_border_has_no_distance():
    """Of a half box that is 1 voxel short of the reference's outer face alone: the cut would pull the mean down."""
    reference = block_mask((20, 20, 20), (4, 0, 0), (10, 20, 20))
    prediction = block_mask((20, 20, 20), (5, 0, 0), (10, 20, 20))
    ignored = block_mask((20, 20, 20), (10, 0, 0), (20, 20, 20))
    cut = surface_distances(prediction, reference, spaced(2, 1, 1), ignored)
    whole = surface_distances(prediction, reference, spaced(2, 1, 1))
    assert whole["assd_mm"] < cut["assd_mm"] < 2
    inside = block_mask((20, 20, 20), (9, 9, 9), (11, 11, 11))
    around = block_mask((20, 20, 20), (7, 7, 7), (13, 13, 13)) & ~inside
    assert surface_distances(inside, inside, spaced(1, 1, 1), around) == pytest.approx(
        {"assd_mm": float("nan"), "hd95_mm": float("nan")}, nan_ok=True
    )


@given(st.integers(0, 2**31))
@settings(max_examples=10, derandomize=True, deadline=None)
def test_an_empty_mask_of_ignored_voxels_changes_no_distance(seed):
    masks = np.random.default_rng(seed).random((2, 7, 8, 9)) < 0.2
    nothing = np.zeros_like(masks[0])
    expected = surface_distances(*masks, spaced(1.5, 1, 0.7))
    assert surface_distances(*masks, spaced(1.5, 1, 0.7), nothing) == pytest.approx(expected)
    assert dice(*masks, nothing) == dice(*masks)


def test_masks_are_checked():
    mask = np.zeros((2, 2, 2), dtype=bool)
    with pytest.raises(InputError, match=r"reference: wanted a boolean mask, found int64"):
        dice(mask, mask.astype(np.int64))
    with pytest.raises(InputError, match=r"prediction: wanted the reference's shape \(2, 2, 1\), found \(2, 2, 2\)"):
        surface_distances(mask, mask[..., :1], spaced(1, 1, 1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_distances_of_shifted_slabs(axis):
    # One voxel thick across `axis`: all voxels are border voxels, each 3 voxels from the other slab.
    spacing_mm = np.array([0.7, 1.5, 2.0])
    start, stop = np.array([2, 2, 2]), np.array([12, 12, 12])
    start[axis], stop[axis] = 4, 5
    step = 3 * np.eye(3, dtype=int)[axis]
    near, far = block_mask((16,) * 3, start, stop), block_mask((16,) * 3, start + step, stop + step)
    found = surface_distances(near, far, spaced(*spacing_mm))
    assert found == pytest.approx({"assd_mm": 3 * spacing_mm[axis], "hd95_mm": 3 * spacing_mm[axis]})


def test_distances_of_two_rods_by_hand():
    # Voxels x = 0..9 and x = 0..19 of one line, 2 mm apart: 10 zeros one way; 10 zeros and 2, 4, ..., 20 the other.
    short, long = block_mask((24, 3, 3), (0, 1, 1), (10, 2, 2)), block_mask((24, 3, 3), (0, 1, 1), (20, 2, 2))
    found = surface_distances(short, long, spaced(2, 1, 1))
    back = np.array([0.0] * 10 + list(range(2, 21, 2)))
    assert found["assd_mm"] == pytest.approx((0 + back.mean()) / 2)
    assert found["hd95_mm"] == pytest.approx(np.percentile([0.0] * 10 + list(back), 95))


def test_the_image_edge_is_a_border():
    # The full cube's border is its shell; the inner cube sits 1 voxel inside on every side.
    full, inner = np.ones((7, 7, 7), dtype=bool), block_mask((7, 7, 7), (1, 1, 1), (6, 6, 6))
    found = surface_distances(full, inner, spaced(1, 1, 1))
    assert 1 <= found["assd_mm"] < 1.2
    assert found["hd95_mm"] == pytest.approx(np.sqrt(2))


def test_distances_of_concentric_balls_are_the_difference_of_radii():
    spacing_mm = (0.5, 0.6, 0.8)
    a, b = (ball_mask((90, 80, 60), (45, 40, 30), radius, spacing_mm) for radius in (12.0, 15.0))
    found = surface_distances(a, b, spaced(*spacing_mm))
    assert found["assd_mm"] == pytest.approx(3, abs=0.2)  # to the nearest voxel centre: up to half a voxel less
    assert found["hd95_mm"] == pytest.approx(3, abs=0.6)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(0.3, 3)] * 3))
def test_distances_are_symmetric_and_match_brute_force(seed, spacing_mm):
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 6, 7, 5)) < 0.3
    a[0, 0, 0] = b[5, 6, 4] = True
    found = surface_distances(a, b, spaced(*spacing_mm))
    assert surface_distances(b, a, spaced(*spacing_mm)) == pytest.approx(found)
    borders = []
    for mask in (a, b):
        padded = np.pad(mask, 1)
        surrounded = np.ones_like(mask)
        for axis in range(3):
            for step in (-1, 1):
                surrounded &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        borders.append(np.argwhere(mask & ~surrounded) * spacing_mm)
    between = np.linalg.norm(borders[0][:, None] - borders[1][None], axis=-1)
    assert found["assd_mm"] == pytest.approx((between.min(0).mean() + between.min(1).mean()) / 2)
    assert found["hd95_mm"] == pytest.approx(np.percentile(np.concatenate([between.min(0), between.min(1)]), 95))


def test_distances_to_an_empty_mask_are_infinite_and_between_two_undefined():
    empty, full = np.zeros((4, 4, 4), dtype=bool), np.ones((4, 4, 4), dtype=bool)
    assert all(np.isinf(value) for value in surface_distances(empty, full, spaced(1, 1, 1)).values())
    assert all(np.isinf(value) for value in surface_distances(full, empty, spaced(1, 1, 1)).values())
    assert all(np.isnan(value) for value in surface_distances(empty, empty, spaced(1, 1, 1)).values())


def test_volumes_of_a_mask_and_of_a_mesh_by_hand():
    assert volume_ml(block_mask((30, 30, 30), (0, 0, 0), (10, 20, 25)), spaced(0.5, 1, 2)) == pytest.approx(5)
    corner = np.vstack([np.zeros(3), 10 * np.eye(3)]) + np.array([100, -50, 7])
    assert mesh_volume_ml(corner, TETRAHEDRON) == pytest.approx(1 / 6)
    assert mesh_volume_ml(corner, TETRAHEDRON[:, ::-1]) == pytest.approx(-1 / 6)


def test_on_a_sheared_grid_volumes_and_distances_are_those_of_the_world():
    """Slices 3 mm apart along an axis that leans by 20 degrees: the column lengths alone would give 150 ml."""
    lean = np.radians(20)
    affine = np.eye(4)
    affine[:3, 2] = [0, 3 * np.sin(lean), 3 * np.cos(lean)]
    grid = Grid((50, 50, 20), affine)
    assert volume_ml(np.ones(grid.shape, dtype=bool), grid) == pytest.approx(150 * np.cos(lean))
    one, other = block_mask(grid.shape, (5, 5, 5), (6, 6, 6)), block_mask(grid.shape, (5, 6, 6), (6, 7, 7))
    apart_mm = np.sqrt(1 + 9 + 2 * 3 * np.sin(lean))  # by the law of cosines
    assert surface_distances(one, other, grid) == pytest.approx({"assd_mm": apart_mm, "hd95_mm": apart_mm})


def test_euler_characteristic_and_closedness():
    _, faces = sphere()
    torus = np.array(trimesh.creation.torus(3, 1).faces)
    assert euler_characteristic(faces) == 2
    assert euler_characteristic(torus) == 0
    assert euler_characteristic(np.vstack([faces, torus + faces.max() + 1])) == 2
    assert is_closed(faces)
    assert is_closed(torus)
    assert not is_closed(faces[1:])
    assert not is_closed(np.vstack([faces[1:], faces[:1, ::-1]]))  # one face turned around
    assert not is_closed(np.vstack([faces, faces]))
    assert not is_closed(np.empty((0, 3), dtype=int))
    assert not is_closed(np.array([[0, 1, 1], [0, 1, 1]]))


def test_two_triangles_intersect_where_they_cross_and_not_beside():
    # The second stands on edge through the first's inside; moved aside, it crosses nothing.
    vertices = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [1, 1, -1], [1, 1, 1], [9, 9, 0]], dtype=float)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    assert self_intersecting_faces(vertices, faces).tolist() == [True, True]
    vertices[3:] += [5, 0, 0]
    assert not self_intersecting_faces(vertices, faces).any()


def test_faces_that_share_one_vertex_can_cross_and_those_that_touch_do_not():
    vertices = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [2, 2, -1], [1, 1, 1], [4, 4, 4], [0, 8, 4]], dtype=float)
    through = np.array([[0, 1, 2], [0, 3, 4]])  # edge 3-4 pierces the first at (1.5, 1.5, 0)
    assert self_intersecting_faces(vertices, through).tolist() == [True, True]
    above = np.array([[0, 1, 2], [0, 5, 6]])
    assert not self_intersecting_faces(vertices, above).any()
    folded = np.array([[0, 1, 2], [0, 1, 4]])  # shares an edge
    assert not self_intersecting_faces(vertices, folded).any()


def test_of_two_crossing_tetrahedra_the_faces_that_cross_are_found():
    # A spike from z = 5 down into the first one's oblique face: its three sides cross that face, its lid does not.
    first = np.vstack([np.zeros(3), 3 * np.eye(3)])
    spike = np.array([[0.9, 0.9, 0.9], [0.8, 1, 5], [1, 0.8, 5], [1, 1, 5]])
    faces = np.vstack([TETRAHEDRON, TETRAHEDRON + 4])
    found = self_intersecting_faces(np.vstack([first, spike]), faces)
    crossing = {(1, 2, 3), (4, 5, 6), (4, 5, 7), (4, 6, 7)}
    assert {tuple(sorted(face)) for face in faces[found].tolist()} == crossing


def test_a_clean_sphere_has_none_and_a_folded_one_many():
    vertices, faces = sphere(subdivisions=4)
    assert len(faces) == 5120
    assert not self_intersecting_faces(vertices, faces).any()
    assert not self_intersecting_faces(vertices.astype(np.float32) * 37 + 11, faces).any()
    folded = vertices.copy()
    cap = vertices[:, 2] > 0.5
    folded[cap, 2] -= 2.5  # the upper cap goes out through the bottom
    found = self_intersecting_faces(folded, faces)
    assert 20 < found.sum() < 1000
    assert np.abs(folded[faces[found]][..., 2]).max() > 0.9


def test_a_face_torn_through_the_far_side_crosses_it():
    vertices, faces = sphere(subdivisions=2)
    vertices[0] *= -1.5  # its own faces and those around the antipode
    found = self_intersecting_faces(vertices, faces)
    own = (faces == 0).any(1)
    assert found[own].any()
    assert 0 < (found & ~own).sum() < 20


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_random_triangles_match_one_by_one(seed):
    triangles = np.random.default_rng(seed).random((20, 3, 3))
    wanted = np.zeros(20, dtype=bool)
    for i in range(20):
        for j in range(i):
            if crossing_by_hand(triangles[i], triangles[j]):
                wanted[[i, j]] = True
    found = self_intersecting_faces(triangles.reshape(-1, 3), np.arange(60).reshape(-1, 3))
    assert found.tolist() == wanted.tolist()


def test_a_face_without_area_counts_and_one_that_is_not_finite_does_not():
    vertices = np.array([[0, 0, 0], [1, 1, 0], [2, 2, 0], [5, 0, -1], [5, 2, 1], [np.nan, 0, 0]])
    faces = np.array([[0, 1, 2], [3, 4, 0], [0, 1, 5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert self_intersecting_faces(vertices, faces).tolist() == [True, False, False]
        assert self_intersecting_faces(vertices, np.empty((0, 3), dtype=int)).shape == (0,)


def test_a_volume_is_the_voxels_times_their_size():
    assert volume_ml(block_mask((30, 30, 30), (0, 0, 0), (10, 20, 25)), spaced(0.5, 1, 3)) == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.8, 0.9], "0.850 +- 0.050"),
        (np.array([2.0]), "2.000 +- 0.000"),
        ([1.0, np.inf], "inf"),  # a mask without any voxel has no finite distance, so the mean has no deviation
        ([], "-"),
    ],
)
def test_a_mean_as_text_has_its_deviation_where_all_numbers_are_finite(values, text):
    assert mean_and_deviation(values) == text


def test_the_least_agreement_is_still_enough_and_less_or_none_is_named():
    assert agreement_warning({"LV": LEAST_AGREEMENT, "LA": 1.0}) is None
    warning = agreement_warning({"LV": LEAST_AGREEMENT - 0.01, "LA": 0.9, "RA": np.nan})
    assert "LV 0.69, RA nan" in warning
    assert "LA" not in warning


def test_agreement_is_the_dice_of_each_structures_value():
    labelmap, segmentation = np.array([[0, 5, 5, 7], [0, 5, 7, 7]])
    assert agreements(labelmap, segmentation, {"LV": 5, "LA": 7}) == {"LV": 2 / 3, "LA": 2 / 3}


def test_the_share_of_a_mesh_outside_an_image_is_that_of_its_area():
    vertices, faces = sphere()
    moved = vertices * 10 + [4.5, 4.5, 4.5]
    grid = Grid((40, 40, 40), np.diag([1.0, 1, 1, 1]))
    assert share_outside(moved + 15, faces, grid) == 0
    assert share_outside(moved - np.array([5, -15, -15]), faces, grid) == pytest.approx(
        0.5, abs=0.02
    )  # the image begins at -0.5
    assert share_outside(moved + 100, faces, grid) == 1


def test_what_lies_outside_is_worth_a_warning_from_a_twentieth_on():
    assert outside_warning({"LV": 0.05, "AO": 0.0}) is None
    assert outside_warning({"LV": 0.2, "AO": 0.051, "PA": 0.0}).endswith(": LV 20%, AO 5%")


def test_the_largest_move_is_not_worth_a_warning_and_more_is():
    agreeing = {"LV": 0.9, "LA": 0.9, "PA": LEAST_AGREEMENT}
    assert move_warning({"LV": LARGEST_MOVE_MM, "LA": 0.0}, agreeing) is None
    moves_mm = {"LV": LARGEST_MOVE_MM + 0.1, "LA": 1.0, "PA": 6.0}
    assert "(mean mm: LV 1.1, PA 6.0)" in move_warning(moves_mm, agreeing)
    assert "(mean mm: LV 1.1)" in move_warning(moves_mm, agreeing | {"PA": 0.69})
    assert move_warning({"LV": 9.0}, {"LV": float("nan")}) is None  # that it is nowhere is another warning
