"""Mean and modes of shapes whose points correspond: Procrustes alignment and principal components.

This is the point distribution model of T. F. Cootes et al., Active shape models, Computer Vision and Image
Understanding 61, 1995; the alignment is the generalised one of J. C. Gower, Psychometrika 40, 1975. It is rigid: size
is part of what varies, in mm, as an atrium that is twice as large is another anatomy and no other unit.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from implicitmeshnet.script import InputError, atomic_path, reason
from implicitmeshnet.shape_model.cohort import Cohort, Parts

ALIGNED_MM = 1e-6
"""The alignment ends when its mean moves by less than this, root mean square over the points."""
MOST_ROUNDS = 200
SMALLEST_SHARE = 1e-9
"""Of all variance; modes below it are rounding."""


@dataclass(frozen=True, eq=False)
class Modes:
    """The mean of aligned shapes of P points, and M orthonormal directions in which they vary, the largest first."""

    mean: np.ndarray  # (P, 3) mm
    directions: np.ndarray  # (M, P, 3), each of norm 1
    variances: np.ndarray  # (M,) mm^2 along each direction, summed over the points

    def shape(self, deviations: np.ndarray) -> np.ndarray:
        """The points (P, 3) at so many standard deviations (K,) of the first K modes."""
        count = len(deviations)
        weights = np.asarray(deviations) * np.sqrt(self.variances[:count])
        return self.mean + np.einsum("m,mpi->pi", weights, self.directions[:count])


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """The modes of a cohort, where its cases lie among them, and what the points belong to."""

    cases: tuple[str, ...]
    parts: Parts
    modes: Modes
    aligned: np.ndarray  # (N, P, 3) mm, the cases in the model's frame
    scores: np.ndarray  # (N, M) standard deviations


def build_model(cohort: Cohort) -> ShapeModel:
    """The shape model of a cohort. Raises InputError where all its shapes are the same but for their pose."""
    aligned = align(cohort.points)
    modes = principal_modes(aligned)
    if not len(modes.variances):
        raise InputError(f"{len(cohort.cases)} cases: wanted shapes that differ, found the same one in all of them")
    along = np.einsum("npi,mpi->nm", aligned - modes.mean, modes.directions)
    return ShapeModel(cohort.cases, cohort.parts, modes, aligned, along / np.sqrt(modes.variances))


def align(shapes: np.ndarray) -> np.ndarray:
    """Shapes (N, P, 3) moved and turned onto their common mean: generalised Procrustes alignment without scaling.

    The mean is centred at 0, and turned such that the shapes keep their orientation on average.
    """
    centred = shapes - shapes.mean(axis=1, keepdims=True)
    rotations, mean = _mean_pose(centred, centred[0])
    for _ in range(MOST_ROUNDS):
        rotations, moved = _mean_pose(centred, mean)
        change = np.sqrt(np.mean(np.sum((moved - mean) ** 2, axis=1)))
        mean = moved
        if change < ALIGNED_MM:
            break
    back = _nearest_rotation(rotations.sum(axis=0))
    return centred @ (rotations @ back.T)


def _mean_pose(centred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (N, 3, 3), which rows are multiplied by, of shapes onto a target, and the mean of the turned shapes."""
    rotations = np.stack([rotation_onto(shape, target) for shape in centred])
    return rotations, np.mean(centred @ rotations, axis=0)


def rotation_onto(shape: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation R (3, 3) for which shape @ R lies nearest to the target, both (P, 3) and centred at 0.

    Least squares, without reflections (Kabsch, Acta Crystallographica A 32, 1976).
    """
    return _nearest_rotation(shape.T @ target)


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    u, _, v = np.linalg.svd(matrix)
    signs = np.array([1, 1, np.sign(np.linalg.det(u @ v))])  # a reflection is no motion
    return (u * signs) @ v


def principal_modes(aligned: np.ndarray) -> Modes:
    """The modes of aligned shapes (N, P, 3), at most N - 1; a mode's positive side is where the shape is larger."""
    count = len(aligned)
    mean = aligned.mean(axis=0)
    rows = (aligned - mean).reshape(count, -1)
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    variances = values**2 / (count - 1)
    total_of_shapes = np.sum(mean**2)
    kept = variances > SMALLEST_SHARE * max(variances.sum(), SMALLEST_SHARE * total_of_shapes)
    directions = directions[kept].reshape(-1, *mean.shape)
    # A mode's sign is arbitrary; away from the centre is larger.
    outward = np.einsum("mpi,pi->m", directions, mean)
    signs = np.where(outward < 0, -1.0, 1.0)
    return Modes(mean, directions * signs[:, None, None], variances[kept])


def write_model(path: Path | str, model: ShapeModel) -> None:
    """Write a model as one .npz, whole or not at all: arrays of numbers and names, which numpy alone reads.

    `structures` (S,) and `cases` (N,) are names, `faces` (F, 3) those of every structure, `mean_mm` (S, V, 3), `modes`
    (M, S, V, 3) of norm 1 each, `variances_mm2` (M,) along them, and `scores_sd` (N, M) where the cases lie: a case is
    mean_mm + the sum over the modes of scores_sd * sqrt(variances_mm2) * modes, moved and turned.

    Raises InputError where the file cannot be written.
    """
    split = model.parts.split
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            structures=np.array(model.parts.names),
            faces=model.parts.faces.astype(np.int32),
            mean_mm=split(model.modes.mean),
            modes=split(model.modes.directions).astype(np.float32),
            variances_mm2=model.modes.variances,
            cases=np.array(model.cases),
            scores_sd=model.scores,
        )


def read_modes(path: Path | str) -> tuple[Parts, Modes]:
    """The parts and modes of a model's .npz. Raises InputError where the file is missing or no such model."""
    try:
        with np.load(path) as file:
            parts = Parts(tuple(file["structures"].tolist()), file["faces"].astype(np.int64))
            mean = file["mean_mm"].reshape(-1, 3)
            directions = file["modes"].astype(np.float64).reshape(-1, *mean.shape)
            modes = Modes(mean, directions, file["variances_mm2"])
    except Exception as error:  # of a damaged archive numpy raises anything
        raise InputError(f"{path}: cannot be read as a shape model ({reason(error)})") from error
    return parts, modes
