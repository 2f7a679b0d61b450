"""Which voxels lie inside a triangle mesh: schema, fake kernel and public function."""

from collections.abc import Iterable, Sequence

import torch

from implicitmeshnet.ops import _gpu, reference
from implicitmeshnet.ops._checks import as_faces, as_shape, check_points
from implicitmeshnet.ops._kernels import define


def _fake(vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return vertices.new_empty(shape, dtype=torch.bool)


_voxelize = define(
    "voxelize(Tensor vertices, Tensor faces, int[] shape) -> Tensor",
    reference.voxelize,
    _fake,
    _gpu.voxelize,
    "mesh2sdf",
)


def voxelize(vertices: torch.Tensor, faces: torch.Tensor, shape: int | Iterable[int]) -> torch.Tensor:
    """Which voxel centres lie inside a mesh.

    vertices (V, 3) float32 or float64 in voxel coordinates (centre of voxel i at i), faces (F, 3) integers, shape an
    int or three -> bool (X, Y, Z). Not differentiable.

    Inside means: the winding number, counted by signed crossings along Z from minus infinity, is not 0. Closed meshes
    are right everywhere, in either orientation; self-intersecting ones give the union of their parts; an open mesh
    lets its column's count run on to the far side of the grid.

    The vertices are snapped along X and Y to a power of two of a voxel (2^-21 for coordinates and grids up to 255, half
    as fine for each doubling, and moved to 2^25 voxels beyond that), so that the projected edge functions are exact in
    int64 and neighbouring faces agree; a column that meets an edge or a corner exactly is decided as if it stood at
    (x + e, y + e^2), e infinitesimal. Points on the surface count with either side. Counts are kept modulo 256.

    Raises ValueError or TypeError that names the argument, also for coordinates that are not finite. A GPU is not
    waited for: there nothing is inside where a coordinate is not finite or beyond 1e9, or a face out of range.
    """
    check_points(vertices)
    if vertices.ndim != 2:
        raise ValueError(f"vertices: wanted shape (V, 3), found {tuple(vertices.shape)}")
    if vertices.device.type == "cpu" and not vertices.isfinite().all():
        raise ValueError("vertices: wanted finite coordinates, found NaN or infinity")
    return _voxelize(vertices.detach(), as_faces(faces, vertices), as_shape(shape, 1))
