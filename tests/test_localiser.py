"""The coarse pass: overviews of any volume, the region that is found in them, and a localiser that learns to find."""

from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from volumes import ball_mask, block_mask, write_case

from implicitmeshnet.config import Config, DataConfig
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import standardise, training_sample
from implicitmeshnet.data.nifti import read_image
from implicitmeshnet.data.overview import IGNORED, label_centre_mm, mask_centre_mm, overview_of
from implicitmeshnet.data.volume import Grid, Volume, canonical
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.localiser import Found, Localiser, parts_that_belong
from implicitmeshnet.models.mesh_net import Prediction
from implicitmeshnet.predict import NothingFound, Predictor
from implicitmeshnet.script import InputError

AFFINE = np.array([[0, 0, -2.0, 40], [1.5, 0, 0, -90], [0, 1.5, 0, 12], [0, 0, 0, 1]])
CONFIG = DataConfig(
    structures={"LV": [500]}, region="found", shape=(16, 16, 16), spacing_mm=3.0, overview_spacing_mm=6.0
)


def ball_volume(centre=(90, 40, 20), shape=(120, 80, 50), radius=9):
    """A bright ball on noise, its label, and the world position of its centre."""
    label = ball_mask(shape, centre, radius).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 50, shape)
    return (noise + 400 * label).astype(np.float32), 500 * label, transform(AFFINE, np.array(centre, dtype=float))


def test_an_overview_spans_the_volume_and_keeps_the_label_in_place():
    image, label, centre = ball_volume()
    volumes = [canonical(Volume(data, Grid(data.shape, AFFINE))) for data in (image, label)]
    overview = overview_of(*volumes, CONFIG)
    assert overview.image.shape == (1, 17, 30, 20)
    assert overview.label.shape == overview.grid.shape == (17, 30, 20)
    np.testing.assert_allclose(overview.grid.spacing_mm, 6)
    corners = transform(np.linalg.inv(overview.grid.affine), transform(AFFINE, np.array([[0, 0, 0], [119, 79, 49.0]])))
    assert (corners > -1).all()
    assert (corners < overview.grid.shape).all()
    np.testing.assert_allclose(mask_centre_mm(overview.label.numpy(), overview.grid, CONFIG), centre, atol=1)


@pytest.mark.parametrize("thickness", [2, 3, 7])
def test_an_overview_of_a_thin_slab_shows_it(thickness):
    data = np.ones((40, 40, thickness))
    slab = Volume(data, Grid(data.shape, np.eye(4)))
    config = replace(CONFIG, structures={"LV": [1]}, overview_spacing_mm=8.0)
    overview = overview_of(slab, Volume(data.astype(np.int32), slab.grid), config)
    assert overview.image.max() == 1
    middle = transform(overview.grid.affine, overview.label.nonzero().double().mean(0).numpy())
    assert abs(middle[2] - (thickness - 1) / 2) <= 3


def test_an_overview_beyond_all_measure_is_refused(case):
    with pytest.raises(InputError, match=r"a_image\.nii\.gz: data\.overview_spacing_mm: wanted an overview of at most"):
        training_sample(case, replace(CONFIG, overview_spacing_mm=0.05))


def test_what_is_ignored_has_a_class_of_its_own_in_an_overview():
    labels = np.zeros((60, 24, 24), np.int32)
    labels[12:24] = 1
    labels[24:48] = 9
    grid = Grid(labels.shape, np.eye(4))
    volumes = [Volume(labels.astype(np.float32), grid), Volume(labels, grid)]
    config = replace(CONFIG, structures={"LV": [1]}, ignore=[9])
    assert overview_of(*volumes, config).label[:, 2, 2].tolist() == [
        0,
        0,
        1,
        1,
        IGNORED,
        IGNORED,
        IGNORED,
        IGNORED,
        0,
        0,
    ]
    counted = overview_of(*volumes, replace(config, ignore=[]))
    assert set(counted.label.unique().tolist()) == {0, 1}


@settings(max_examples=30, derandomize=True, deadline=None)
@given(st.tuples(*[st.integers(20, 34)] * 3), st.integers(2, 12), st.booleans())
def test_a_structure_of_any_size_shows_wherever_it_lies_between_voxels(corner, side_mm, beside_another):
    """12 mm at 8 mm and smaller, alone or beside a large one."""
    labels = np.zeros((64, 64, 64), np.int32)
    labels[block_mask(labels.shape, corner, np.add(corner, side_mm))] = 1
    if beside_another:
        labels[:, :, 50:] = 2
    grid = Grid(labels.shape, np.eye(4))
    config = replace(CONFIG, structures={"small": [1], "large": [2]}, overview_spacing_mm=8.0)
    overview = overview_of(Volume(np.zeros(grid.shape, np.float32), grid), Volume(labels, grid), config)
    near = overview.label.numpy()[..., :6]
    assert 1 <= near.sum() <= 8 + 0.1 * side_mm**3
    middle = transform(overview.grid.affine, np.argwhere(near).mean(0))
    assert np.abs(middle - np.add(corner, (side_mm - 1) / 2)).max() <= 4.5


