"""Vertex features <-> voxel volume by trilinear weights: schemas, fake kernels, autograd and public functions."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from implicitmeshnet.ops import _gpu, reference
from implicitmeshnet.ops._checks import as_shape, check_batched_points, check_device, check_floating, check_volume
from implicitmeshnet.ops._kernels import define, differentiate, register_autograd


def _fake_splat(
    vertices: torch.Tensor,
    features: torch.Tensor,
    shape: Sequence[int],
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    size = [features.shape[0], features.shape[2], *shape]
    layout = reference.memory_format(channels_last)
    return torch.empty(size, dtype=dtype or features.dtype, device=features.device, memory_format=layout)


def _fake_splat_backward(grad, vertices, features):
    return vertices.new_empty(vertices.shape), features.new_empty(features.shape)


def _fake_gather(volumes, vertices):
    channels = sum(volume.shape[1] for volume in volumes)
    return vertices.new_empty(*vertices.shape[:2], channels)


def _fake_position_gradient(volumes, vertices, features):
    return vertices.new_empty(vertices.shape)


_splat = define(
    "splat(Tensor vertices, Tensor features, int[] shape, bool channels_last=False, ScalarType? dtype=None) -> Tensor",
    reference.splat,
    _fake_splat,
    _gpu.splat,
    "grid_feature_projection",
)
_splat_backward = define(
    "splat_backward(Tensor grad, Tensor vertices, Tensor features) -> (Tensor, Tensor)",
    reference.splat_backward,
    _fake_splat_backward,
    _gpu.splat_backward,
    "grid_feature_projection",
)
_gather = define(
    "gather(Tensor[] volumes, Tensor vertices) -> Tensor",
    reference.gather,
    _fake_gather,
    _gpu.gather,
    "grid_feature_projection",
)
_position_gradient = define(
    "position_gradient(Tensor[] volumes, Tensor vertices, Tensor features) -> Tensor",
    reference.position_gradient,
    _fake_position_gradient,
    _gpu.position_gradient,
    "grid_feature_projection",
)


def _setup_splat(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _differentiate_splat(ctx, grad):
    vertices, features = ctx.saved_tensors
    if not ctx.needs_input_grad[0]:
        by_features = _gather([grad], vertices).to(features.dtype)
        return None, by_features, None, None, None
    return *_splat_backward(grad, vertices, features), None, None, None


def _setup_gather(ctx, inputs, output):
    volumes, vertices = inputs
    ctx.save_for_backward(*volumes, vertices)


def _differentiate_gather(ctx, grad):
    *volumes, vertices = ctx.saved_tensors
    of_volumes, of_vertices = ctx.needs_input_grad
    channels = [volume.shape[1] for volume in volumes]
    volume_grads: list[torch.Tensor | None] = []
    for volume, part, needed in zip(volumes, grad.split(channels, -1), of_volumes, strict=True):
        volume_grads.append(_splat_like(volume, vertices, part) if needed else None)
    vertex_grad = _position_gradient(volumes, vertices, grad) if of_vertices else None
    return volume_grads, vertex_grad


def _splat_like(volume: torch.Tensor, vertices: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Splat into the shape, dtype and memory format of a volume."""
    return _splat(vertices, features, volume.shape[2:], _is_channels_last(volume), volume.dtype)


def _is_channels_last(volume: torch.Tensor) -> bool:
    return volume.is_contiguous(memory_format=torch.channels_last_3d) and not volume.is_contiguous()


def _setup_splat_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate_splat_backward(ctx, *grads):
    return tuple(differentiate(reference.splat_backward, ctx.saved_tensors, grads))


def _setup_position_gradient(ctx, inputs, output):
    volumes, vertices, features = inputs
    ctx.save_for_backward(*volumes, vertices, features)


