"""What may be wrong with a result although nothing failed: boxes that cut structures, images unlike the training's."""

from collections.abc import Sequence

import numpy as np

from implicitmeshnet.config import QUANTILES, DataConfig, IntensityStatistics
from implicitmeshnet.data.volume import Grid, Volume, box_inside
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

INTENSITY_LIMIT = 3.8
"""The Mahalanobis distance from which on an image counts as unlike the training's. With the noise below, it accepts new
cases of the training's kind, real hearts in MR and phantoms in CT, and tells both from other images; see
docs/results.md."""
INTENSITY_NOISE = 0.05  # standard deviation of a quantile between cases, in addition to what training has seen
LARGEST_SHARE_OUTSIDE = 0.5  # of a structure, outside the box in the mean; beyond it, training is refused
SMALLEST_SHARE_OUTSIDE = 0.01  # of a structure, outside the box in a case, that is reported


def shares_outside(labels: Volume, grid: Grid, config: DataConfig) -> np.ndarray:
    """The share of each structure's label that lies outside the network's grid: (S,), NaN for one without label."""
    structures = Structures.of(config)
    classes = structures.class_map(labels.data)
    held = structures.counts(classes[box_inside(labels.grid, grid)])
    with np.errstate(invalid="ignore"):  # 0 / 0
        return 1 - held / structures.counts(classes)


def check_box(outside: Sequence[np.ndarray], config: DataConfig) -> list[str]:
    """A line for each structure that the network's box cuts, from the cases' `shares_outside`, each (S,).

    Raises InputError where more than half of a structure lies outside in the mean, because no training could find it.
    """
    lines = []
    for name, of_cases in zip(config.structures, np.transpose(outside), strict=True):
        shares = of_cases[np.isfinite(of_cases)]
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


def intensity_quantiles(image: np.ndarray) -> list[float]:
    """QUANTILES of the normalised intensities (N,) or (X, Y, Z) that the network sees within a volume.

    Where there are none they are all -1, the background's.
    """
    if not np.size(image):
        return [-1.0] * len(QUANTILES)
    return np.quantile(image, QUANTILES).tolist()


def intensity_warnings(image: np.ndarray, config: DataConfig) -> list[str]:
    """The `intensity_warning` of each channel of an image (C, X, Y, Z) that is unlike the training's.

    Without the training's statistics there is nothing to compare with, and no warning.
    """
    warnings = []
    for number, statistics in enumerate(config.channel_statistics):
        warning = intensity_warning(image[number], statistics)
        if warning is not None:
            warnings.append(warning if len(image) == 1 else f"channel {number}: {warning}")
    return warnings


def intensity_statistics(quantiles: Sequence[Sequence[float]]) -> IntensityStatistics:
    """Mean and covariance over the training cases of their `intensity_quantiles`."""
    table = np.asarray(quantiles)  # (cases, Q)
    covariance = np.zeros((len(QUANTILES), len(QUANTILES)))
    if len(table) > 1:
        covariance = np.cov(table.T)
    mean = tuple(table.mean(0).round(4).tolist())
    rows = tuple(map(tuple, covariance.round(6).tolist()))
    return IntensityStatistics(len(table), mean, rows)


def intensity_warning(image: np.ndarray, statistics: IntensityStatistics) -> str | None:
    """A sentence where the intensities that the network sees are unlike the training's, else None.

    They are compared by the Mahalanobis distance of their quantiles, by which Lee et al. (NeurIPS 2018) recognise
    inputs unlike those that a network was trained on.
    """
    apart = np.subtract(intensity_quantiles(image), statistics.mean)
    variances, axes = np.linalg.eigh(statistics.covariance)
    variances = np.maximum(variances, 0) + INTENSITY_NOISE**2  # at least the noise, whatever a config says
    along_axes = axes.T @ apart
    distance = float(np.sqrt((along_axes**2 / variances).sum()))
    limit = INTENSITY_LIMIT * (1 + 2 / statistics.cases)  # wider where few cases tell little of how much they vary
    if distance <= limit:
        return None
    return (
        f"the image is unlike the training's: its intensities lie {distance:.1f} standard deviations from them,"
        f" where {limit:.1f} may be"
    )