def cubes(shape, *corners, side=10):
    """A mask of cubes by their first corners."""
    masks = [block_mask(shape, corner, np.add(corner, side)) for corner in corners]
    return np.any(masks, axis=0) if masks else np.zeros(shape, dtype=bool)


@pytest.mark.parametrize("values", [[500, 500], [500, 420], [420, 500]])
def test_the_box_lies_around_a_pair_of_organs(values):
    """40 mm apart, in a box of 60 mm that holds both; not around the larger one alone."""
    labels = 0 * cubes((100, 60, 60)).astype(np.int32)
    labels[cubes(labels.shape, (20, 25, 25))] = values[0]
    labels[cubes(labels.shape, (62, 25, 25), side=8)] = values[1]
    config = replace(CONFIG, structures={"LV": [500], "LA": [420]}, shape=(20, 20, 20), spacing_mm=3.0)
    grid = Grid(labels.shape, np.eye(4))
    centre = label_centre_mm(Volume(labels, grid), config)
    assert 70 - 30.5 <= centre[0] <= 19.5 + 30
    np.testing.assert_allclose(centre, mask_centre_mm(labels > 0, grid, config), atol=1e-6)
    assert np.abs(centre[1:] - 29).max() < 1


def test_stray_voxels_do_not_move_the_box_off_the_structure():
    labels = cubes((200, 60, 60), (20, 25, 25)).astype(np.int32) * 500
    labels[190, 5, 5] = 500
    centre = label_centre_mm(Volume(labels, Grid(labels.shape, np.eye(4))), CONFIG)
    assert np.abs(centre - [24.5, 29.5, 29.5]).max() < 5
    assert label_centre_mm(Volume(0 * labels, Grid(labels.shape, np.eye(4))), CONFIG) is None


def test_a_larger_organ_that_touches_is_cut_off():
    """A heart of certain voxels, and a liver of more and less certain ones that reaches it."""
    index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1)
    heart, liver = (
        radius - np.linalg.norm(index - centre, axis=-1) for radius, centre in ((7, (20, 20, 26)), (10, (26, 19, 10)))
    )
    odds = np.maximum(np.minimum(2 * heart, 8), np.minimum(liver, 1.2)).astype(np.float32)
    assert ndimage.label(odds > 0)[1] == 1
    assert (liver > 0).sum() > 2 * (heart > 0).sum()
    found = parts_that_belong(odds, (40, 40, 40))
    np.testing.assert_allclose(np.argwhere(found.structures).mean(0), [20, 20, 26], atol=0.7)
    assert not parts_that_belong(np.full((5, 5, 5), -1.0), (5, 5, 5)).structures.any()
    speck = np.full((9, 9, 9), -1.0)
    speck[4, 4, 4] = 0.1
    assert parts_that_belong(speck, (9, 9, 9)).structures.nonzero() == (4, 4, 4)


def test_a_larger_organ_far_away_is_no_rival_if_it_is_less_like_the_structures():
    odds = np.full((60, 30, 30), -5.0, np.float32)
    heart = cubes(odds.shape, (8, 12, 12), side=5)
    liver = cubes(odds.shape, (45, 12, 12), side=8)
    odds[heart] = 5
    odds[liver] = 2.5
    assert odds[liver].sum() > 2 * odds[heart].sum()
    found = parts_that_belong(odds, (22, 22, 22))
    np.testing.assert_array_equal(found.structures, heart)
    np.testing.assert_array_equal(found.rival, liver)
    odds[heart] = -5
    odds[cubes(odds.shape, (8, 12, 12), side=3)] = 8  # a speck, however certain, is none
    found = parts_that_belong(odds, (22, 22, 22))
    np.testing.assert_array_equal(found.structures, liver)
    assert not found.rival.any()


