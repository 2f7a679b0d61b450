"""Weighted sums over the neighbours of each vertex of one fixed graph: schemas, fake kernels, autograd and function."""

import torch

from implicitmeshnet.ops import _gpu, reference
from implicitmeshnet.ops._checks import HALF, check_device, check_floating, check_tensor
from implicitmeshnet.ops._kernels import define, register_autograd


def _fake(features: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, own: bool) -> torch.Tensor:
    *rest, channels = features.shape
    return features.new_empty(*rest, channels // 2 if own else channels)


def _fake_backward(grad: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, own: bool) -> torch.Tensor:
    *rest, channels = grad.shape
    return grad.new_empty(*rest, channels * 2 if own else channels)


_neighbour_sum = define(
    "neighbour_sum(Tensor features, Tensor index, Tensor weight, bool own) -> Tensor",
    reference.neighbour_sum,
    _fake,
    _gpu.neighbour_sum,
)
_neighbour_sum_backward = define(
    "neighbour_sum_backward(Tensor grad, Tensor index, Tensor weight, bool own) -> Tensor",
    reference.neighbour_sum_backward,
    _fake_backward,
    _gpu.neighbour_sum_backward,
)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[1:3])
    ctx.own = inputs[3]


def _differentiate(ctx, grad):
    return _neighbour_sum_backward(grad, *ctx.saved_tensors, ctx.own), None, None, None


def _differentiate_backward(ctx, grad):
    return _neighbour_sum(grad, *ctx.saved_tensors, ctx.own), None, None, None


register_autograd("neighbour_sum", _differentiate, _setup)
register_autograd("neighbour_sum_backward", _differentiate_backward, _setup)


def neighbour_sum(features: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, own: bool = False) -> torch.Tensor:
    """y[v] = sum over d of weight[v, d] x[index[v, d]] over one graph, for features (..., V, C) -> (..., V, C).

    index (V, D) int64 and weight (V, D), weight 0 where a vertex has fewer neighbours than D. The operator must be
    symmetric: its gradient is itself. With `own`, features (..., V, 2 C) hold two halves a and b, and
    y[v] = a[v] + sum over d of weight[v, d] b[index[v, d]] (..., V, C). Any floating dtype, half precision summed in
    float32; same bits on any number of CPU threads. Differentiable in the features, to any order; forward mode is
    refused (NotImplementedError). Raises TypeError or ValueError that names the argument, IndexError on a CPU for an
    index that is no vertex.
    """
    _check_graph(index, weight)
    check_floating(features, "features")
    check_device(features, index, "features", "the index")
    if features.ndim < 2 or features.shape[-2] != len(index) or (own and features.shape[-1] % 2):
        wanted = f"(..., {len(index)}, {'2 C' if own else 'C'})"
        raise ValueError(f"features: wanted shape {wanted}, found {tuple(features.shape)}")
    if features.dtype in HALF:
        return _neighbour_sum(features.float(), index, weight, own).to(features.dtype)
    return _neighbour_sum(features, index, weight, own)


def _check_graph(index: torch.Tensor, weight: torch.Tensor) -> None:
    check_tensor(index, "index")
    check_floating(weight, "weight")
    check_device(weight, index, "weight", "the index")
    if index.dtype != torch.int64:
        raise TypeError(f"index: wanted int64, found {index.dtype}")
    if index.ndim != 2:
        raise ValueError(f"index: wanted shape (V, D), found {tuple(index.shape)}")
    if weight.shape != index.shape:
        raise ValueError(f"weight: wanted shape {tuple(index.shape)}, as index has, found {tuple(weight.shape)}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("weight: wanted constants, found a tensor that requires a gradient, which it would not get")
