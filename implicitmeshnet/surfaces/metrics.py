"""What a prediction is measured by: overlap and surface distances of masks."""

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from implicitmeshnet.script import InputError

LEAST_AGREEMENT = 0.7  # Dice of a structure's mesh and its voxel segmentation, below which one of them is wrong


def dice(prediction, reference) -> float:
    """Dice coefficient of two boolean arrays of one shape; nan when both are empty."""
    _check_masks(prediction, reference)
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / total) if total else float("nan")


def surface_distances(prediction, reference, spacing_mm) -> dict[str, float]:
    """`assd_mm` and `hd95_mm` between the borders of two boolean masks (X, Y, Z), spacing_mm (3,).

    As in medpy 0.5 `metric.binary`, which nnU-Net uses too: a border voxel has one of its 6 neighbours outside the
    mask, the image's edge counting as outside; each border voxel is measured to the nearest border voxel of the other
    mask, centre to centre. ASSD is the mean of the two directed means, HD95 the 95th percentile of both directions'
    distances pooled. One mask empty: inf; both: nan.
    """
    _check_masks(prediction, reference)
    empty = [not prediction.any(), not reference.any()]
    if any(empty):
        value = float("nan" if all(empty) else "inf")
        return {"assd_mm": value, "hd95_mm": value}
    box = _bounding_box(prediction | reference)
    # Trees of border points, not distance transforms: as exact, and their cost does not grow with the volume.
    trees = [
        cKDTree(np.argwhere(mask[box] & ~binary_erosion(mask[box])) * spacing_mm) for mask in (prediction, reference)
    ]
    directed = [other.query(border.data)[0] for border, other in zip(trees, trees[::-1], strict=True)]
    return {
        "assd_mm": float(np.mean([distances.mean() for distances in directed])),
        "hd95_mm": float(np.percentile(np.concatenate(directed), 95)),
    }


def agreements(labelmap, segmentation, values: dict[str, int]) -> dict[str, float]:
    """Dice of each structure's mesh and voxel segmentation, from two label maps; NaN where both have none of it."""
    return {name: dice(labelmap == value, segmentation == value) for name, value in values.items()}


def agreement_warning(agreement: dict[str, float]) -> str | None:
    """A sentence where meshes and the network's voxel segmentation contradict each other."""
    doubtful = [f"{name} {value:.2f}" for name, value in agreement.items() if not value >= LEAST_AGREEMENT]
    if not doubtful:
        return None
    return f"meshes and voxel segmentation disagree, so one of them is wrong (Dice {', '.join(doubtful)})"


def mean_and_deviation(values) -> str:
    """Numbers as text, mean +- standard deviation; the mean alone where one is infinite (a mask without any voxel)."""
    if not len(values):
        return "-"
    return f"{np.mean(values):.3f}" + (f" +- {np.std(values):.3f}" if np.isfinite(values).all() else "")


def volume_ml(mask, spacing_mm) -> float:
    """Volume of a boolean mask (X, Y, Z) in millilitres, spacing_mm (3,)."""
    return float(np.count_nonzero(mask) * np.prod(spacing_mm) / 1000)


def _bounding_box(mask) -> tuple[slice, ...]:
    """The slices that hold all of a mask (X, Y, Z) that is not empty."""
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(filled[0], filled[-1] + 1))
    return tuple(box)


def _check_masks(prediction, reference):
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != bool:
            raise InputError(f"{name}: wanted a boolean mask, found {mask.dtype}")
    if prediction.shape != reference.shape:
        raise InputError(f"prediction: wanted the reference's shape {reference.shape}, found {prediction.shape}")
