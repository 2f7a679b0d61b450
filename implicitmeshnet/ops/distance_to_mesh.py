"""Signed distances of points from a closed mesh, and the ways out of it: schema, fake kernel and public function."""

import torch

from implicitmeshnet.ops._checks import as_faces, check_device, check_points
from implicitmeshnet.ops._kernels import define
from implicitmeshnet.ops.reference_distance import distance_to_mesh as reference


def _fake(points: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return points.new_empty(len(points)), torch.empty_like(points, memory_format=torch.contiguous_format)


_distance_to_mesh = define(
    "distance_to_mesh(Tensor points, Tensor vertices, Tensor faces) -> (Tensor, Tensor)", reference, _fake
)


def distance_to_mesh(
    points: torch.Tensor, vertices: torch.Tensor, faces: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed distances (N,) of points from a closed mesh, negative inside, and unit vectors (N, 3) along which they
    grow, in float64.

    points (N, 3) and vertices (V, 3) float32 or float64, faces (F, 3) integers, counter-clockwise seen from outside.
    The distance is to the closest point of the closest face. On the surface itself the vector is the normal of that
    point's feature: its face, or the mean of the faces that meet in its edge or, weighted by their angles, in its
    corner. That normal also tells the side (Baerentzen and Aanaes, IEEE TVCG 2005); a mesh that crosses itself has
    places where it is wrong. Not differentiable: `mesh2sdf` is. Raises ValueError or TypeError that names the argument.
    """
    for name, value in (("points", points), ("vertices", vertices)):
        check_points(value, name)
        if value.ndim != 2:
            raise ValueError(f"{name}: wanted shape (N, 3), found {tuple(value.shape)}")
    check_device(points, vertices, "points")
    return _distance_to_mesh(points.detach().double(), vertices.detach().double(), as_faces(faces, vertices))
