"""What may be wrong with a result although nothing failed: boxes that cut structures, images unlike the training's,
meshes that the network's own segmentation contradicts."""

import numpy as np

from implicitmeshnet.config import QUANTILES, DataConfig
from implicitmeshnet.io import InputError
from implicitmeshnet.metrics import dice
from implicitmeshnet.volume import Grid, Volume, box_inside, structure_index

INTENSITY_MARGIN = 0.15
"""By which quantiles may lie outside the training's, of [-1, 1]."""
LEAST_AGREEMENT = 0.7
LARGEST_SHARE_OUTSIDE = 0.5
SMALLEST_SHARE_OUTSIDE = 0.01  # of which there is a word


def shares_outside(labels: Volume, grid: Grid, config: DataConfig) -> np.ndarray:
    """The share of each structure's label that lies outside the network's grid: (S,), NaN for one that is not there."""
    index = structure_index(labels, list(config.structures.values()))
    counts = np.bincount(index.ravel(), minlength=len(config.structures) + 1)
    held = np.bincount(index[box_inside(labels.grid, grid)].ravel(), minlength=len(counts))
    with np.errstate(invalid="ignore"):
        return (1 - held / counts)[1:]


def check_box(outside, config: DataConfig) -> list[str]:
    """A line for each structure that the network's box cuts, from the shares outside it (cases, S).

    Raises InputError where more than half of a structure lies outside in the mean: no training can find it.
    """
    lines = []
    for name, shares in zip(config.structures, np.transpose(outside), strict=True):
        shares = shares[np.isfinite(shares)]
        cut = shares[shares > SMALLEST_SHARE_OUTSIDE]
        if not len(cut):
            continue
        if shares.mean() > LARGEST_SHARE_OUTSIDE:
            raise InputError(
                f"data.shape: wanted a box that holds {name}, found {shares.mean():.0%} of its label outside in the"
                f" mean of {len(shares)} cases; a larger data.shape or data.spacing_mm, or data.region 'found', may"
                " help")
        lines.append(f"{name}: {cut.mean():.0%} of the label outside the box in {len(cut)} of {len(shares)} cases")
    return lines


def intensity_quantiles(image) -> list[float]:
    """QUANTILES of the normalised intensities (N,) or (X, Y, Z) that the network sees within a volume."""
    return np.quantile(image, QUANTILES).tolist() if np.size(image) else [-1.0] * len(QUANTILES)


def intensity_range(quantiles) -> tuple[tuple[float, float], ...]:
    """The least and greatest of each quantile over the training cases, from (cases, Q): what a config keeps."""
    return tuple((float(np.min(column)), float(np.max(column))) for column in np.transpose(quantiles))


def intensity_warning(image, config: DataConfig) -> str | None:
    """A sentence where the intensities that the network sees lie outside the training's."""
    if config.intensity_range is None:
        return None
    for share, value, (low, high) in zip(QUANTILES, intensity_quantiles(image), config.intensity_range, strict=True):
        if not low - INTENSITY_MARGIN <= value <= high + INTENSITY_MARGIN:
            return (f"the image is unlike the training's: the {share:.0%} quantile of its intensities, normalised, is"
                    f" {value:.2f}, in training {low:.2f} to {high:.2f}")
    return None


def agreements(labelmap, segmentation, values: dict[str, int]) -> dict[str, float]:
    """Dice of each structure's mesh and voxel segmentation, from two label maps; NaN where both have none of it."""
    return {name: dice(labelmap == value, segmentation == value) for name, value in values.items()}


def agreement_warning(agreement: dict[str, float]) -> str | None:
    """A sentence where meshes and the network's voxel segmentation contradict each other."""
    doubtful = [f"{name} {value:.2f}" for name, value in agreement.items() if not value >= LEAST_AGREEMENT]
    if not doubtful:
        return None
    return f"meshes and voxel segmentation disagree, so one of them is wrong (Dice {', '.join(doubtful)})"
