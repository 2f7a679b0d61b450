"""The one convention: normalised <-> voxel <-> world coordinates.

Component a of a point belongs to spatial axis a of a (..., X, Y, Z) array, in every one of the three frames:

- normalised: the network's cube; voxel centre i of N sits at -1 + 2 i / (N - 1) (`align_corners=True`);
- voxel: array index, voxel centre i at i;
- world: millimetres, RAS as in NIfTI, voxel to world through the 4 x 4 affine alone.

A frame change is a 4 x 4 matrix, applied by `transform`; matrices compose with `@`:

>>> world_from_normalised = affine @ voxel_from_normalised((64, 64, 64))
"""

import numpy as np


def voxel_from_normalised(shape) -> np.ndarray:
    """The (4, 4) float64 matrix from normalised to voxel coordinates of a grid of `shape` (X, Y, Z), each >= 2."""
    half = (np.asarray(shape, dtype=np.float64) - 1) / 2
    matrix = np.diag([*half, 1.0])
    matrix[:3, 3] = half
    return matrix


def transform(matrix, points):
    """Apply a (4, 4) matrix to points (..., 3); numpy in, numpy out (float64), torch in, torch out (points' dtype)."""
    if not isinstance(points, np.ndarray):
        matrix = points.new_tensor(np.asarray(matrix))
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def to_grid_sample(points):
    """Points (..., 3) in normalised coordinates, axes reversed as `torch.nn.functional.grid_sample` wants them."""
    return points.flip(-1)
