"""Instance norm of volumes, a summand, leaky ReLU and a factor at once: schemas, fake kernels, autograd, function."""

import torch

from implicitmeshnet.ops import _gpu, reference
from implicitmeshnet.ops._checks import check_device, check_floating, check_size
from implicitmeshnet.ops._kernels import define, register_autograd


def _fake(volume, weight, bias, residual, multiplier, slope):
    mean = weight.new_empty(volume.shape[:2])
    return _empty_like(volume), mean, torch.empty_like(mean)


def _fake_backward(grad, volume, result, weight, multiplier, mean, scale, slope, summed):
    by_residual = _empty_like(volume) if summed else volume.new_empty(0)
    return _empty_like(volume), torch.empty_like(weight), torch.empty_like(weight), by_residual


def _empty_like(volume: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(volume, memory_format=torch.channels_last_3d)


_forward = define(
    "instance_norm_leaky_relu(Tensor volume, Tensor weight, Tensor bias, Tensor? residual, Tensor? multiplier,"
    " float slope) -> (Tensor result, Tensor mean, Tensor scale)",
    reference.instance_norm_leaky_relu,
    _fake,
    _gpu.instance_norm_leaky_relu,
)
_backward = define(
    "instance_norm_leaky_relu_backward(Tensor grad, Tensor volume, Tensor result, Tensor weight, Tensor? multiplier,"
    " Tensor mean, Tensor scale, float slope, bool summed)"
    " -> (Tensor by_volume, Tensor by_weight, Tensor by_bias, Tensor by_residual)",
    reference.instance_norm_leaky_relu_backward,
    _fake_backward,
    _gpu.instance_norm_leaky_relu_backward,
)


def _setup(ctx, inputs, output):
    volume, weight, _, residual, multiplier, ctx.slope = inputs
    result, mean, scale = output
    ctx.summed = residual is not None
    ctx.mark_non_differentiable(mean, scale)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(volume, result, weight, multiplier, mean, scale)


def _differentiate(ctx, grad, *_):
    if grad is None:  # only the moments were used
        return None, None, None, None, None, None
    by_volume, by_weight, by_bias, by_residual = _backward(grad, *ctx.saved_tensors, ctx.slope, ctx.summed)
    return by_volume, by_weight, by_bias, by_residual if ctx.summed else None, None, None


def _second_derivative(ctx, *_):
    raise NotImplementedError(
        "instance_norm_leaky_relu: wanted a first derivative, found a second one, which it does not have"
    )


register_autograd("instance_norm_leaky_relu", _differentiate, _setup)
register_autograd("instance_norm_leaky_relu_backward", _second_derivative, lambda ctx, inputs, output: None)


def instance_norm_leaky_relu(
    volume: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    multiplier: torch.Tensor | None = None,
    slope: float = 0.01,
) -> torch.Tensor:
    """multiplier * leaky_relu(instance_norm(volume) * weight + bias + residual).

    volume (B, C, X, Y, Z) of any floating dtype, weight and bias (C,) float32, or float64 for a float64 volume,
    residual like the volume, multiplier (B, C) of numbers that are not negative, such as the mask of a dropout, and a
    slope that is not negative; slope 1 leaves the activation out -> like volume, in the layout channels_last_3d.

    The variance is the biased one plus 1e-5. Half precision is rounded once, at the end; means and sums are at least
    float32. Keeps its input, its result and the moments for the backward pass. Differentiable in all but the
    multiplier, which is a constant; second derivatives and forward mode are refused (NotImplementedError). Same bits on
    any number of CPU threads. Raises TypeError or ValueError that names the argument.
    """
    _check(volume, weight, bias, residual, multiplier, slope)
    if volume.dtype == torch.float16 and volume.device.type == "cpu":
        whole = None if residual is None else residual.float()
        return _forward(volume.float(), weight, bias, whole, multiplier, slope)[0].half()
    return _forward(volume, weight, bias, residual, multiplier, slope)[0]


def _check(volume, weight, bias, residual, multiplier, slope) -> None:
    check_floating(volume, "volume")
    if volume.ndim != 5:
        raise ValueError(f"volume: wanted shape (B, C, X, Y, Z), found {tuple(volume.shape)}")
    batch, channels = volume.shape[:2]
    parameters = torch.float64 if volume.dtype == torch.float64 else torch.float32
    wanted = {
        "weight": (weight, (channels,), parameters),
        "bias": (bias, (channels,), parameters),
        "residual": (residual, volume.shape, volume.dtype),
        "multiplier": (multiplier, (batch, channels), parameters),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor is None and name in ("residual", "multiplier"):
            continue
        check_floating(tensor, name)
        check_device(tensor, volume, name, "the volume")
        check_size(tensor, shape, name)
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: wanted {dtype}, found {tensor.dtype}")
    if multiplier is not None and multiplier.requires_grad and torch.is_grad_enabled():
        raise ValueError("multiplier: wanted constants, found a tensor that requires a gradient, which it has not")
    if not slope >= 0:
        raise ValueError(f"slope: wanted a number that is not negative, found {slope}")
