"""Layer norm over the channels of each vertex and leaky ReLU at once: schemas, fake kernels, autograd and function."""

import torch

from implicitmeshnet.ops import reference
from implicitmeshnet.ops._checks import HALF, check_floating
from implicitmeshnet.ops._kernels import define, differentiate, register_autograd


def _fake(features: torch.Tensor, slope: float) -> torch.Tensor:
    return torch.empty_like(features)


def _fake_backward(grad: torch.Tensor, features: torch.Tensor, slope: float) -> torch.Tensor:
    return torch.empty_like(features)


_forward = define(
    "layer_norm_leaky_relu(Tensor features, float slope) -> Tensor", reference.layer_norm_leaky_relu, _fake
)
_backward = define(
    "layer_norm_leaky_relu_backward(Tensor grad, Tensor features, float slope) -> Tensor",
    reference.layer_norm_leaky_relu_backward,
    _fake_backward,
)


def _setup(ctx, inputs, output):
    features, ctx.slope = inputs
    ctx.save_for_backward(features)


def _differentiate(ctx, grad):
    return _backward(grad, *ctx.saved_tensors, ctx.slope), None


def _setup_backward(ctx, inputs, output):
    grad, features, ctx.slope = inputs
    ctx.save_for_backward(grad, features)


def _differentiate_backward(ctx, grad):
    def of_saved(first, features):
        return (reference.layer_norm_leaky_relu_backward(first, features, ctx.slope),)

    return *differentiate(of_saved, ctx.saved_tensors, (grad,)), None


register_autograd("layer_norm_leaky_relu", _differentiate, _setup)
register_autograd("layer_norm_leaky_relu_backward", _differentiate_backward, _setup_backward)


def layer_norm_leaky_relu(features: torch.Tensor, slope: float = 0.01) -> torch.Tensor:
    """leaky_relu(layer_norm(features)): features (..., C) of any floating dtype, without weights of its own -> same.

    The variance is the biased one plus 1e-5 (Ba et al. 2016, equation 4); slope 1 leaves the norm alone. Half precision
    is computed in float32. Keeps its input alone for the backward pass. Differentiable; derivatives beyond the first
    are those of the plain-PyTorch reference, and as slow, and forward mode is refused (NotImplementedError). Raises
    TypeError or ValueError that names the argument.
    """
    check_floating(features, "features")
    if features.ndim == 0:
        raise ValueError("features: wanted shape (..., C), found ()")
    if features.dtype in HALF:
        return _forward(features.float(), slope).to(features.dtype)
    return _forward(features, slope)
