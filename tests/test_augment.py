import numpy as np
import pytest
import torch
import torch.nn.functional as F

import implicitmeshnet.data.augment as module
from implicitmeshnet.data.augment import augment, orientations
from implicitmeshnet.data.ellipsoids import turned_ellipsoids

SHAPE, MARGIN = (24, 16, 20), 3
SPACING_MM = (1.5, 1.5, 1.5)
PADDED = tuple(n + 2 * MARGIN for n in SHAPE)


def sample():
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, *PADDED, generator=generator) * 2 - 1
    label = torch.zeros(PADDED, dtype=torch.uint8)
    label[8:20, 7:14, 8:18], label[10:14, 9:12, 10:14] = 1, 2
    return image, label


def test_augmented_samples_have_the_shape_and_labels_asked_for_and_follow_the_seed():
    image, label = sample()
    first = augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))
    again = augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))
    other = augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(1))
    assert first[0].shape == (1, *SHAPE)
    assert first[1].shape == SHAPE
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert set(first[1].unique().tolist()) <= {0, 1, 2}


def test_with_every_strength_zero_it_is_the_central_crop(monkeypatch):
    for name in ("ROTATION_RAD", "SCALE", "SHEAR", "TRANSLATION", "DEFORMATION", "GAIN", "OFFSET", "GAMMA", "NOISE"):
        monkeypatch.setattr(module, name, 0.0)
    image, label = sample()
    warped, moved = augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))
    inner = tuple(slice(MARGIN, -MARGIN) for _ in SHAPE)
    torch.testing.assert_close(warped[0], image[0][inner], atol=1e-4, rtol=0)
    assert torch.equal(moved, label[inner].long())


def test_channels_are_warped_alike_and_change_their_intensities_each_by_itself(monkeypatch):
    image, label = sample()
    both = torch.cat([image, image])
    first, second = augment(both, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))[0]
    assert torch.equal(first, augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))[0][0])
    assert not torch.equal(first, second)
    for name in ("GAIN", "OFFSET", "GAMMA", "NOISE"):
        monkeypatch.setattr(module, name, 0.0)
    first, second = augment(both, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))[0]
    assert torch.equal(first, second)


def test_what_is_ignored_moves_with_its_surroundings():
    image, label = sample()
    warped = augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))[1]
    label[label == 2] = 3
    ignored = augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))[1]
    assert (warped == 2).any()
    assert torch.equal(ignored == 3, warped == 2)


def test_image_and_label_move_together(monkeypatch):
    for name in ("GAIN", "OFFSET", "GAMMA", "NOISE"):
        monkeypatch.setattr(module, name, 0.0)
    _, label = sample()
    image = (label > 0).float()[None] * 2 - 1
    warped, moved = augment(image, label, SHAPE, SPACING_MM, torch.Generator().manual_seed(3))
    agreement = ((warped[0] > 0) == (moved > 0)).float().mean().item()
    assert agreement > 0.99
    assert not torch.equal(moved, label[tuple(slice(MARGIN, -MARGIN) for _ in SHAPE)].long())


def test_the_warp_keeps_volumes_within_its_strength():
    _, label = sample()
    volumes = [
        (augment(torch.zeros(1, *PADDED), label, SHAPE, SPACING_MM, torch.Generator().manual_seed(seed))[1] > 0)
        .sum()
        .item()
        for seed in range(20)
    ]
    assert sum(volumes) / len(volumes) == pytest.approx((label > 0).sum().item(), rel=0.25)


