"""Faces that cross or touch: against a linear program on small whole numbers, where every kind of contact occurs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.surfaces import crossing
from implicitmeshnet.surfaces.crossing import crossing_faces, crossing_pairs, snapped


def in_common(one: np.ndarray, other: np.ndarray, shared: list[tuple[int, int]]) -> bool:
    """Whether triangles (3, 3) have a point in common beside those of the corners that they share, as index pairs.

    Weights a, b >= 0 of both triangles' corners make one point; of all such points the one furthest from the shared
    corners is sought.
    """
    equal = np.zeros((5, 6))
    equal[:3, :3] = one.T
    equal[:3, 3:] = -other.T
    equal[3, :3] = 1
    equal[4, 3:] = 1
    gain = np.ones(6)
    for mine, theirs in shared:
        gain[[mine, 3 + theirs]] = 0
    found = linprog(-gain, A_eq=equal, b_eq=[0, 0, 0, 1, 1], bounds=(0, None))
    return found.status == 0 and (not shared or -found.fun > 1e-7)


def has_area(triangle: np.ndarray) -> bool:
    return bool(np.cross(triangle[1] - triangle[0], triangle[2] - triangle[0]).any())


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2), st.sampled_from([2, 3, 5]))
def test_two_triangles_of_small_numbers_meet_where_a_linear_program_says_so(seed, common, side):
    rng = np.random.default_rng(seed)
    vertices = rng.integers(0, side, (6 - common, 3)).astype(float)
    first, second = np.array([0, 1, 2]), np.array([0, 1, 2, 3, 4, 5])[3 - common : 6 - common]
    first, second = rng.permutation(first), rng.permutation(second)
    one, other = vertices[first], vertices[second]
    if not (has_area(one) and has_area(other)):
        return
    shared = [(i, j) for i in range(3) for j in range(3) if first[i] == second[j]]
    wanted = in_common(one, other, shared)
    assert (len(crossing_pairs(vertices, np.stack([first, second]))) == 1) == wanted


def test_what_rounds_away_in_float64_is_told_apart():
    """A point one step above a large tilted plane, in it, and one step below."""
    size = 2.0**22
    triangle = np.array([[0, 0, 1], [size, 1, 3], [3, size, 2]])
    for height, wanted in ((1, 1), (0, 1), (-1, 1), (2, 0)):
        foot = triangle.sum(0) // 3
        above = np.array([foot, foot, foot]) + [[0, 0, height], [7, 1, size / 2], [1, 9, size / 2]]
        volume = int(round(float(np.linalg.det((triangle - above[0]).astype(np.longdouble).astype(float)))))
        found = len(crossing_pairs(np.vstack([triangle, above]), np.array([[0, 1, 2], [3, 4, 5]])))
        exact = crossing._signs(*(row[None] for row in (*triangle, above[0])))[0]
        a, b, c = ([int(x) for x in row - above[0]] for row in triangle)
        by_hand = (
            a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
        )
        assert exact == np.sign(by_hand)
        assert isinstance(volume, int) and found in (0, 1) and wanted in (0, 1)


def test_a_sphere_is_clean_and_a_fold_a_flat_face_and_a_doubled_one_are_found():
    vertices, faces = icosphere(3)
    vertices, faces = vertices.double().numpy(), faces.numpy()
    assert not crossing_faces(vertices, faces).any()
    assert not crossing_faces(vertices.astype(np.float32) * 37 + 11, faces).any()
    folded = vertices.copy()
    folded[vertices[:, 2] > 0.5, 2] -= 2.5
    assert 20 < crossing_faces(folded, faces).sum() < 600
    flat = vertices.copy()
    flat[faces[0, 1]] = flat[faces[0, 0]]
    assert crossing_faces(flat, faces)[0]
    assert crossing_faces(vertices, np.vstack([faces, faces[:1]])).sum() >= 2


def test_snapped_vertices_are_whole_steps_that_float32_holds():
    vertices = np.random.default_rng(0).uniform(-180, 180, (1000, 3))
    found = snapped(vertices)
    assert np.array_equal(found.astype(np.float32).astype(np.float64), found)
    assert np.abs(found - vertices).max() <= 2.0**-17
    assert np.array_equal(snapped(found), found)


def test_memory_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    vertices, faces = icosphere(3)
    vertices = vertices.double().numpy() + rng.normal(0, 0.08, vertices.shape)
    whole = crossing_pairs(vertices, faces.numpy())
    monkeypatch.setattr(crossing, "PAIRS_AT_ONCE", 500)
    blocks = crossing_pairs(vertices, faces.numpy())
    assert len(whole) > 100
    assert set(map(tuple, np.sort(whole, 1).tolist())) == set(map(tuple, np.sort(blocks, 1).tolist()))


def test_coordinates_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="vertices: wanted finite coordinates, found others"):
        crossing_pairs(np.array([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]]), np.array([[0, 1, 2]]))
    assert len(crossing_pairs(np.zeros((0, 3)), np.zeros((0, 3), dtype=int))) == 0
