"""instance_norm_leaky_relu against torch's own layers, and the kernel against the reference."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from implicitmeshnet.ops import instance_norm_leaky_relu, reference

OPERATOR = torch.ops.implicitmeshnet.instance_norm_leaky_relu
BACKWARD = torch.ops.implicitmeshnet.instance_norm_leaky_relu_backward
# One channel, an odd count, a count beyond a tile, a part beyond a tile, and several parts that end within a tile.
SHAPES = [(2, 1, 3, 2, 4), (2, 3, 4, 3, 5), (1, 300, 2, 3, 2), (2, 16, 5, 7, 9), (1, 17, 11, 9, 13), (3, 64, 9, 9, 9)]
WITH = {"alone": (), "a residual": ("residual",), "a multiplier": ("multiplier",), "both": ("residual", "multiplier")}


def arguments(shape, dtype=torch.float64, used=WITH["both"]):
    """Volumes whose channels have means far from zero, with some channels dropped."""
    generator = torch.Generator().manual_seed(0)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    volume = (
        3 * torch.randn(shape, generator=generator)
        + 10 * torch.randn(shape[:2], generator=generator)[..., None, None, None]
    )
    weight, bias = torch.randn(2, shape[1], generator=generator).to(parameters)
    residual = torch.randn(shape, generator=generator).to(dtype)
    multiplier = 2 * torch.randint(0, 2, shape[:2], generator=generator).to(parameters)
    extra = {"residual": residual, "multiplier": multiplier}
    return {"volume": volume.to(dtype), "weight": weight, "bias": bias} | {name: extra[name] for name in used}


def plain(volume, weight, bias, residual=0, multiplier=None, slope=0.01):
    """The same by torch's own layers, in float64."""
    normed = F.instance_norm(volume.double(), weight=weight.double(), bias=bias.double())
    result = F.leaky_relu(normed + residual, slope)
    return result if multiplier is None else result * multiplier[..., None, None, None]


@pytest.mark.parametrize("used", WITH)
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_are_those_of_torchs_layers(shape, used):
    given = arguments(shape, used=WITH[used])
    leaves = {name: tensor.requires_grad_() for name, tensor in given.items() if name != "multiplier"}
    found, wanted = instance_norm_leaky_relu(**given), plain(**given)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pairs = zip(*(torch.autograd.grad(result, leaves.values(), grad) for result in (found, wanted)), strict=True)
    for own, torchs in pairs:
        torch.testing.assert_close(own, torchs)


@pytest.mark.parametrize("used", WITH)
def test_gradients_are_right(used):
    names = ["volume", "weight", "bias", *WITH[used]]
    given = arguments((2, 3, 2, 3, 2), used=WITH[used])
    leaves = [given[name].requires_grad_(name != "multiplier") for name in names]
    assert gradcheck(lambda *values: instance_norm_leaky_relu(**dict(zip(names, values, strict=True))), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("used", WITH)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_within_rounding_of_the_definition(shape, used, dtype):
    """Of the volume as it is rounded; a bfloat16 result is off by its own rounding alone."""
    given = arguments(shape, dtype, WITH[used])
    found = instance_norm_leaky_relu(**given)
    assert found.dtype == dtype
    close = {"rtol": 2**-8 if dtype == torch.bfloat16 else 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.double(), plain(**given), **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("used", WITH)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_the_reference(shape, used, dtype):
    given = arguments(shape, dtype, WITH[used])
    multiplier = given.get("multiplier")
    forward = [given[name] for name in ("volume", "weight", "bias")] + [given.get("residual"), multiplier, 0.1]
    result, mean, scale = reference.instance_norm_leaky_relu(*forward)
    close = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.03}[dtype]
    for own, plainly in zip(OPERATOR(*forward), (result, mean, scale), strict=True):
        torch.testing.assert_close(own, plainly, rtol=close, atol=close)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    backward = (grad, given["volume"], result, given["weight"], multiplier, mean, scale, 0.1, "residual" in given)
    pairs = zip(BACKWARD(*backward), reference.instance_norm_leaky_relu_backward(*backward), strict=True)
    for own, plainly in pairs:
        assert own.dtype == plainly.dtype
        error = (own - plainly).double().norm()
        assert error <= close * plainly.double().norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("used", WITH)
def test_operators_keep_torchs_contract(used, dtype):
    given = arguments((2, 3, 2, 3, 4), dtype, WITH[used])
    values = [given[name].requires_grad_() for name in ("volume", "weight", "bias")]
    values += [given.get("residual"), given.get("multiplier")]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPERATOR.default, (*values, 0.1), test_utils=checks)


def test_any_layout_gives_the_same_in_channels_last():
    given = arguments((2, 3, 4, 3, 5))
    wanted = instance_norm_leaky_relu(**given)
    assert wanted.is_contiguous(memory_format=torch.channels_last_3d)
    layouts = {
        "channels last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last_3d),
        "transposed": lambda tensor: tensor.transpose(2, 4).contiguous().transpose(2, 4),
        "sliced": lambda tensor: torch.cat([tensor, tensor], 1)[:, : tensor.shape[1]],
    }
    for layout in layouts.values():
        changed = given | {name: layout(given[name]) for name in ("volume", "residual")}
        assert torch.equal(instance_norm_leaky_relu(**changed), wanted)


