"""Random appearance: what is drawn, what stays, and how slices, views and faults come out."""

import math

import numpy as np
import pytest
import torch
from test_tissue_maps import CONFIG
from volumes import write_tissues

from implicitmeshnet.config import Config, Variation, validate
from implicitmeshnet.data import appearance
from implicitmeshnet.data.appearance import Draws, random_appearance, random_overview
from implicitmeshnet.data.dataset import tissue_sample
from implicitmeshnet.data.overview import IGNORED
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures
from implicitmeshnet.tissues import Tissue

KINDS = Variation.__args__
IGNORED_CLASS = Structures.of(CONFIG).ignored_class


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return tissue_sample(write_tissues(tmp_path_factory.mktemp("tissues"), "a"), CONFIG, margin=4)


def draw(sample, seed, without=(), ignored=IGNORED_CLASS):
    generator = torch.Generator().manual_seed(seed)
    return random_appearance(
        sample.image,
        sample.label,
        sample.anatomy,
        CONFIG.shape,
        sample.grid.spacing_mm,
        generator,
        ignored,
        without,
    )


def draw_overview(sample, seed, without=()):
    overview = sample.overview
    generator = torch.Generator().manual_seed(seed)
    return random_overview(
        overview.image, overview.label, overview.anatomy, overview.grid.spacing_mm, generator, IGNORED, without
    )


def draws(seed=0, without=()):
    return Draws(torch.Generator().manual_seed(seed), without)


def test_the_same_seed_draws_the_same_and_another_another(sample):
    first, again, other = draw(sample, 0), draw(sample, 0), draw(sample, 1)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.image, other.image)
    assert not torch.equal(first.label, other.label)
    assert torch.equal(draw_overview(sample, 0).image, draw_overview(sample, 0).image)


@pytest.mark.parametrize("seed", range(8))
def test_outside_the_view_the_image_is_what_the_reader_pads_and_the_label_is_ignored(sample, seed):
    drawn = draw(sample, seed)
    assert drawn.image.shape == (1, *CONFIG.shape)
    assert drawn.image.isfinite().all()
    assert drawn.image.abs().max() <= 1
    inside = torch.zeros(CONFIG.shape, dtype=torch.bool)
    inside[drawn.view] = True
    assert (drawn.image[0][~inside] == -1).all()
    assert (drawn.label[~inside] == IGNORED_CLASS).all()
    assert drawn.label.max() <= IGNORED_CLASS
    if inside.any() and not inside.all():
        background = draw(sample, seed, ignored=None).label
        assert (background[~inside] == 0).all()


def test_views_end_in_the_heart_and_lie_around_what_they_show_of_it(sample):
    shapes = set()
    apart = []
    for seed in range(40):
        drawn = draw(sample, seed)
        shapes.add(drawn.image[0][drawn.view].shape)
        heart = (drawn.label > 0) & (drawn.label < IGNORED_CLASS)
        if heart.any():
            apart.append((heart.nonzero().double().mean(0) - 7.5).norm())
    assert len(shapes) > 10
    assert np.median(apart) < 2.5  # voxels of 8 mm
    whole = draw(sample, 3, without=["view"])
    assert whole.image[0][whole.view].shape == CONFIG.shape


def test_with_all_left_out_tissues_are_as_bright_as_in_a_contrast_ct(sample):
    for seed in range(3):
        drawn = draw(sample, seed, without=KINDS)
        left, right, muscle = (float(drawn.image[0][drawn.label == value].mean()) for value in (1, 2, 4))
        assert left > max(right, muscle) + 0.1


