"""Where structures lie and how large they are, as ellipsoids: what templates start from."""

from collections.abc import Sequence

import numpy as np

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures


def ellipsoids_of(classes: np.ndarray, structures: Structures) -> np.ndarray:
    """Centre and semi-axes of what each structure's mesh holds in a class map (X, Y, Z) of the network's grid.

    Returns (S, 2, 3) float64 in normalised coordinates, as `ellipsoid_of`; NaN for a structure that is not there.
    """
    found = np.full((len(structures), 2, 3), np.nan)
    for structure in range(len(structures)):
        mask = structures.held(classes, structure)
        if mask.any():
            found[structure] = ellipsoid_of(mask)
    return found


def template_statistics(ellipsoids: Sequence[np.ndarray], config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean centre and semi-axes of what each structure's mesh holds, both (S, 3) float64 in normalised coordinates.

    They are of the cases' `ellipsoids_of`, each (S, 2, 3). Raises InputError for a structure that is in no case.
    """
    means = []
    for name, of_cases in zip(config.structures, np.stack(ellipsoids, 1), strict=True):  # of_cases (cases, 2, 3)
        found = of_cases[np.isfinite(of_cases).all((1, 2))]
        if not len(found):
            raise InputError(f"data.structures: wanted {name} in at least one training case, found it in none")
        means.append(found.mean(0))
    centres, radii = np.stack(means, 1)
    return centres, radii


def turned_ellipsoids(ellipsoids: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """`ellipsoids_of` a case, (S, 2, 3), after its axes were flipped and swapped by a signed permutation (3, 3)."""
    centres, radii = ellipsoids[:, 0], ellipsoids[:, 1]
    return np.stack([centres @ turn.T, radii @ np.abs(turn).T], 1)


def ellipsoid_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and semi-axes (3,), normalised, of the axis-parallel ellipsoid with the moments of a mask (X, Y, Z)."""
    mean, variance = _moments(mask)
    normalised_from_voxel = np.linalg.inv(voxel_from_normalised(mask.shape))
    centre = transform(normalised_from_voxel, mean)
    side = 2 / (np.array(mask.shape) - 1)  # of a voxel, normalised
    own_variance = 1 / 12  # of a voxel as a cube of side 1
    return centre, np.sqrt(5 * (variance + own_variance)) * side


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and variance (3,) of the voxel indices in a mask (X, Y, Z)."""
    means = []
    squares = []
    for axis in range(3):
        counts = mask.sum(tuple({0, 1, 2} - {axis}))
        index = np.arange(len(counts))
        means.append(np.average(index, weights=counts))
        squares.append(np.average(index**2, weights=counts))
    mean = np.array(means)
    return mean, np.array(squares) - mean**2
