"""Layer norm over the channels of each vertex and leaky ReLU at once: schemas, fake kernels, autograd and function."""

import torch

from implicitmeshnet.ops import reference
from implicitmeshnet.ops._kernels import define, register_autograd

_forward = define("layer_norm_leaky_relu(Tensor features, float slope) -> Tensor",
                  reference.layer_norm_leaky_relu, lambda features, slope: torch.empty_like(features))
_backward = define("layer_norm_leaky_relu_backward(Tensor grad, Tensor features, float slope) -> Tensor",
                   reference.layer_norm_leaky_relu_backward, lambda grad, features, slope: torch.empty_like(features))


def _setup(ctx, inputs, output):
    features, ctx.slope = inputs
    ctx.save_for_backward(features)


def _differentiate(ctx, grad):
    return _backward(grad, *ctx.saved_tensors, ctx.slope), None


register_autograd("layer_norm_leaky_relu", _differentiate, _setup)


def layer_norm_leaky_relu(features: torch.Tensor, slope: float = 0.01) -> torch.Tensor:
    """leaky_relu(layer_norm(features)): features (..., C) float32 or float64, without weights of its own -> same.

    The variance is the biased one plus 1e-5 (Ba et al. 2016, equation 4); slope 1 leaves the norm alone. Keeps its
    input alone for the backward pass. Differentiable once.
    """
    return _forward(features, slope)