def test_a_turn_keeps_a_ball_round_in_mm_where_slices_are_thick(monkeypatch):
    for name in ("SCALE", "SHEAR", "TRANSLATION", "DEFORMATION", "GAIN", "OFFSET", "GAMMA", "NOISE"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "ROTATION_RAD", 1.0)
    shape, spacing_mm = (41, 41, 11), (1.0, 1.0, 4.0)
    axes = [torch.arange(size) - (size - 1) / 2 for size in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    from_centre_mm = (index * torch.tensor(spacing_mm)).norm(dim=-1)
    ball = (from_centre_mm < 12).to(torch.uint8)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        _, moved = augment(torch.zeros(1, *shape), ball, shape, spacing_mm, generator)
        assert from_centre_mm[moved > 0].max() < 14
        assert moved.sum().item() == pytest.approx(ball.sum().item(), rel=0.05)


def scattered(count):
    """Three labels, 3 of them as if ignored, and places (3, N) in and beside their volume."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (7, 5, 6), generator=generator).to(torch.uint8)
    return label, torch.rand(3, count, 1, 1, generator=generator) * 2.6 - 1.3


def test_labels_are_those_that_interpolated_indicators_give_beyond_the_border_too():
    label, grid = scattered(4000)
    indicators = torch.stack([label == value for value in range(4)]).double()
    points = grid.double().movedim(0, -1)[None]
    shares = F.grid_sample(indicators[None], points, mode="bilinear", padding_mode="border", align_corners=True)[0]
    first, second = shares.topk(2, 0).values
    clear = first - second > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(module.warp_label(label, grid)[clear], shares.argmax(0)[clear])


def test_labels_are_the_same_whether_or_not_places_within_one_label_are_left_out():
    label, grid = scattered(1000)
    label[:4] = 2
    corner, fractions = module._cells(label.shape, grid)
    everywhere = module._heaviest_of_corners(label.flatten(), label.shape, corner, fractions)
    assert torch.equal(module.warp_label(label, grid).flatten(), everywhere.long())


def test_half_way_between_labels_the_smallest_wins():
    label = torch.tensor([2, 1, 3], dtype=torch.uint8).view(1, 1, 3).expand(2, 2, 3)
    along = torch.linspace(-1, 1, 5).expand(2, 2, 5)
    grid = torch.stack([along, torch.zeros_like(along), torch.zeros_like(along)])
    assert torch.equal(module.warp_label(label, grid)[0, 0], torch.tensor([2, 1, 1, 1, 3]))
    weights = torch.tensor([[0.25], [0.25], [0.25], [0.25]])
    assert module._heaviest(torch.tensor([[5], [4], [5], [4]]), weights) == 4


def test_it_draws_as_many_numbers_of_the_generator_for_a_large_volume_as_for_a_small_one():
    image, label = sample()
    states = []
    for shape in (SHAPE, (12, 12, 12)):
        generator = torch.Generator().manual_seed(0)
        augment(image, label, shape, SPACING_MM, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_a_volume_in_half_precision_is_changed_as_the_same_numbers_in_single():
    image, label = sample()
    half = augment(image.half(), label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))[0]
    single = augment(image.half().float(), label, SHAPE, SPACING_MM, torch.Generator().manual_seed(0))[0]
    assert half.dtype == torch.float32
    assert torch.equal(half, single)


def test_what_runs_on_the_device_asks_for_no_number_from_it():
    """The meta device has none to give."""
    image, label = (volume.to("meta") for volume in sample())
    grid = module.between_control_points(torch.zeros(3, 5, 5, 5, device="meta"), SHAPE)
    assert module.warp_label(label, grid).shape == SHAPE
    assert module._change_intensity(image[0], torch.Generator(), None).shape == PADDED


@pytest.mark.parametrize(
    ("shape", "spacing", "count"),
    [
        ((64, 64, 64), (2.6, 2.6, 2.6), 48),
        ((96, 88, 24), (1.5, 1.5, 6), 16),
        ((104, 72, 40), (1.5, 1.5, 1.5), 8),
        ((60, 60, 60), (1, 1, 1.2), 16),
    ],
)
def test_axes_that_are_alike_change_places_and_all_are_flipped(shape, spacing, count):
    turns = orientations(shape, spacing)
    assert len(turns) == len(np.unique(turns, axis=0)) == count
    np.testing.assert_array_equal(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape))


def test_in_any_orientation_a_side_is_as_often_the_other():
    label = torch.zeros(40, 40, 16, dtype=torch.uint8)
    label[28:36, 16:24, 2:6] = 1
    image = label.float()[None]
    middles = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        _, drawn = augment(image, label, (36, 36, 12), (1.0, 1.0, 4.0), generator, any_orientation=True)
        middles.append(drawn.nonzero().float().mean(0) - torch.tensor([17.5, 17.5, 5.5]))
    found = torch.stack(middles)
    assert ((found.abs() > torch.tensor([6.0, 6.0, 1.0])).float().mean(0) > torch.tensor([0.3, 0.3, 0.8])).all()
    along_x = found[found[:, 0].abs() > 6, 0]
    assert 0.2 < (along_x > 0).float().mean() < 0.8
    assert 0.2 < (found[:, 2] > 0).float().mean() < 0.8


def test_the_template_of_any_orientation_is_the_mean_over_them():
    case = np.array([[[0.5, 0.1, -0.2], [0.3, 0.2, 0.4]], [[np.nan] * 3, [np.nan] * 3]])
    turns = orientations((96, 88, 24), (1.5, 1.5, 6))
    turned = np.stack([turned_ellipsoids(case, turn) for turn in turns])
    np.testing.assert_allclose(turned[:, 0].mean(0), [[0, 0, 0], [0.25, 0.25, 0.4]], atol=1e-12)
    assert np.isnan(turned[:, 1]).all()
