"""What may be wrong with a result although nothing failed: boxes that cut structures, images unlike the training's."""

import numpy as np

from implicitmeshnet.config import QUANTILES, DataConfig, IntensityStatistics
from implicitmeshnet.data.volume import Grid, Volume, box_inside
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

INTENSITY_LIMIT = 3.8
"""Mahalanobis distance; with the noise below it parts real hearts in MR, phantoms in CT and each from other images, see
docs/results.md."""
INTENSITY_NOISE = 0.05  # standard deviation of a quantile from case to case beside what training has seen
LARGEST_SHARE_OUTSIDE = 0.5
SMALLEST_SHARE_OUTSIDE = 0.01  # of which there is a word


def shares_outside(labels: Volume, grid: Grid, config: DataConfig) -> np.ndarray:
    """The share of each structure's label that lies outside the network's grid: (S,), NaN for one that is not there."""
    structures = Structures.of(config)
    classes = structures.class_map(labels.data)
    held = structures.counts(classes[box_inside(labels.grid, grid)])
    with np.errstate(invalid="ignore"):
        return 1 - held / structures.counts(classes)


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
                " help"
            )
        lines.append(f"{name}: {cut.mean():.0%} of the label outside the box in {len(cut)} of {len(shares)} cases")
    return lines


def intensity_quantiles(image) -> list[float]:
    """QUANTILES of the normalised intensities (N,) or (X, Y, Z) that the network sees within a volume."""
    return np.quantile(image, QUANTILES).tolist() if np.size(image) else [-1.0] * len(QUANTILES)


def intensity_statistics(quantiles) -> IntensityStatistics:
    """Mean and covariance of `intensity_quantiles` over the training cases, (cases, Q)."""
    quantiles = np.asarray(quantiles)
    covariance = np.cov(quantiles.T) if len(quantiles) > 1 else np.zeros((len(QUANTILES),) * 2)
    rows = tuple(map(tuple, covariance.round(6).tolist()))
    return IntensityStatistics(len(quantiles), tuple(quantiles.mean(0).round(4).tolist()), rows)


def intensity_warning(image, statistics: IntensityStatistics | None) -> str | None:
    """A sentence where the intensities that the network sees are unlike the training's.

    By the Mahalanobis distance of their quantiles, as Lee et al. (NeurIPS 2018) tell what a network has not seen.
    """
    if statistics is None:
        return None
    apart = np.subtract(intensity_quantiles(image), statistics.mean)
    variances, axes = np.linalg.eigh(statistics.covariance)
    variances = np.maximum(variances, 0) + INTENSITY_NOISE**2  # at least the noise, whatever a config says
    distance = float(np.sqrt(((axes.T @ apart) ** 2 / variances).sum()))
    limit = INTENSITY_LIMIT * (1 + 2 / statistics.cases)  # few cases tell little of how much they vary
    if distance <= limit:
        return None
    return (
        f"the image is unlike the training's: its intensities lie {distance:.1f} standard deviations from them,"
        f" where {limit:.1f} may be"
    )
