"""A doubtful mesh that lies in the way of those that are believed makes way, and only it."""

import numpy as np
import pytest

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.surfaces.precedence import made_way
from implicitmeshnet.surfaces.proximity import near
from implicitmeshnet.surfaces.separation import Scene, separate
from implicitmeshnet.surfaces.soundness import mesh_volume_ml

SPHERE, FACES = (tensor.numpy() for tensor in icosphere(2))
SPHERE = SPHERE.astype(np.float64)


def ball(radius: float, *centre: float) -> np.ndarray:
    return radius * SPHERE + np.array(centre)


def placed(meshes, agreement, encloses=None) -> np.ndarray:
    """What `made_way` and `separate` make of meshes, of which none crosses."""
    encloses = encloses or [()] * len(meshes)
    apart = made_way(np.stack(meshes), FACES, SPHERE, encloses, agreement)
    result = separate(apart, FACES, SPHERE, encloses)
    scene = Scene(FACES, [set(inner) for inner in encloses], np.zeros(result.shape[:2]), None)
    assert len(scene.crossings(result)) == 0
    assert scene.misplaced(result) == []
    return result


def moves_mm(result: np.ndarray, meshes: list[np.ndarray]) -> np.ndarray:
    return np.linalg.norm(result - np.stack(meshes), axis=2).mean(1)


@pytest.mark.parametrize(
    ("second", "agreement"),
    [
        (ball(20, 14, 0, 0), [0.9, 0.75]),  # deep in each other, but both believed
        (ball(20, 14, 0, 0), [0.6, np.nan]),  # none is
        (ball(20, 39, 0, 0), [0.9, 0.1]),  # they hardly touch
    ],
)
def test_all_stay_where_none_is_doubtful_or_none_believed_or_none_deep_in_another(second, agreement):
    meshes = np.stack([ball(20, 0, 0, 0), second])
    np.testing.assert_array_equal(made_way(meshes, FACES, SPHERE, [(), ()], agreement), meshes)


@pytest.mark.parametrize("believed", [0, 1])
def test_of_two_that_lie_in_each_other_the_doubtful_one_makes_way(believed):
    meshes = [ball(20, 0, 0, 0), ball(20, 14, 0, 0)]
    agreement = [0.1, 0.1]
    agreement[believed] = 0.9
    found = placed(meshes, agreement)
    assert moves_mm(found, meshes)[believed] < 0.3
    other = found[1 - believed]
    free_ml = 16.7  # of either ball, beyond the other, by the volume of their lens
    assert 0.7 * free_ml < mesh_volume_ml(other, FACES) < free_ml
    beyond = near(other, meshes[1 - believed], FACES, 5.0).distance.max()
    assert beyond < 0.1  # it stays within what it was


def test_a_doubtful_one_makes_way_of_one_that_is_less_so():
    meshes = [ball(20, 0, 0, 0), ball(20, 14, 0, 0), ball(10, 80, 0, 0)]
    found = placed(meshes, [0.1, 0.5, 0.9])
    assert moves_mm(found, meshes)[1:].max() < 0.3


def test_what_encloses_another_goes_with_it():
    meshes = [ball(12, 0, 0, 0), ball(20, 0, 0, 0), ball(15, 16, 0, 0), ball(18, 0, 20, 0)]
    encloses = [(), (0,), (), ()]
    found = placed(meshes, [0.9, 0.8, np.nan, 0.3], encloses)
    assert moves_mm(found, meshes)[:2].max() < 0.3
    found = placed(meshes, [0.5, 0.6, 0.9, 0.9], encloses)
    assert moves_mm(found, meshes)[2:].max() < 2  # the two of them lie in each other too
    assert mesh_volume_ml(found[0], FACES) > 0.2


@pytest.mark.parametrize("doubtful", [ball(6, 3, 0, 0), ball(40, 0, 0, 0) * [1, 1, 0.01]])
def test_one_without_a_place_of_its_own_ends_small_and_clear(doubtful):
    meshes = [ball(20, 0, 0, 0), doubtful]
    found = placed(meshes, [0.9, 0.1])
    assert moves_mm(found, meshes)[0] < 0.3


def test_one_that_is_inside_out_harms_no_other():
    meshes = [ball(20, 0, 0, 0), ball(-20, 14, 0, 0)]
    found = placed(meshes, [0.9, 0.1])
    assert moves_mm(found, meshes)[0] < 0.3
    assert mesh_volume_ml(found[1], FACES) > 0


def test_no_meshes_are_none():
    assert made_way(np.zeros((0, len(SPHERE), 3)), FACES, SPHERE, [], []).shape == (0, len(SPHERE), 3)
