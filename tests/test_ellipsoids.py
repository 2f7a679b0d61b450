"""Ellipsoids of class maps, and the template that they make."""

import numpy as np
import pytest
from meshes import structures_of

from implicitmeshnet.config import DataConfig
from implicitmeshnet.data.ellipsoids import ellipsoids_of, template_statistics
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures


def ellipsoid_classes(shape, centre, radii):
    half = (np.array(shape) - 1) / 2
    points = np.stack(np.indices(shape), -1) / half - 1
    inside = ((points - centre) ** 2 / np.square(radii)).sum(-1) < 1
    return inside.astype(np.uint8)


def test_template_statistics_recover_an_ellipsoid():
    shape, radii = (32, 48, 64), np.array([0.5, 0.4, 0.3])
    found = [ellipsoids_of(ellipsoid_classes(shape, [x, -0.2, 0.3], radii), structures_of(1)) for x in (0.1, 0.3)]
    centres, semi_axes = template_statistics(found, DataConfig(structures={"LV": [1]}))
    assert centres.shape == semi_axes.shape == (1, 3)
    np.testing.assert_allclose(centres, [[0.2, -0.2, 0.3]], atol=0.01)
    np.testing.assert_allclose(semi_axes[0], radii, rtol=0.02)


def test_the_template_of_a_mesh_that_encloses_another_is_that_of_both():
    classes = ellipsoid_classes((32, 32, 32), [0, 0, 0], [0.6, 0.6, 0.6])
    classes += ellipsoid_classes((32, 32, 32), [0, 0, 0], [0.4, 0.4, 0.4])
    config = DataConfig(structures={"Myo": [1], "LV": [2]}, encloses={"Myo": ["LV"]})
    _, radii = template_statistics([ellipsoids_of(classes, Structures.of(config))], config)
    np.testing.assert_allclose(radii, [[0.6] * 3, [0.4] * 3], rtol=0.02)


def test_a_single_voxel_has_a_size():
    classes = np.zeros((9, 9, 9), np.uint8)
    classes[4, 2, 6] = 1
    ((centre, semi_axes),) = ellipsoids_of(classes, structures_of(1))
    np.testing.assert_allclose(centre, [0, -0.5, 0.5])
    np.testing.assert_allclose(semi_axes, np.full(3, np.sqrt(5 / 12) / 4))


def test_cases_without_a_structure_leave_its_mean_to_the_others():
    config = DataConfig(structures={"LV": [1], "LA": [2]})
    lv = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    missing = np.full((2, 3), np.nan)
    centres, radii = template_statistics([np.stack([lv, lv + 1]), np.stack([lv, missing])], config)
    np.testing.assert_array_equal(centres, [lv[0], lv[0] + 1])
    np.testing.assert_array_equal(radii, [lv[1], lv[1] + 1])


def test_template_statistics_need_every_structure():
    config = DataConfig(structures={"LV": [1], "LA": [2]})
    found = ellipsoids_of(ellipsoid_classes((16, 16, 16), [0, 0, 0], [0.5, 0.5, 0.5]), Structures.of(config))
    with pytest.raises(InputError, match="wanted LA in at least one training case, found it in none"):
        template_statistics([found], config)
