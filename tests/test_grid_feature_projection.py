"""Splat and gather: adjoint, mass-preserving, equal to grid_sample and to their references, in every layout."""

import pytest
import torch

from implicitmeshnet.coordinates import to_grid_sample
from implicitmeshnet.ops import GridFeatureProjectionTrilinear, compiled, reference, sample_trilinear, splat_trilinear

SHAPES = [(8, 8, 8), (17, 5, 33), (2, 3, 4), (1, 4, 1)]


def sample_data(shape, channels=5, dtype=torch.float64, spread=0.7, seed=0):
    """Positions (2, 20, 3), some beyond the cube, features (2, 20, C) and a volume (2, C, X, Y, Z)."""
    generator = torch.Generator().manual_seed(seed)
    positions = spread * torch.randn(2, 20, 3, generator=generator, dtype=dtype)
    features = torch.randn(2, 20, channels, generator=generator, dtype=dtype)
    return positions, features, torch.randn(2, channels, *shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_splat_and_gather_are_adjoint(shape):
    positions, features, volume = sample_data(shape)
    left = (splat_trilinear(positions, features, shape) * volume).sum()
    right = (features * sample_trilinear(volume, positions)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_splat_keeps_the_mass(shape):
    positions, features, _ = sample_data(shape)
    volume = splat_trilinear(positions, features, shape)
    assert volume.shape == (2, 5, *shape)
    torch.testing.assert_close(volume.sum((2, 3, 4)), features.sum(1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_float32_keeps_mass_and_adjointness_to_a_millionth(channels_last):
    generator = torch.Generator().manual_seed(1)
    positions = torch.randn(2, 2562, 3, generator=generator).mul(0.5)
    features = torch.randn(2, 2562, 16, generator=generator)
    volume = torch.randn(2, 16, 33, 32, 35, generator=generator)
    splatted = splat_trilinear(positions, features, volume.shape[2:], channels_last).double()
    mass = splatted.sum((2, 3, 4)) - features.double().sum(1)
    assert (mass.abs() / features.abs().double().sum(1)).max() < 1e-6
    products = features.double() * sample_trilinear(volume, positions).double()
    difference = (splatted * volume.double()).sum() - products.sum()
    assert difference.abs() / products.abs().sum() < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gather_is_grid_sample(shape, dtype):
    positions, _, volume = sample_data(shape, dtype=dtype)
    expected = torch.nn.functional.grid_sample(
        volume, to_grid_sample(positions)[:, :, None, None], align_corners=True, padding_mode="border"
    )[..., 0, 0].transpose(1, 2)
    torch.testing.assert_close(sample_trilinear(volume, positions), expected)


def test_voxel_centres_carry_their_own_value():
    shape = (4, 3, 5)
    volume = torch.arange(60.0).view(1, 1, *shape)
    centres = reference.grid_points(shape, volume)[None]
    assert torch.allclose(sample_trilinear(volume, centres)[0, :, 0], volume.flatten(), atol=1e-4)
    splatted = splat_trilinear(centres, volume.view(1, 60, 1), shape)
    torch.testing.assert_close(splatted, volume, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_reference(shape, channels_last):
    positions, features, volume = sample_data(shape, channels=37)
    if channels_last:
        volume = volume.contiguous(memory_format=torch.channels_last_3d)
    operators = torch.ops.implicitmeshnet
    splatted = operators.splat(positions, features, shape, channels_last)
    expected = reference.splat(positions, features, shape, channels_last)
    torch.testing.assert_close(splatted, expected)
    assert splatted.stride() == expected.stride()
    small = sample_data((3, 2, 5), channels=7)[2]
    volumes, both = [volume, small], torch.cat([features, features[..., :7]], -1)
    torch.testing.assert_close(operators.gather(volumes, positions), reference.gather(volumes, positions))
    arguments = volumes, positions, both
    torch.testing.assert_close(operators.position_gradient(*arguments), reference.position_gradient(*arguments))
    arguments = volume, positions, features
    torch.testing.assert_close(operators.splat_backward(*arguments), reference.splat_backward(*arguments))


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 3, 2)])
def test_gradients_match_finite_differences(shape):
    positions, features, volume = (tensor.requires_grad_() for tensor in sample_data(shape, channels=3))
    assert torch.autograd.gradcheck(lambda p, f: splat_trilinear(p, f, shape), (positions, features))
    assert torch.autograd.gradcheck(sample_trilinear, (volume, positions))
    small = torch.randn(2, 2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w, p: sample_trilinear([v, w], p), (volume, small, positions))


def test_several_volumes_are_read_one_after_the_other():
    positions, _, volume = sample_data((6, 7, 8))
    other = sample_data((3, 4, 2), channels=3)[2].float()
    expected = torch.cat([sample_trilinear(volume, positions), sample_trilinear(other, positions)], -1)
    assert torch.equal(sample_trilinear([volume, other], positions), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_features_are_summed_in_full(dtype, channels_last):
    positions, features, _ = sample_data((2, 2, 3), channels=20, dtype=torch.float32)
    features = features.to(dtype).requires_grad_()
    volume = splat_trilinear(positions, features, (2, 2, 3), channels_last)
    assert volume.dtype == dtype
    assert volume.is_contiguous(memory_format=torch.channels_last_3d) == channels_last
    assert torch.equal(volume, splat_trilinear(positions, features.float(), (2, 2, 3), channels_last).to(dtype))
    volume.float().square().sum().backward()
    assert features.grad.dtype == dtype


def test_gradient_by_clamped_coordinates_is_zero_and_one_sided_at_centres():
    volume = torch.tensor([0.0, 1.0, 4.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2).contiguous()
    positions = torch.tensor([[[-1.5, 0, 0], [-1.0, 0, 0], [0.0, 0, 0], [1.0, 0, 0], [1.5, 0, 0]]], requires_grad=True)
    sample_trilinear(volume, positions).sum().backward()
    assert positions.grad[0, :, 0].tolist() == [0, 1, 3, 3, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("channels_last", [False, True])
def test_volume_gradient_keeps_type_and_memory_format(dtype, channels_last):
    positions, features, volume = sample_data((6, 7, 8), channels=20, dtype=torch.float32)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    volume = volume.to(dtype).contiguous(memory_format=layout).requires_grad_()
    found = sample_trilinear(volume, positions)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sample_trilinear(volume.float(), positions))
    found.backward(features)
    assert volume.grad.dtype == dtype
    assert volume.grad.is_contiguous(memory_format=layout)
    torch.testing.assert_close(volume.grad, splat_trilinear(positions, features, (6, 7, 8)).to(dtype))


def test_strided_input_gives_what_its_contiguous_copy_gives():
    positions, features, volume = sample_data((6, 7, 8))
    strided = positions.transpose(0, 2).contiguous().transpose(0, 2)
    wide = torch.cat([features, features], -1)[..., ::2]
    assert not strided.is_contiguous()
    assert not wide.is_contiguous()
    expected = splat_trilinear(positions, wide.contiguous(), (6, 7, 8))
    assert torch.equal(splat_trilinear(strided, wide, (6, 7, 8)), expected)
    flipped = volume.permute(0, 1, 4, 3, 2)
    assert torch.equal(sample_trilinear(flipped, positions), sample_trilinear(flipped.contiguous(), positions))


def test_empty_batches_vertices_and_channels():
    for batch, count, channels in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        positions, features = torch.zeros(batch, count, 3), torch.ones(batch, count, channels)
        volume = splat_trilinear(positions, features, (3, 4, 5))
        assert volume.shape == (batch, channels, 3, 4, 5)
        assert sample_trilinear(volume, positions).shape == features.shape


def test_positions_that_are_not_finite_do_no_harm():
    positions = torch.tensor([[[torch.nan, 0, 0], [torch.inf, 0, 0], [-1e30, 0, 0]]])
    found = sample_trilinear(torch.arange(27.0).view(1, 1, 3, 3, 3), positions)[0, :, 0]
    assert found[0].isnan()
    assert found[1:].tolist() == [22, 4]


def test_module_defaults_to_the_vertices_and_samples_any_volume():
    positions, _, volume = sample_data((9, 4, 6))
    projection = GridFeatureProjectionTrilinear((3, 4, 5))
    assert torch.equal(projection(positions), splat_trilinear(positions, positions, (3, 4, 5)))
    assert torch.equal(projection.sample(volume, positions), sample_trilinear(volume, positions))
    assert GridFeatureProjectionTrilinear(4)(positions).shape == (2, 3, 4, 4, 4)


@pytest.mark.skipif(not compiled(), reason="no compiled library: the reference leaves summation order to torch")
def test_same_bits_on_any_number_of_threads():
    positions, features, volume = sample_data((4, 4, 4), channels=40, dtype=torch.float32)
    volume = volume.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found = sample_trilinear(volume, positions)
            grad = torch.autograd.grad(found, volume, features)[0]
            results.append((splat_trilinear(positions, features, 4), found.detach(), grad))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], result, strict=True))


def test_torchs_own_checks_of_the_operators_pass():
    positions, features, volume = (tensor.requires_grad_() for tensor in sample_data((4, 5, 6), dtype=torch.float32))
    operators = torch.ops.implicitmeshnet
    for channels_last in (False, True):
        torch.library.opcheck(operators.splat.default, (positions, features, [4, 5, 6], channels_last))
    torch.library.opcheck(operators.gather.default, ([volume], positions))
    inputs = [volume.detach()], positions.detach(), features.detach()
    torch.library.opcheck(operators.position_gradient.default, inputs)
    torch.library.opcheck(operators.splat_backward.default, (volume.detach(), *inputs[1:]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: splat_trilinear(torch.zeros(4, 3), torch.zeros(4, 3), 4),
            ValueError,
            "vertices: wanted shape (B, V, 3), found (4, 3)",
        ),
        (
            lambda: splat_trilinear(torch.zeros(1, 4, 3), torch.zeros(1, 5, 2), 4),
            ValueError,
            "features: wanted shape (1, 4, C) like the vertices, found (1, 5, 2)",
        ),
        (
            lambda: splat_trilinear(torch.zeros(1, 4, 3), torch.zeros(1, 4, 2), (4, 4, 0)),
            ValueError,
            "shape: wanted one or three integers from 1 to 16777216, found (4, 4, 0)",
        ),
        (
            lambda: sample_trilinear(torch.zeros(2, 3, 4, 4, 4), torch.zeros(1, 4, 3)),
            ValueError,
            "volume: wanted shape (1, C, X, Y, Z), found (2, 3, 4, 4, 4)",
        ),
        (
            lambda: sample_trilinear(torch.zeros(1, 3, 4, 4, 4).long(), torch.zeros(1, 4, 3)),
            TypeError,
            "volume: wanted float16, bfloat16, float32 or float64, found torch.int64",
        ),
        (
            lambda: GridFeatureProjectionTrilinear(0),
            ValueError,
            "volume_size: wanted one or three integers from 1 to 16777216, found 0",
        ),
    ],
)
def test_errors_name_the_argument(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
