"""Faces that cross or touch: against a linear program on small whole numbers, where every kind of contact occurs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from implicitmeshnet import ops
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import reference_meeting
from implicitmeshnet.script import InputError
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


def test_signs_that_float64_rounds_away_are_exact():
    """Points in large tilted planes and right beside them: sums of products of up to 76 bits that cancel."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        a, p, q = rng.integers(-(2**20), 2**20, (3, 3))
        b, c, d = a + 7 * p + q, a + 2 * p + 5 * q, a + 3 * p + 2 * q
        d = d + rng.integers(0, 2) * rng.integers(-1, 2, 3)
        rows = [torch.from_numpy(point)[None] for point in (a, b, c, d)]
        u, v, w = ([int(x) for x in point - d] for point in (a, b, c))
        determinant = (
            u[0] * (v[1] * w[2] - v[2] * w[1]) + u[1] * (v[2] * w[0] - v[0] * w[2]) + u[2] * (v[0] * w[1] - v[1] * w[0])
        )
        assert reference_meeting._signs(*rows).item() == np.sign(determinant)
        wrong += np.sign(np.linalg.det(np.array([u, v, w], dtype=np.float64))) != np.sign(determinant)
    assert wrong > 0  # where float64 alone would have erred


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


def noisy_sphere(subdivisions: int, noise: float, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A sphere of whole numbers that crosses itself."""
    vertices, faces = icosphere(subdivisions)
    generator = torch.Generator().manual_seed(0)
    noise = noise * torch.randn(vertices.shape, generator=generator, dtype=torch.float64)
    return ((vertices.double() + noise) * scale).round().long(), faces


@pytest.mark.parametrize("scale", [4, 40, 2**22])  # small numbers touch in every way, large ones need all bits
def test_the_kernel_finds_what_the_reference_finds(scale):
    vertices, faces = noisy_sphere(3, 0.08, scale)
    chosen = torch.arange(len(faces)) % 3 == 0
    everything = torch.ones_like(chosen)
    for wanted in (everything, chosen):
        found = ops.crossing_pairs(vertices, faces, wanted)
        assert len(found) > 100
        assert torch.equal(found, reference_meeting.crossing_pairs(vertices, faces, wanted))
    assert torch.equal(ops.crossing_pairs(vertices, faces), ops.crossing_pairs(vertices, faces.int(), everything))


def test_pairs_with_a_chosen_face_are_those_of_all_pairs():
    vertices, faces = noisy_sphere(2, 0.15, 1000)
    chosen = torch.arange(len(faces)) % 5 == 0
    pairs = ops.crossing_pairs(vertices, faces)
    assert torch.equal(ops.crossing_pairs(vertices, faces, chosen), pairs[chosen[pairs].any(1)])


def test_memory_blocks_change_nothing(monkeypatch):
    vertices, faces = noisy_sphere(3, 0.08, 1000)
    everything = torch.ones(len(faces), dtype=torch.bool)
    whole = reference_meeting.crossing_pairs(vertices, faces, everything)
    monkeypatch.setattr(reference_meeting, "PAIRS", 500)
    assert torch.equal(reference_meeting.crossing_pairs(vertices, faces, everything), whole)


def test_any_number_of_threads_finds_the_same():
    vertices, faces = noisy_sphere(3, 0.08, 1000)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(ops.crossing_pairs(vertices, faces))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"vertices": torch.zeros(3, 3)}, "vertices: wanted int64, found torch.float32"),
        ({"vertices": torch.zeros(3).long()}, r"vertices: wanted shape \(V, 3\), found \(3,\)"),
        ({"vertices": torch.full((3, 3), 2**24 + 1)}, "vertices: wanted whole numbers up to 16777216 in size, found"),
        ({"faces": torch.tensor([[0, 1, 3]])}, "faces: wanted vertex indices from 0 to 2, found 3"),
        ({"chosen": torch.ones(1)}, "chosen: wanted bool, found torch.float32"),
        ({"chosen": torch.ones(2).bool()}, r"chosen: wanted shape \(1,\), found \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, text):
    fitting = {"vertices": torch.zeros(3, 3).long(), "faces": torch.tensor([[0, 1, 2]]), "chosen": torch.ones(1).bool()}
    with pytest.raises((TypeError, ValueError), match=text):
        ops.crossing_pairs(**fitting | change)


def test_coordinates_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="vertices: wanted finite coordinates, found NaN or infinity"):
        crossing_pairs(np.array([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]]), np.array([[0, 1, 2]]))
    assert len(crossing_pairs(np.zeros((0, 3)), np.zeros((0, 3), dtype=int))) == 0
