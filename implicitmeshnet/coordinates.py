"""The one convention: normalised <-> voxel <-> world coordinates.

Component a of a point belongs to spatial axis a of a (..., X, Y, Z) array, in every one of the three frames:

- normalised: the network's cube; voxel centre i of N sits at -1 + 2 i / (N - 1) (`align_corners=True`);
- voxel: array index, voxel centre i at i;
- world: millimetres, RAS as in NIfTI, voxel to world through the 4 x 4 affine alone.

A frame change is a 4 x 4 matrix, applied by `transform`; matrices compose with `@`:

>>> world_from_normalised = affine @ voxel_from_normalised((64, 64, 64))
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

Points = TypeVar("Points", np.ndarray, torch.Tensor)


def voxel_from_normalised(shape: Sequence[int] | np.ndarray) -> np.ndarray:
    """The (4, 4) float64 matrix from normalised to voxel coordinates of a grid of `shape` (X, Y, Z), each >= 2."""
    half = (np.asarray(shape, dtype=np.float64) - 1) / 2
    matrix = np.diag([*half, 1.0])
    matrix[:3, 3] = half
    return matrix


def transform(matrix: np.ndarray, points: Points) -> Points:
    """Apply a (4, 4) matrix to points (..., 3), numpy or torch: the same kind comes out.

    Numpy results are float64 where the matrix is, torch results have the points' dtype and device.
    """
    if isinstance(points, np.ndarray):
        return points @ matrix[:3, :3].T + matrix[:3, 3]
    own = points.new_tensor(np.asarray(matrix))
    return points @ own[:3, :3].T + own[:3, 3]


def to_grid_sample(points: torch.Tensor) -> torch.Tensor:
    """Points (..., 3) in normalised coordinates, axes reversed as `torch.nn.functional.grid_sample` wants them."""
    return points.flip(-1)