def test_a_second_organ_that_fits_into_the_box_belongs_and_specks_and_far_ones_do_not():
    odds = np.full((60, 30, 30), -5.0, np.float32)
    first, second, far = ((x, 12, 12) for x in (5, 20, 50))
    odds[cubes(odds.shape, first, side=6)] = 6
    odds[cubes(odds.shape, second, side=5)] = 5
    odds[cubes(odds.shape, far, side=5)] = 4
    odds[cubes(odds.shape, (12, 2, 2), side=1)] = 2
    both = cubes(odds.shape, first, side=6) | cubes(odds.shape, second, side=5)
    np.testing.assert_array_equal(parts_that_belong(odds, (22, 22, 22)).rival, cubes(odds.shape, far, side=5))
    np.testing.assert_array_equal(parts_that_belong(odds, (22, 22, 22)).structures, both)
    alone = cubes(odds.shape, first, side=6)
    np.testing.assert_array_equal(parts_that_belong(odds, (14, 14, 14)).structures, alone)


@pytest.fixture
def case(tmp_path):
    image, label, _ = ball_volume()
    return write_case(tmp_path, "a", image, label, AFFINE)


def test_a_case_is_cut_around_its_label(case):
    *_, centre = ball_volume()
    sample = training_sample(case, CONFIG)
    np.testing.assert_allclose(sample.grid.world_from_normalised[:3, 3], centre, atol=2)
    assert sample.label.sum() * 27 == pytest.approx(np.pi * 4 / 3 * 9**3 * 4.5, rel=0.1)


def test_the_papers_crop_stays_at_the_volumes_centre(case):
    sample = training_sample(case, DataConfig(structures={"LV": [500]}, shape=(16, 16, 16), spacing_mm=3.0))
    middle = transform(AFFINE, (np.array(nib.load(case.image).shape) - 1) / 2)
    np.testing.assert_allclose(sample.grid.world_from_normalised[:3, 3], middle, atol=2)
    assert sample.overview is None


class StandIn(torch.nn.Module):
    """A network whose coarse pass finds a given mask, and whose meshes are balls in the middle of its box."""

    def __init__(self, config, find):
        super().__init__()
        sphere, faces = icosphere(2)
        self.config = config
        self.decoder = SimpleNamespace(faces=faces, template=sphere[None])
        self.localiser = SimpleNamespace(find=find)
        self.vertices = 0.5 * sphere

    def forward(self, image):
        count = len(self.config.structures)
        vertices = self.vertices.expand(1, count, -1, -1)
        return Prediction([vertices], torch.zeros(1, count + 1, *image.shape[2:]))


def test_the_evaluation_looks_where_the_coarse_pass_finds_something(case):
    *_, centre = ball_volume()
    config = Config(data=CONFIG)
    image = read_image(case.image)
    overview = overview_of(standardise(image, CONFIG), None, CONFIG)
    index = np.round(transform(np.linalg.inv(overview.grid.affine), centre)).astype(int)
    mask = np.zeros(overview.grid.shape, dtype=bool)
    mask[tuple(index)] = True
    nothing = np.zeros_like(mask)
    surfaces = Predictor(StandIn(CONFIG, lambda seen, room: Found(mask, nothing)), config)(image)
    assert np.linalg.norm(surfaces.vertices[0].mean(0) - centre) < 6
    assert not any("two places" in warning for warning in surfaces.warnings)
    rival = np.zeros_like(mask)
    rival[0, 0, 0] = True
    told = Predictor(StandIn(CONFIG, lambda seen, room: Found(mask, rival)), config)(image).warnings
    assert any("a_image.nii.gz: the coarse pass finds the structures in two places; took the" in line for line in told)
    empty = Predictor(StandIn(CONFIG, lambda seen, room: Found(nothing, nothing)), config)
    with pytest.raises(NothingFound, match=r"a_image\.nii\.gz: wanted an image that shows LV at .*, found none"):
        empty(image)


@pytest.mark.slow
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
        return overview_of(*volumes, CONFIG), centre

    for _ in range(60):
        shown, _ = overview()
        loss = F.cross_entropy(localiser(shown.image[None]), shown.label[None].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    localiser.eval()
    for _ in range(3):
        shown, centre = overview()
        found = mask_centre_mm(localiser.find(shown.image, (8, 8, 8)).structures, shown.grid, CONFIG)
        assert np.linalg.norm(found - centre) < 12  # two voxels, of a volume of 30


def test_where_background_is_likelier_everywhere_nothing_is_found():
    localiser = Localiser((4, 8))
    with torch.no_grad():
        localiser.unet.head.weight.zero_()
        localiser.unet.head.bias.copy_(torch.tensor([1.0, -1.0]))
    found = localiser.find(torch.zeros(1, 12, 12, 12), (12, 12, 12))
    assert not found.structures.any()
    assert not found.rival.any()
