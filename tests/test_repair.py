import warnings

import numpy as np
import pytest

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.surfaces.crossing import snapped
from implicitmeshnet.surfaces.repair import untangle
from implicitmeshnet.surfaces.soundness import mesh_volume_ml, self_intersecting_faces


@pytest.fixture(scope="module")
def sphere():
    vertices, faces = icosphere(3)
    return 20 * vertices.double().numpy(), faces.numpy()


def test_a_clean_mesh_stays_as_it_is_but_for_what_float32_cannot_hold(sphere):
    vertices, faces = sphere
    repaired = untangle(vertices, faces, vertices)
    assert np.array_equal(repaired, snapped(vertices))
    assert np.array_equal(repaired, repaired.astype(np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_a_folded_patch_is_smoothed_and_the_rest_stays(sphere, seed):
    vertices, faces = sphere
    rng = np.random.default_rng(seed)
    centre = vertices[rng.integers(len(vertices))]
    patch = np.linalg.norm(vertices - centre, axis=1) < 6
    folded = vertices.copy()
    folded[patch] += rng.normal(0, 2.5, (patch.sum(), 3))
    before = self_intersecting_faces(folded, faces)
    assert before.sum() > 3
    repaired = untangle(folded, faces, vertices)
    assert not self_intersecting_faces(repaired, faces).any()
    far = np.linalg.norm(vertices - centre, axis=1) > 16
    assert np.abs(repaired - folded)[far].max() < 1e-5
    assert np.linalg.norm(repaired - vertices, axis=1).max() < 7


def test_a_cap_pushed_through_the_other_side_is_drawn_back(sphere):
    vertices, faces = sphere
    torn = vertices.copy()
    torn[vertices[:, 2] > 10] -= [5, 0, 25]
    assert self_intersecting_faces(torn, faces).any()
    assert not self_intersecting_faces(untangle(torn, faces, vertices), faces).any()


@pytest.mark.parametrize("seed", range(4))
def test_noise_as_large_as_the_mesh_and_a_mesh_turned_inside_out_end_without_crossings(seed):
    vertices, faces = (tensor.double().numpy() for tensor in icosphere(2))
    vertices = 20 * vertices
    faces = faces.astype(int)
    rng = np.random.default_rng(seed)
    torn = vertices + rng.normal(0, 10, vertices.shape)
    torn[:, 0] *= -1 if seed % 2 else 1
    repaired = untangle(torn, faces, vertices)
    assert not self_intersecting_faces(repaired, faces).any()
    assert mesh_volume_ml(repaired, faces) > 0


def test_all_vertices_in_one_point_become_a_small_ellipsoid(sphere):
    vertices, faces = sphere
    repaired = untangle(np.full_like(vertices, 7.0), faces, vertices)
    assert not self_intersecting_faces(repaired, faces).any()


@pytest.mark.parametrize("height", [4, 6, 8])
def test_a_cap_turned_around_is_mended_though_its_first_surroundings_do_not_suffice(height):
    vertices, faces = icosphere(2)
    turned = 20 * vertices.double().numpy()
    turned[turned[:, 2] > height, :2] *= -1  # the ring of faces around the cap runs through itself
    assert self_intersecting_faces(turned, faces.numpy()).sum() > 40
    assert not self_intersecting_faces(untangle(turned, faces.numpy(), vertices.double().numpy()), faces.numpy()).any()


def test_a_vertex_of_no_face_stays_and_makes_no_warning(sphere):
    vertices, faces = sphere
    with_another = np.vstack([vertices, [[100.0, 0.0, 0.0]]])
    with_another[0] *= -1.5  # through the far side
    assert self_intersecting_faces(with_another, faces).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repaired = untangle(with_another, faces, np.vstack([vertices, [[100.0, 0.0, 0.0]]]))
    assert not self_intersecting_faces(repaired, faces).any()
    assert repaired[-1].tolist() == [100, 0, 0]
