import warnings

import numpy as np
import pytest

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.surfaces.repair import untangle
from implicitmeshnet.surfaces.soundness import self_intersecting_faces


@pytest.fixture(scope="module")
def sphere():
    vertices, faces = icosphere(3)
    return 20 * vertices.double().numpy(), faces.numpy()


def test_a_clean_mesh_stays_as_it_is(sphere):
    vertices, faces = sphere
    assert np.array_equal(untangle(vertices, faces), vertices)


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
    repaired = untangle(folded, faces)
    assert not self_intersecting_faces(repaired, faces).any()
    assert np.array_equal(
        repaired[np.linalg.norm(vertices - centre, axis=1) > 16], folded[np.linalg.norm(vertices - centre, axis=1) > 16]
    )
    assert np.linalg.norm(repaired - vertices, axis=1).max() < 7


def test_what_cannot_be_mended_is_not_made_worse(sphere):
    vertices, faces = sphere
    torn = vertices.copy()
    torn[vertices[:, 2] > 10] -= [5, 0, 25]  # a cap pushed through the other side
    before = self_intersecting_faces(torn, faces).sum()
    assert before > 0
    assert self_intersecting_faces(untangle(torn, faces), faces).sum() <= before


@pytest.mark.parametrize("height", [4, 6, 8])
def test_a_cap_turned_around_is_mended_though_its_first_surroundings_do_not_suffice(height):
    vertices, faces = icosphere(2)
    turned = 20 * vertices.double().numpy()
    turned[turned[:, 2] > height, :2] *= -1  # the ring of faces around the cap runs through itself
    assert self_intersecting_faces(turned, faces.numpy()).sum() > 40
    assert not self_intersecting_faces(untangle(turned, faces.numpy()), faces.numpy()).any()


def test_a_vertex_of_no_face_stays_and_makes_no_warning(sphere):
    vertices, faces = sphere
    with_another = np.vstack([vertices, [[100.0, 0.0, 0.0]]])
    with_another[0] *= -1.5  # through the far side
    assert self_intersecting_faces(with_another, faces).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repaired = untangle(with_another, faces)
    assert not self_intersecting_faces(repaired, faces).any()
    assert repaired[-1].tolist() == [100, 0, 0]
