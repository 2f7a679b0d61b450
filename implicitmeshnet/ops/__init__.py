"""The differentiable ops between meshes and volumes."""

from implicitmeshnet.ops._kernels import compiled
from implicitmeshnet.ops.grid_feature_projection import (
    GridFeatureProjectionTrilinear,
    sample_trilinear,
    splat_trilinear,
)
from implicitmeshnet.ops.mesh2sdf import Mesh2SDF, mesh2sdf
from implicitmeshnet.ops.voxelize import voxelize

__all__ = [
    "GridFeatureProjectionTrilinear", "Mesh2SDF", "compiled", "mesh2sdf", "sample_trilinear", "splat_trilinear",
    "voxelize",
]
