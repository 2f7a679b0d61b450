"""Warnings of results that may be wrong: boxes that cut, images unlike the training's, meshes that are contradicted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from implicitmeshnet.config import QUANTILES, DataConfig
from implicitmeshnet.data.plausibility import (
    check_box,
    intensity_quantiles,
    intensity_statistics,
    intensity_warning,
    intensity_warnings,
    shares_outside,
)
from implicitmeshnet.data.volume import Grid, Volume, box_inside, network_grid
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.metrics import agreement_warning, agreements

CONFIG = DataConfig(structures={"LV": [500], "LA": [420, 421]}, shape=(16, 16, 16), spacing_mm=2.0)


def test_a_structure_half_outside_the_box_has_that_share_and_an_absent_one_none():
    """The box spans -16 mm to 16 mm around the volume's centre; one structure lies half outside it, one is absent."""
    labels = np.zeros((100, 40, 40), np.int32)
    labels[60:72, 15:25, 15:25] = 500
    grid = Grid(labels.shape, np.eye(4))
    target = network_grid(grid, CONFIG.shape, CONFIG.spacing_mm)
    box = box_inside(grid, target)
    assert [part.stop - part.start for part in box] == [33, 33, 33]  # both faces run through centres
    shares = shares_outside(Volume(labels, grid), target, CONFIG)
    assert shares[0] == pytest.approx((72 - box[0].stop) / 12)
    assert np.isnan(shares[1])
    assert shares_outside(Volume(labels, grid), network_grid(grid, (64, 16, 16), 2.0), CONFIG)[0] == 0


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.tuples(*[st.integers(2, 40)] * 3),
    st.tuples(*[st.integers(2, 40)] * 3),
    st.floats(0.4, 5),
    st.tuples(*[st.floats(-60, 60)] * 3),
)
def test_the_voxels_inside_a_box_are_those_whose_centres_are(shape, size, spacing_mm, centre_mm):
    grid = Grid(shape, np.diag([1.0, 1.5, 2.0, 1.0]))
    target = network_grid(grid, size, spacing_mm, np.array(centre_mm))
    inside = np.zeros(shape, dtype=bool)
    inside[box_inside(grid, target)] = True
    voxels = np.stack(np.indices(shape), -1) * [1.0, 1.5, 2.0]
    place = (voxels - target.affine[:3, 3]) / spacing_mm
    clear = (np.abs(np.abs(place + 0.5 - np.array(size) / 2) - np.array(size) / 2) > 1e-4).all(-1)
    wanted = ((place > -0.5) & (place < np.array(size) - 0.5)).all(-1)
    assert (inside == wanted)[clear].all()


def test_a_cut_structure_has_a_line_and_one_that_is_mostly_outside_ends_the_run():
    outside = [[0.0, 0.2], [0.005, np.nan], [0.0, 0.4], [0.0, 0.0]]
    assert check_box(outside, CONFIG) == ["LA: 30% of the label outside the box in 2 of 3 cases"]
    with pytest.raises(InputError, match=r"data\.shape: wanted a box that holds LA, found 91% of its label outside"):
        check_box([[0.0, 0.91], [0.0, np.nan]], CONFIG)
    assert check_box([[0.0, np.nan], [0.0, np.nan]], CONFIG) == []


@pytest.mark.parametrize("cases", [1, 2, 5, 20, 80])
def test_an_image_unlike_the_trainings_is_named(cases):
    rng = np.random.default_rng(0)

    def image():
        return np.clip(rng.normal(rng.normal(0, 0.05), rng.uniform(0.25, 0.35), 5000), -1, 1)

    statistics = intensity_statistics([intensity_quantiles(image()) for _ in range(cases)])
    assert len(statistics.mean) == len(QUANTILES)
    warned = [intensity_warning(image(), statistics) for _ in range(100)]
    assert sum(map(bool, warned)) <= 5
    for wrong in (image() + 0.9, image() - 0.9, 0 * image(), 4 * image(), np.full(9, -1.0)):
        assert "the image is unlike the training's" in intensity_warning(wrong, statistics)
    assert intensity_warnings(image()[None] + 5, DataConfig()) == []  # an older config has no statistics


def test_of_several_channels_the_one_that_is_unlike_the_trainings_is_named():
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.3, (20, 2, 500)) + np.array([[0.5], [-0.5]])
    statistics = [intensity_statistics(list(map(intensity_quantiles, images[:, channel]))) for channel in (0, 1)]
    config = DataConfig(intensity=["window", "percentile"], intensity_statistics=statistics)
    assert intensity_warnings(images[0], config) == []
    (warning,) = intensity_warnings(images[0] + np.array([[0.0], [1.0]]), config)
    assert warning.startswith("channel 1: the image is unlike the training's")


def test_a_box_beside_the_volume_has_intensities_too():
    assert intensity_quantiles(np.zeros(0)) == [-1.0] * len(QUANTILES)


def test_meshes_and_segmentation_that_disagree_are_named():
    labelmap, segmentation = np.zeros((2, 10, 10, 10), np.int16)
    labelmap[:5], segmentation[:5] = 500, 500
    labelmap[6:8], segmentation[7:9] = 420, 420
    agreement = agreements(labelmap, segmentation, {"LV": 500, "LA": 420, "RA": 550})
    assert agreement["LV"] == 1
    assert agreement["LA"] == 0.5
    assert np.isnan(agreement["RA"])
    warning = agreement_warning(agreement)
    assert "LA 0.50, RA nan" in warning
    assert "LV" not in warning
    assert agreement_warning({"LV": 0.9}) is None
