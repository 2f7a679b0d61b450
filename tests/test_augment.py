import pytest
import torch

import implicitmeshnet.data.augment as module
from implicitmeshnet.data.augment import augment

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


def test_the_largest_channel_is_that_of_argmax_with_ties_for_the_first():
    channels = torch.randint(0, 3, (4, 5, 6, 7), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(module._largest(channels), channels.argmax(0))
    assert torch.equal(module._largest(channels[:1]), torch.zeros(5, 6, 7, dtype=torch.int64))
