"""The coarse pass: overviews of any volume, the region that is found in them, and a localiser that learns to find."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform
from implicitmeshnet.dataset import Case, prepare_case
from implicitmeshnet.io import InputError
from implicitmeshnet.localise import Localiser, Overview, centre_mm, locate, overview_of, strongest_basin
from implicitmeshnet.volume import Grid, Volume, canonical, write_volume

AFFINE = np.array([[0, 0, -2.0, 40], [1.5, 0, 0, -90], [0, 1.5, 0, 12], [0, 0, 0, 1]])
CONFIG = DataConfig(structures={"LV": [500]}, region="found", shape=(16, 16, 16), spacing_mm=3.0,
                    overview_spacing_mm=6.0)


def ball_volume(centre=(90, 40, 20), shape=(120, 80, 50), radius=9):
    """A bright ball on noise, its label, and the world position of its centre."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    label = (((index - centre) ** 2).sum(-1) < radius**2).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 50, shape)
    return (noise + 400 * label).astype(np.float32), 500 * label, transform(AFFINE, np.array(centre, dtype=float))


def test_an_overview_spans_the_volume_and_keeps_the_label_in_place():
    image, label, centre = ball_volume()
    volumes = [canonical(Volume(data, Grid(data.shape, AFFINE))) for data in (image, label)]
    overview = overview_of(*volumes, 6.0, [500])
    assert overview.image.shape == overview.label.shape == overview.grid.shape == (17, 30, 20)
    np.testing.assert_allclose(overview.grid.spacing_mm, 6)
    corners = transform(np.linalg.inv(overview.grid.affine), transform(AFFINE, np.array([[0, 0, 0], [119, 79, 49.0]])))
    assert (corners > -1).all()
    assert (corners < overview.grid.shape).all()
    np.testing.assert_allclose(centre_mm(overview.label.numpy(), overview.grid), centre, atol=1)


@pytest.mark.parametrize("thickness", [2, 3, 7])
def test_an_overview_of_a_thin_slab_shows_it(thickness):
    data = np.ones((40, 40, thickness))
    slab = Volume(data, Grid(data.shape, np.eye(4)))
    overview = overview_of(slab, Volume(data.astype(np.int32), slab.grid), 8.0, [1])
    assert overview.image.max() == 1
    assert abs(centre_mm(overview.label.numpy(), overview.grid)[2] - (thickness - 1) / 2) <= 3


def test_an_overview_beyond_all_measure_is_refused(case):
    with pytest.raises(InputError, match=r"a_image\.nii\.gz: data\.overview_spacing_mm: wanted an overview of at most"):
        prepare_case(case, replace(CONFIG, overview_spacing_mm=0.05))


def test_a_label_too_thin_for_the_overview_is_named(case):
    with pytest.raises(InputError, match=r"a_label\.nii\.gz: wanted a label that shows LV at data\.overview_spacing"):
        prepare_case(case, replace(CONFIG, overview_spacing_mm=60.0))


def test_the_centre_is_the_largest_parts():
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[2:5, 2:5, 2:5] = mask[10:14, 10:14, 10:14] = True
    np.testing.assert_allclose(centre_mm(mask, Grid(mask.shape, np.diag([2, 2, 2, 1.0]))), [23, 23, 23])
    assert centre_mm(np.zeros_like(mask), Grid(mask.shape, np.eye(4))) is None


def test_a_larger_organ_that_touches_is_cut_off():
    """A heart of certain voxels, and a liver of more and less certain ones that reaches it."""
    index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1)
    heart, liver = (radius - np.linalg.norm(index - centre, axis=-1) for radius, centre in
                    ((7, (20, 20, 26)), (10, (26, 19, 10))))
    odds = np.maximum(np.minimum(2 * heart, 8), np.minimum(liver, 1.2)).astype(np.float32)
    assert ndimage.label(odds > 0)[1] == 1
    assert (liver > 0).sum() > 2 * (heart > 0).sum()
    basin = strongest_basin(odds)
    np.testing.assert_allclose(np.argwhere(basin).mean(0), [20, 20, 26], atol=0.7)
    assert not strongest_basin(np.full((5, 5, 5), -1.0)).any()
    speck = np.full((9, 9, 9), -1.0)
    speck[4, 4, 4] = 0.1
    assert strongest_basin(speck).nonzero() == (4, 4, 4)


@pytest.fixture
def case(tmp_path):
    image, label, _ = ball_volume()
    write_volume(tmp_path / "a_image.nii.gz", image, AFFINE)
    write_volume(tmp_path / "a_label.nii.gz", label, AFFINE)
    return Case("a", tmp_path / "a_image.nii.gz", tmp_path / "a_label.nii.gz")


def test_a_case_is_cut_around_its_label_or_around_what_is_found(case):
    *_, centre = ball_volume()
    around_label = prepare_case(case, CONFIG)
    np.testing.assert_allclose(around_label.grid.world_from_normalised[:3, 3], centre, atol=2)
    assert around_label.label.sum() * 27 == pytest.approx(np.pi * 4 / 3 * 9**3 * 4.5, rel=0.1)
    found = prepare_case(Case("a", case.image, None), CONFIG, locate=lambda overview: centre + np.array([0, 12, 0]))
    np.testing.assert_allclose(found.grid.affine[:3, 3] - around_label.grid.affine[:3, 3], [0, 12, 0], atol=1.6)
    assert found.overview.label is None


def test_the_papers_crop_stays_at_the_volumes_centre(case):
    sample = prepare_case(case, DataConfig(structures={"LV": [500]}, shape=(16, 16, 16), spacing_mm=3.0))
    middle = transform(AFFINE, (np.array(nib.load(case.image).shape) - 1) / 2)
    np.testing.assert_allclose(sample.grid.world_from_normalised[:3, 3], middle, atol=2)
    assert sample.overview is None


def test_nothing_found_is_one_sentence_that_names_the_image(case):
    with pytest.raises(InputError, match=r"a_image\.nii\.gz: wanted an image that shows LV at .*, found none of them"):
        prepare_case(case, CONFIG, locate=lambda overview: None)


def test_a_localiser_takes_any_size_and_learns_to_find():
    torch.manual_seed(0)
    localiser = Localiser((4, 8, 8))
    assert localiser(torch.randn(1, 1, 5, 30, 13)).shape == (1, 2, 5, 30, 13)
    seen = []
    localiser.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2:]))
    localiser(torch.randn(1, 1, 5, 30, 13))
    assert seen == [(12, 32, 16)]  # at least three voxels at the bottleneck
    optimizer = torch.optim.Adam(localiser.parameters(), 0.02)
    generator = np.random.default_rng(1)

    def overview():
        image, label, centre = ball_volume(generator.integers((15, 15, 15), (105, 65, 35)))
        volumes = [canonical(Volume(data, Grid(data.shape, AFFINE))) for data in (image / 400, label)]
        return overview_of(*volumes, 6.0, [500]), centre

    for _ in range(60):
        shown, _ = overview()
        loss = F.cross_entropy(localiser(shown.image[None, None]), shown.label[None].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    localiser.eval()
    for _ in range(3):
        shown, centre = overview()
        assert np.linalg.norm(locate(localiser, shown, "cpu") - centre) < 12  # two voxels, of a volume of 30


def test_where_background_is_likelier_everywhere_nothing_is_found():
    overview = Overview(torch.zeros(12, 12, 12), None, Grid((12, 12, 12), np.eye(4)))
    assert locate(lambda image: torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1).expand(-1, -1, 12, 12, 12), overview,
                  "cpu") is None
