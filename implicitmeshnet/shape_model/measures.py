"""How good a shape model is: compactness, generalisation and specificity.

R. H. Davies, Learning shape: optimal models for analysing natural variability, PhD thesis, University of Manchester,
2002; M. Styner et al., Evaluation of 3D correspondence methods for model building, IPMI 2003. The distance of two
shapes is the mean distance of their corresponding points, in mm.
"""

from dataclasses import dataclass

import numpy as np

from implicitmeshnet.shape_model.model import Modes, align, principal_modes, rotation_onto

MOST_MODES = 20
"""Up to so many modes are measured."""
SAMPLES = 200
"""Random shapes that the specificity is the mean of."""
SEED = 0


@dataclass(frozen=True, eq=False)
class Measures:
    """What is measured with the first 1 to K modes; K is at most MOST_MODES, and one less than there are."""

    compactness: np.ndarray  # (K,) share of all variance that the modes hold
    generalisation_mm: np.ndarray  # (N, K) each case, left out, from its approximation
    specificity_mm: np.ndarray  # (SAMPLES, K) each random shape from the nearest case


def measure_model(modes: Modes, aligned: np.ndarray) -> Measures:
    """The three measures of a model and its aligned shapes (N, P, 3), N at least 3."""
    most = min(MOST_MODES, len(modes.variances), len(aligned) - 2)
    return Measures(compactness(modes)[:most], generalisation(aligned, most), specificity(modes, aligned, most))


def compactness(modes: Modes) -> np.ndarray:
    """The share of all variance that the first 1 to M modes hold (M,)."""
    return np.cumsum(modes.variances) / modes.variances.sum()


def generalisation(shapes: np.ndarray, most: int) -> np.ndarray:
    """How far each of shapes (N, P, 3), left out, is from what the first 1 to `most` modes of the others make of it.

    The model is built anew, alignment included, of the others, and the shape is moved and turned onto its mean. Where
    the others have fewer modes, the last values repeat. (N, most) in mm.
    """
    errors = []
    for left_out in range(len(shapes)):
        errors.append(_approximation_mm(np.delete(shapes, left_out, axis=0), shapes[left_out], most))
    return np.stack(errors)


def _approximation_mm(others: np.ndarray, shape: np.ndarray, most: int) -> np.ndarray:
    """The distance (most,) of a shape (P, 3) from its approximations by the modes of others (N, P, 3)."""
    return np.stack([np.mean(np.linalg.norm(rest, axis=1)) for rest in residuals(others, shape, most)[1:]])


def residuals(others: np.ndarray, shape: np.ndarray, most: int) -> list[np.ndarray]:
    """What the first 0 to `most` modes of others (N, P, 3) leave of a shape turned onto their mean, each (P, 3)."""
    modes = principal_modes(align(others))
    centred = shape - shape.mean(axis=0)
    rest = centred @ rotation_onto(centred, modes.mean) - modes.mean
    left = [rest]
    for number in range(most):
        if number < len(modes.variances):
            direction = modes.directions[number]
            rest = rest - np.sum(direction * rest) * direction
        left.append(rest)
    return left


def specificity(modes: Modes, aligned: np.ndarray, most: int, samples: int = SAMPLES) -> np.ndarray:
    """How far random shapes of the model are from the nearest of the aligned shapes (N, P, 3): (samples, most) in mm.

    Their coefficients are normally distributed with the modes' variances; the same ones are taken for any number of
    modes, and at each call.
    """
    deviations = np.random.default_rng(SEED).normal(size=(samples, most))
    weights = deviations * np.sqrt(modes.variances[:most])
    nearest = np.empty((samples, most))
    for sample in range(samples):
        shape = modes.mean
        for mode in range(most):
            shape = shape + weights[sample, mode] * modes.directions[mode]
            nearest[sample, mode] = np.linalg.norm(aligned - shape, axis=2).mean(axis=1).min()
    return nearest