def _differentiate_position_gradient(ctx, grad):
    def of_saved(*saved):
        *volumes, vertices, features = saved
        return (reference.position_gradient(volumes, vertices, features),)

    *volume_grads, vertex_grad, feature_grad = differentiate(of_saved, ctx.saved_tensors, (grad,))
    return volume_grads, vertex_grad, feature_grad


register_autograd("splat", _differentiate_splat, _setup_splat)
register_autograd("splat_backward", _differentiate_splat_backward, _setup_splat_backward)
register_autograd("gather", _differentiate_gather, _setup_gather)
register_autograd("position_gradient", _differentiate_position_gradient, _setup_position_gradient)


def splat_trilinear(
    vertices: torch.Tensor, features: torch.Tensor, shape: int | Iterable[int], channels_last: bool = False
) -> torch.Tensor:
    """Spread each vertex's features over the eight voxels around it, by trilinear weights; the adjoint of sampling.

    vertices (B, V, 3) float32 or float64 in normalised coordinates, features (B, V, C) of any floating dtype, shape an
    int or three -> volume (B, C, X, Y, Z) in features' dtype, summed in vertices', in the memory format
    channels_last_3d if asked for. Positions are clamped to the cube [-1, 1]^3, so the volume's sum is the features'
    sum.

    Differentiable in both. The gradient by a position is 0 along an axis where it is clamped; at a voxel centre, where
    the weights have a kink, it is that towards the higher index (at +1: the lower). Further derivatives are those of
    the plain-PyTorch reference, and as slow. Forward mode is refused (NotImplementedError).

    Raises ValueError or TypeError that names the argument.
    """
    check_batched_points(vertices)
    check_floating(features, "features")
    check_device(features, vertices, "features")
    if features.ndim != 3 or features.shape[:2] != vertices.shape[:2]:
        wanted = f"({vertices.shape[0]}, {vertices.shape[1]}, C) like the vertices"
        raise ValueError(f"features: wanted shape {wanted}, found {tuple(features.shape)}")
    return _splat(vertices, features, as_shape(shape, 1), channels_last)


def sample_trilinear(
    volume: torch.Tensor | list[torch.Tensor] | tuple[torch.Tensor, ...], vertices: torch.Tensor
) -> torch.Tensor:
    """Trilinear interpolation of one or more volumes at vertices; the adjoint of `splat_trilinear`.

    volume (B, C, X, Y, Z) of any floating dtype and memory format (channels_last_3d is read without a copy), or a list
    of them, of any sizes and channels; vertices (B, V, 3) float32 or float64 in normalised coordinates, clamped to the
    cube -> (B, V, C) in vertices' dtype, the channels of a list one volume after the other.

    Differentiable in all; a volume's gradient has its dtype and memory format. Gradients by positions and errors as
    in `splat_trilinear`.
    """
    check_batched_points(vertices)
    volumes: list[torch.Tensor] = list(volume) if isinstance(volume, list | tuple) else [volume]
    for each in volumes:
        check_floating(each, "volume")
        check_device(each, vertices, "volume")
        check_volume(each, vertices)
    return _gather(volumes, vertices)


class GridFeatureProjectionTrilinear(nn.Module):
    """Splats vertex features into a volume: (vertices (B, V, 3), features (B, V, C)) -> (B, C, X, Y, Z).

    volume_size is an int or three, channels_last the volume's memory format; features default to the vertices
    themselves. `sample` is the adjoint, for volumes of any size.
    """

    sample = staticmethod(sample_trilinear)

    def __init__(self, volume_size: int | Iterable[int], channels_last: bool = False):
        super().__init__()
        self.volume_size = tuple(as_shape(volume_size, 1, "volume_size"))
        self.channels_last = channels_last

    def forward(self, vertices: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """The volume, see `splat_trilinear`."""
        features = vertices if features is None else features
        return splat_trilinear(vertices, features, self.volume_size, self.channels_last)

    def extra_repr(self) -> str:
        return f"volume_size={self.volume_size}"
