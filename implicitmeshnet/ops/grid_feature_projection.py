"""Vertex features <-> voxel volume by trilinear weights: schemas, fake kernels, autograd and public functions."""

import torch
from torch import nn

from implicitmeshnet.ops import reference
from implicitmeshnet.ops._checks import as_shape, check_batched_points
from implicitmeshnet.ops._kernels import define, register_autograd


def _memory_format(channels_last: bool):
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def _fake_splat(vertices, features, shape, channels_last=False):
    size = [features.shape[0], features.shape[2], *shape]
    return torch.empty(size, dtype=features.dtype, device=features.device, memory_format=_memory_format(channels_last))


def _fake_gather(volume, vertices):
    return vertices.new_empty(vertices.shape[0], vertices.shape[1], volume.shape[1])


def _fake_position_gradient(volume, vertices, features):
    return vertices.new_empty(vertices.shape)


_splat = define(
    "splat(Tensor vertices, Tensor features, int[] shape, bool channels_last=False) -> Tensor",
    reference.splat, _fake_splat)
_gather = define("gather(Tensor volume, Tensor vertices) -> Tensor", reference.gather, _fake_gather)
_position_gradient = define(
    "position_gradient(Tensor volume, Tensor vertices, Tensor features) -> Tensor",
    reference.position_gradient, _fake_position_gradient)


def _splat_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _splat_backward(ctx, grad):
    vertices, features = ctx.saved_tensors
    grad_vertices = _position_gradient(grad, vertices, features) if ctx.needs_input_grad[0] else None
    grad_features = _gather(grad, vertices) if ctx.needs_input_grad[1] else None
    return grad_vertices, grad_features, None, None


def _gather_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _gather_backward(ctx, grad):
    volume, vertices = ctx.saved_tensors
    grad_volume = grad_vertices = None
    if ctx.needs_input_grad[0]:
        channels_last = volume.is_contiguous(memory_format=torch.channels_last_3d) and not volume.is_contiguous()
        grad_volume = _splat(vertices, grad, volume.shape[2:], channels_last).to(volume.dtype)
    if ctx.needs_input_grad[1]:
        grad_vertices = _position_gradient(volume, vertices, grad)
    return grad_volume, grad_vertices


register_autograd("splat", _splat_backward, _splat_setup)
register_autograd("gather", _gather_backward, _gather_setup)


def splat_trilinear(vertices: torch.Tensor, features: torch.Tensor, shape) -> torch.Tensor:
    """Spread each vertex's features over the eight voxels around it, by trilinear weights; the adjoint of sampling.

    vertices (B, V, 3) float32 or float64 in normalised coordinates, features (B, V, C), shape an int or three ->
    volume (B, C, X, Y, Z) in vertices' dtype. Positions are clamped to the cube [-1, 1]^3, so the volume's sum is the
    features' sum.

    Differentiable in both. The gradient by a position is 0 along an axis where it is clamped; at a voxel centre, where
    the weights have a kink, it is that towards the higher index (at +1: the lower).

    Raises ValueError or TypeError that names the argument.
    """
    check_batched_points(vertices)
    if features.ndim != 3 or features.shape[:2] != vertices.shape[:2]:
        wanted = f"({vertices.shape[0]}, {vertices.shape[1]}, C) like the vertices"
        raise ValueError(f"features: wanted shape {wanted}, found {tuple(features.shape)}")
    return _splat(vertices, features.to(vertices.dtype), as_shape(shape, 1))


def sample_trilinear(volume: torch.Tensor, vertices: torch.Tensor) -> torch.Tensor:
    """Trilinear interpolation of a volume at vertices; the adjoint of `splat_trilinear`.

    volume (B, C, X, Y, Z) of any floating dtype and memory format (channels_last_3d is read without a copy), vertices
    (B, V, 3) float32 or float64 in normalised coordinates, clamped to the cube -> (B, V, C) in vertices' dtype.

    Differentiable in both; the volume's gradient has its dtype and memory format. Gradients by positions and errors as
    in `splat_trilinear`.
    """
    check_batched_points(vertices)
    if not volume.dtype.is_floating_point:
        raise TypeError(f"volume: wanted a floating dtype, found {volume.dtype}")
    if volume.ndim != 5 or len(volume) != len(vertices) or 0 in volume.shape[2:]:
        raise ValueError(f"volume: wanted shape ({len(vertices)}, C, X, Y, Z), found {tuple(volume.shape)}")
    return _gather(volume, vertices)


class GridFeatureProjectionTrilinear(nn.Module):
    """Splats vertex features into a volume: (vertices (B, V, 3), features (B, V, C)) -> (B, C, X, Y, Z).

    volume_size is an int or three; features default to the vertices themselves. `sample` is the adjoint, for a volume
    of any size.
    """

    sample = staticmethod(sample_trilinear)

    def __init__(self, volume_size):
        super().__init__()
        self.volume_size = tuple(as_shape(volume_size, 1, "volume_size"))

    def forward(self, vertices, features=None):
        return splat_trilinear(vertices, vertices if features is None else features, self.volume_size)

    def extra_repr(self):
        return f"volume_size={self.volume_size}"
