"""The differentiable ops on meshes, and between meshes and volumes."""

from implicitmeshnet.ops._kernels import compiled
from implicitmeshnet.ops.crossing_pairs import crossing_pairs
from implicitmeshnet.ops.distance_to_mesh import distance_to_mesh
from implicitmeshnet.ops.grid_feature_projection import (
    GridFeatureProjectionTrilinear,
    sample_trilinear,
    splat_trilinear,
)
from implicitmeshnet.ops.instance_norm import instance_norm_leaky_relu
from implicitmeshnet.ops.layer_norm import layer_norm_leaky_relu
from implicitmeshnet.ops.mesh2sdf import Mesh2SDF, mesh2sdf
from implicitmeshnet.ops.neighbour_sum import neighbour_sum
from implicitmeshnet.ops.voxelize import voxelize

__all__ = [
    "GridFeatureProjectionTrilinear",
    "Mesh2SDF",
    "compiled",
    "crossing_pairs",
    "distance_to_mesh",
    "instance_norm_leaky_relu",
    "layer_norm_leaky_relu",
    "mesh2sdf",
    "neighbour_sum",
    "sample_trilinear",
    "splat_trilinear",
    "voxelize",
]
