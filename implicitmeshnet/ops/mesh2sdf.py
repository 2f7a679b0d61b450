"""Mesh -> signed distance volume: schema, fake kernel, autograd and public function."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from implicitmeshnet.ops import _gpu, reference
from implicitmeshnet.ops._checks import as_faces, as_shape, check_points
from implicitmeshnet.ops._kernels import define, register_autograd


def _fake(vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    sdf = vertices.new_empty([vertices.shape[0], *shape])
    return sdf, torch.empty_like(sdf, dtype=torch.int32)


def _fake_backward(grad, vertices, faces, sdf, face):
    return vertices.new_empty(vertices.shape)


_mesh2sdf = define(
    "mesh2sdf(Tensor vertices, Tensor faces, int[] shape) -> (Tensor sdf, Tensor face)",
    reference.mesh2sdf,
    _fake,
    _gpu.mesh2sdf,
    "mesh2sdf",
)
_mesh2sdf_backward = define(
    "mesh2sdf_backward(Tensor grad, Tensor vertices, Tensor faces, Tensor sdf, Tensor face) -> Tensor",
    reference.mesh2sdf_backward,
    _fake_backward,
    _gpu.mesh2sdf_backward,
    "mesh2sdf",
)


def _setup_context(ctx, inputs, output):
    vertices, faces, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(vertices, faces, *output)


def _second_derivative(ctx, *_):
    raise NotImplementedError("mesh2sdf: wanted a first derivative, found a second one, which it does not have")


def _backward(ctx, grad: torch.Tensor | None, _):
    if grad is None:  # only the faces were used
        return None, None, None
    return _mesh2sdf_backward(grad, *ctx.saved_tensors), None, None


register_autograd("mesh2sdf", _backward, _setup_context)
register_autograd("mesh2sdf_backward", _second_derivative, lambda ctx, inputs, output: None)


def mesh2sdf(vertices: torch.Tensor, faces: torch.Tensor, shape: int | Iterable[int]) -> torch.Tensor:
    """The exact signed distance from every voxel centre to a triangle mesh, negative inside.

    vertices (B, V, 3) or (V, 3) float32 or float64 in normalised coordinates (the grid is the cube [-1, 1]^3, see
    `implicitmeshnet.coordinates`; vertices may lie outside), faces (F, 3) integers shared by the batch, shape an int
    or three of at least 2 -> sdf (B, X, Y, Z) or (X, Y, Z) in vertices' dtype. Distances are Euclidean in normalised
    coordinates.

    The distance is that to the closest point of the closest face, right to 3e-7 in float32 (to 3e-7 of itself beyond
    1); the sign is the winding number's, as in `voxelize`. A batch item with a vertex that is not finite, or beyond
    1e9, gives NaN throughout; so does, on a GPU, which is not waited for, a face out of range.

    Differentiable in the vertices: d sdf / d v_k = -beta_k n, where beta are the closest point q's barycentric weights
    on its face and n = (p - q) / sdf is the outward unit normal there. On the surface itself n is the face normal;
    where several faces are equally close, one of them decides. Sums do not depend on the number of threads; on a GPU
    only under `torch.use_deterministic_algorithms`. Second derivatives and forward mode are refused
    (NotImplementedError).

    Raises ValueError or TypeError that names the argument.
    """
    check_points(vertices)
    if vertices.ndim not in (2, 3):
        raise ValueError(f"vertices: wanted shape (B, V, 3) or (V, 3), found {tuple(vertices.shape)}")
    batched = vertices if vertices.ndim == 3 else vertices[None]
    sdf, _ = _mesh2sdf(batched, as_faces(faces, vertices), as_shape(shape, 2))
    return sdf if vertices.ndim == 3 else sdf[0]


class Mesh2SDF(nn.Module):
    """`mesh2sdf` at a fixed grid: (vertices, faces) -> sdf. volume_size is an int or three, each at least 2."""

    def __init__(self, volume_size: int | Iterable[int]):
        super().__init__()
        self.volume_size = tuple(as_shape(volume_size, 2, "volume_size"))

    def forward(self, vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
        """Signed distances (B, X, Y, Z) or (X, Y, Z), see `mesh2sdf`."""
        return mesh2sdf(vertices, faces, self.volume_size)

    def extra_repr(self) -> str:
        return f"volume_size={self.volume_size}"