def test_gradient_of_any_layout_is_the_same():
    given = arguments((2, 3, 4, 3, 5))
    volume = given["volume"].requires_grad_()
    result = instance_norm_leaky_relu(**given)
    (expanded,) = torch.autograd.grad(result.sum(), volume, retain_graph=True)
    (dense,) = torch.autograd.grad(result, volume, torch.ones_like(result))
    assert torch.equal(expanded, dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_voxel_is_its_own_mean(dtype):
    given = arguments((2, 3, 1, 1, 1), dtype)
    volume = given["volume"].requires_grad_()
    result = instance_norm_leaky_relu(**given)
    bias = given["bias"].view(1, 3, 1, 1, 1)
    wanted = given["multiplier"][..., None, None, None] * F.leaky_relu(bias + given["residual"].float(), 0.01)
    torch.testing.assert_close(result, wanted.to(dtype))
    (slope,) = torch.autograd.grad(result.float().sum(), volume)
    assert slope.float().abs().max() < 1e-4  # rounding, times a scale of 316


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (2, 0, 2, 2, 2), (2, 3, 0, 2, 2)])
def test_nothing_gives_nothing(shape):
    given = {name: tensor.requires_grad_(name != "multiplier") for name, tensor in arguments(shape).items()}
    result = instance_norm_leaky_relu(**given)
    assert result.shape == shape
    result.sum().backward()
    assert given["weight"].grad.tolist() == [0] * shape[1]
    assert given["residual"].grad.shape == shape


def test_a_constant_channel_far_from_zero_gives_its_bias():
    volume = torch.full((1, 2, 20, 20, 20), 1e4)
    volume[0, 1] = -3e-3
    result = instance_norm_leaky_relu(volume, torch.ones(2), torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(result[0, :, 3, 4, 5], torch.tensor([0.5, 2.0]))
    assert result.var((2, 3, 4)).max() == 0


def test_what_is_not_finite_stays_in_its_item_and_channel():
    volume = arguments((2, 3, 4, 4, 4), torch.bfloat16)["volume"]
    volume[1, 2, 0, 0, 0] = float("nan")
    result = instance_norm_leaky_relu(volume, torch.ones(3), torch.zeros(3))
    assert result[1, 2].isnan().all()
    assert result[0].isfinite().all()
    assert result[1, :2].isfinite().all()


def test_float16_is_computed_in_float32():
    given = arguments((2, 3, 4, 3, 5), torch.float16)
    wide = given | {name: given[name].float() for name in ("volume", "residual")}
    assert torch.equal(instance_norm_leaky_relu(**given), instance_norm_leaky_relu(**wide).half())


def test_any_number_of_threads_gives_the_same_bits():
    given = arguments((2, 17, 13, 11, 9), torch.bfloat16)
    leaves = [given[name].requires_grad_() for name in ("volume", "weight", "bias", "residual")]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            result = instance_norm_leaky_relu(**given)
            results.append([result, *torch.autograd.grad(result.float().square().sum(), leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(own, first) for own, first in zip(other, results[0], strict=True))


def test_arguments_that_do_not_fit_are_refused_by_name():
    given = arguments((2, 3, 4, 3, 5), torch.float32)
    wrong = {
        "volume: wanted shape (B, C, X, Y, Z), found (3, 4, 3, 5)": {"volume": given["volume"][0]},
        "weight: wanted shape (3,), found (2,)": {"weight": given["weight"][1:]},
        "bias: wanted torch.float32, found torch.float64": {"bias": given["bias"].double()},
        "residual: wanted torch.float32, found torch.bfloat16": {"residual": given["residual"].bfloat16()},
        "residual: wanted shape (2, 3, 4, 3, 5), found (1, 3, 4, 3, 5)": {"residual": given["residual"][:1]},
        "multiplier: wanted shape (2, 3), found (3,)": {"multiplier": given["multiplier"][0]},
        "multiplier: wanted constants, found a tensor that requires a gradient, which it has not": {
            "multiplier": given["multiplier"].clone().requires_grad_()
        },
        "slope: wanted a number that is not negative, found -0.1": {"slope": -0.1},
        "slope: wanted a number that is not negative, found nan": {"slope": float("nan")},
    }
    for sentence, change in wrong.items():
        with pytest.raises((TypeError, ValueError)) as caught:
            instance_norm_leaky_relu(**given | change)
        assert str(caught.value) == sentence


def test_a_second_derivative_is_refused():
    given = arguments((1, 2, 2, 2, 2))
    volume = given["volume"].requires_grad_()
    (first,) = torch.autograd.grad(instance_norm_leaky_relu(**given).square().sum(), volume, create_graph=True)
    with pytest.raises(NotImplementedError, match="wanted a first derivative, found a second one"):
        torch.autograd.grad(first.sum(), volume)