def test_contrasts_are_free_and_often_tied():
    tables = torch.stack([appearance.contrasts(draws(seed))[0] for seed in range(200)])
    assert tables.isfinite().all()
    darker = (tables[:, Tissue.LV] < tables[:, Tissue.MYOCARDIUM]).float().mean()
    assert 0.1 < darker < 0.4
    apart = (tables[:, Tissue.LV] - tables[:, Tissue.RV]).abs()
    assert 0.25 < (apart < 0.15).float().mean() < 0.8
    liver = torch.corrcoef(torch.stack([tables[:, Tissue.LIVER], tables[:, Tissue.LV]]))[0, 1]
    assert abs(liver) < 0.25
    assert (tables[:, Tissue.AIR] < 0.2).float().mean() > 0.8
    fixed = [appearance.contrasts(draws(seed, KINDS)) for seed in range(2)]
    assert torch.equal(fixed[0], fixed[1])
    assert (fixed[0][1:] == 0).all()


def test_painted_brightness_is_the_mean_over_a_voxels_tissues():
    parts = torch.zeros(8, 1, 1, 2, dtype=torch.uint8)
    parts[0], parts[1] = 4, 20
    parts[4, ..., 0], parts[5, ..., 0] = 153, 102  # of 255
    parts[4, ..., 1] = 255
    table = torch.zeros(3, len(Tissue))
    table[:, 4] = torch.tensor([0.5, 0.1, 0.2])
    table[0, 20] = 1.0
    painted = appearance._paint(parts, table)
    torch.testing.assert_close(painted[:, 0, 0, 0], torch.tensor([0.7, 0.1, 0.2]))
    torch.testing.assert_close(painted[:, 0, 0, 1], torch.tensor([0.5, 0.1, 0.2]))


@pytest.mark.parametrize(("thickness", "apart"), [(5.0, 5.0), (8.0, 10.0), (10.0, 10.0)])
def test_a_slice_has_a_profile_of_its_thickness_and_ramps_stay(thickness, apart):
    line = appearance._line(64, 2.6, thickness, apart, -math.inf, math.inf, draws(), is_thick=True)
    places = (torch.arange(64) - 31.5) * 2.6
    torch.testing.assert_close(line.down.sum(1), torch.ones(len(line.down)))
    torch.testing.assert_close(line.up.sum(1), torch.ones(64))
    ramp = line.up @ (line.down @ places)
    torch.testing.assert_close(ramp[10:-10], places[10:-10], atol=0.05, rtol=0)
    middle = line.down[len(line.down) // 2]
    centre = (middle * places).sum()
    sd = (middle * (places - centre).square()).sum().sqrt()
    wanted = math.sqrt(thickness**2 - 2.6**2) / 2.355  # the voxels' own width makes up the rest
    assert float(sd) == pytest.approx(wanted, rel=0.05)


def test_fine_slices_are_the_voxels():
    line = appearance._line(64, 2.6, 1.0, 1.0, -20.0, 20.0, draws(), is_thick=False)
    assert line.down is None
    assert line.up is None
    assert line.inside.stop - line.inside.start == pytest.approx(40 / 2.6, abs=1)


def test_slices_move_by_themselves():
    image = torch.zeros(6, 12, 12)
    image[:, 5:7, 5:7] = 1
    turned = image.movedim(0, 1)
    moved = appearance._slices_moved(draws(3), turned, 1).movedim(1, 0)
    assert moved.shape == image.shape
    kinds = {tuple(plane.flatten().tolist()) for plane in moved}
    assert len(kinds) == 6
    assert moved.sum((1, 2)).allclose(image.sum((1, 2)), atol=0.01)


def test_a_slice_may_be_lost():
    changed = set()
    for seed in range(20):
        image = torch.arange(1.0, 7).repeat(4, 4, 1)
        appearance._lose_slice(draws(seed), image, 2)
        lost = (image[0, 0] != torch.arange(1.0, 7)).nonzero().flatten()
        assert len(lost) == 1
        changed.add(float(image[0, 0, lost]) == 0)
    assert changed == {True, False}


def test_noise_is_gaussian_or_as_a_magnitude_is():
    lowest = []
    for seed in range(30):
        drawn = draws(seed)
        noisy = appearance._with_noise(drawn, torch.zeros(8, 8, 8), 2.6, torch.Generator().manual_seed(seed))
        coarse = appearance._with_noise(draws(seed), torch.zeros(8, 8, 8), 8.0, torch.Generator().manual_seed(seed))
        assert coarse.std() < 0.3 * noisy.std()
        lowest.append(bool((noisy < 0).any()))
    assert 0 < sum(lowest) < 30
    assert appearance._with_noise(draws(0, ["noise"]), torch.zeros(2, 2, 2), 2.6, torch.Generator()).sum() == 0


def test_scars_are_in_muscle_alone():
    tissue = torch.full((16, 16, 16), int(Tissue.LV), dtype=torch.uint8)
    tissue[:8] = int(Tissue.MYOCARDIUM)
    bright = torch.full((16, 16, 16), 7.0)
    appearance._add_scars(draws(), bright, tissue, torch.Generator().manual_seed(0))
    share = (bright[:8] != 7).float().mean()
    assert 0.02 < share < 0.5
    assert (bright[8:] == 7).all()


def test_short_axis_slices_lie_across_the_left_ventricle(sample):
    poses = [appearance._pose(draws(seed), sample.anatomy) for seed in range(200)]
    shorts = [pose for pose in poses if pose.short_axis]
    assert 0.15 < len(shorts) / 200 < 0.35
    ends = set()
    hands = set()
    for pose in shorts:
        apex = pose.places(sample.anatomy.axes[:, 2])
        assert abs(apex[pose.slices]) / np.linalg.norm(apex) > 0.6
        ends.add(np.sign(apex[pose.slices]))
        hands.add(np.sign(np.linalg.det(pose.matrix)))
    assert ends == hands == {-1, 1}
    for seed in range(50):
        pose = appearance._pose(draws(seed, ["orientation"]), sample.anatomy)
        turn = pose.matrix / np.cbrt(np.linalg.det(pose.matrix))
        assert np.trace(turn) > 2.6  # 15 degrees about each axis
        assert not pose.short_axis


def test_a_stack_with_its_direction_is_turned_to_the_patient_as_a_reader_does():
    along = np.array([-0.74, 0.5, -0.45])  # of a usual heart's apex
    along /= np.linalg.norm(along)
    across = np.cross(along, [0, 0, 1.0])
    across /= np.linalg.norm(across)
    stack = np.stack([np.cross(along, across), across, along], 1)
    turned, axis = appearance._nearest_to_patient(stack)
    assert axis == 0
    np.testing.assert_allclose(turned[:, 0], -along)
    assert (np.abs(turned).argmax(0) == range(3)).all()
    assert (np.diag(turned) > 0).all()


def test_views_of_one_structure_are_often_of_the_left_atrium(sample):
    pose = appearance.Pose(np.eye(3), None)
    low, high = pose.boxes(sample.anatomy)
    counts = np.zeros(len(low))
    for seed in range(400):
        view = appearance._view(draws(seed), pose, sample.anatomy)
        below = (view.low <= low) & (view.low >= low - 30)  # (S, 3)
        above = (view.high >= high) & (view.high <= high + 30)
        counts += (below & above).all(1)
    names = np.array(list(CONFIG.structures))
    assert 25 < counts[names == "LA"] < 70
    assert (counts[names == "RV"] < 0.7 * counts[names == "LA"]).all()


def test_an_overview_shows_its_view_alone(sample):
    sizes = set()
    for seed in range(20):
        drawn = draw_overview(sample, seed)
        assert drawn.image.shape[1:] == drawn.label.shape
        assert min(drawn.label.shape) >= 3
        assert drawn.label.max() <= IGNORED
        sizes.add(drawn.label.shape)
    assert len(sizes) > 5
    whole = draw_overview(sample, 0, without=["view"])
    assert whole.label.shape == sample.overview.label.shape


def test_random_appearance_needs_percentiles_and_one_channel():
    for intensity in ("window", ["percentile", "percentile"]):
        config = Config()
        config.data.intensity = intensity
        config.training.appearance = "random"
        with pytest.raises(InputError, match=r"training\.appearance: wanted 'image', or beside 'random'"):
            validate(config)
