"""What a prediction is measured by: overlap and surface distances of masks."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.volume import Grid
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

LEAST_AGREEMENT = 0.7
"""Dice of a structure's mesh and its voxel segmentation below which one of them is wrong."""

LARGEST_SHARE_OUTSIDE = 0.05
"""Of a mesh's area outside the image, above which it is worth a warning: that part follows no voxels."""

LARGEST_MOVE_MM = 1.0
"""By which the repair moves a mesh's vertices on average, above which it is worth a warning.

Few meshes of good cases move so far: docs/results.md."""


def share_outside(vertices: np.ndarray, faces: np.ndarray, grid: Grid) -> float:
    """The share of the area of a mesh, vertices (V, 3) in world mm and faces (F, 3), that lies outside an image's grid.

    The image ends with its outermost voxels; a face is where its centroid is.
    """
    corners = vertices[faces]  # (F, 3, 3)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    voxels = transform(np.linalg.inv(grid.affine), corners.mean(1))
    inside = ((voxels >= -0.5) & (voxels <= np.array(grid.shape) - 0.5)).all(1)
    return float(areas[~inside].sum() / max(areas.sum(), 1e-12))


def outside_warning(outside: dict[str, float]) -> str | None:
    """A sentence on the structures of which much lies outside the image, by the share of each; None where none does."""
    named = [f"{name} {share:.0%}" for name, share in outside.items() if share > LARGEST_SHARE_OUTSIDE]
    return f"meshes lie outside the image by these shares of their area: {', '.join(named)}" if named else None


def move_warning(moved_mm: dict[str, float], agreement: dict[str, float]) -> str | None:
    """A sentence on the meshes that the repair moved far, by the mean of each one's vertices in mm; None for none.

    Those of little `agreement` after it are not among them, as `agreement_warning` names these.
    """
    named = []
    for name, mean in moved_mm.items():
        if mean > LARGEST_MOVE_MM and agreement[name] >= LEAST_AGREEMENT:
            named.append(f"{name} {mean:.1f}")
    if not named:
        return None
    return (
        f"the repair moved meshes far for them not to cross (mean mm: {', '.join(named)}): see on the image whether"
        " they and their neighbours still follow it"
    )


def dice(prediction: np.ndarray, reference: np.ndarray, ignored: np.ndarray | None = None) -> float:
    """The Dice coefficient of two boolean arrays of one shape, but for voxels `ignored`; nan when both are empty.

    Raises InputError where they are not boolean or differ in shape.
    """
    _check_masks(prediction, reference)
    if ignored is not None:
        prediction = prediction & ~ignored
        reference = reference & ~ignored
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    if not total:
        return float("nan")
    common = np.count_nonzero(prediction & reference)
    return float(2 * common / total)


def dice_by_structure(labelmap: np.ndarray, labels: np.ndarray, structures: Structures) -> dict[str, float]:
    """Dice of each structure that a label map (X, Y, Z) has, by name, voxels that are ignored left out.

    `labelmap` has the structures' written values, `labels` those of the config.
    """
    found = {}
    ignored = structures.ignored_in(labels)
    for name in structures.present_in(labels):
        reference = structures.mask(labels, structures.names.index(name))
        found[name] = dice(labelmap == structures.written[name], reference, ignored)
    return found


def surface_distances(
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    ignored: np.ndarray | None = None,
) -> dict[str, float]:
    """`assd_mm` and `hd95_mm` between the borders of two boolean masks (X, Y, Z) on a grid.

    The definitions are those of medpy 0.5 `metric.binary`, which nnU-Net uses too; here distances are the world's on
    sheared grids as well. A border voxel has one of its 6 neighbours outside the mask, and beyond the image's edge
    everything is outside. Each border voxel is measured to the nearest border voxel of the other mask, centre to
    centre. ASSD is the mean of the two directed means, HD95 the 95th percentile of both directions' distances together.
    Both are inf where one mask has no border, nan where neither has. Voxels `ignored`, bool (X, Y, Z), are in neither
    mask, and what touches nothing but these is no border. Raises InputError where the masks are not boolean or
    differ in shape.
    """
    _check_masks(prediction, reference)
    borders = _borders_mm(prediction, reference, grid, ignored)
    empty = [not len(border) for border in borders]
    if any(empty):
        value = float("nan" if all(empty) else "inf")
        return {"assd_mm": value, "hd95_mm": value}
    # Trees of border points, not distance transforms: as exact, and their cost does not grow with the volume.
    predicted = cKDTree(borders[0])
    true = cKDTree(borders[1])
    there, _ = true.query(predicted.data)
    back, _ = predicted.query(true.data)
    assd_mm = np.mean([there.mean(), back.mean()])
    hd95_mm = np.percentile(np.concatenate([there, back]), 95)
    return {"assd_mm": float(assd_mm), "hd95_mm": float(hd95_mm)}


def agreements(labelmap: np.ndarray, segmentation: np.ndarray, values: dict[str, int]) -> dict[str, float]:
    """Dice of each structure's mesh and voxel segmentation, from two label maps of one shape (X, Y, Z).

    `values` holds the structures' label values by name. A structure that is in neither label map gets NaN.
    """
    box = _box_of_either(labelmap, segmentation)
    mesh = labelmap[box]
    voxels = segmentation[box]
    return {name: dice(mesh == value, voxels == value) for name, value in values.items()}


def _box_of_either(first: np.ndarray, second: np.ndarray) -> tuple[slice, ...]:
    """The smallest box outside of which two label maps of one shape (X, Y, Z) are both 0."""
    box = [slice(None)] * first.ndim
    for axis in reversed(range(first.ndim)):  # of the last one the planes lie together in memory
        others = tuple({*range(first.ndim)} - {axis})
        planes = np.flatnonzero(first[tuple(box)].any(others) | second[tuple(box)].any(others))
        box[axis] = slice(planes[0], planes[-1] + 1) if len(planes) else slice(0, 0)
    return tuple(box)


def agreement_warning(agreement: dict[str, float]) -> str | None:
    """A sentence where meshes and the network's voxel segmentation contradict each other, None where they do not.

    `agreement` is the result of `agreements`. NaN counts as a contradiction: a structure was found by neither.
    """
    doubtful = [f"{name} {value:.2f}" for name, value in agreement.items() if not value >= LEAST_AGREEMENT]
    if not doubtful:
        return None
    return f"meshes and voxel segmentation disagree, so one of them is wrong (Dice {', '.join(doubtful)})"


def mean_and_deviation(values: np.ndarray | Sequence[float]) -> str:
    """Numbers as text, mean +- standard deviation; the mean alone where one is infinite (a mask without any voxel).

    No numbers at all give "-".
    """
    if not len(values):
        return "-"
    mean = f"{np.mean(values):.3f}"
    if not np.isfinite(values).all():
        return mean
    return f"{mean} +- {np.std(values):.3f}"


def volume_ml(mask: np.ndarray, grid: Grid) -> float:
    """Volume of a boolean mask (X, Y, Z) on a grid in millilitres."""
    return float(np.count_nonzero(mask) * grid.voxel_mm3 / 1000)


def _borders_mm(
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    ignored: np.ndarray | None,
) -> list[np.ndarray]:
    """Positions (N, 3) in mm, from a common origin, of the voxels of each mask that touch its outside."""
    union = prediction | reference
    if not union.any():
        return [np.zeros((0, 3)), np.zeros((0, 3))]
    # Beyond the box of both masks there is no border; of what is ignored, the voxels that touch the box matter too.
    box = _bounding_box(union, 0 if ignored is None else 1)
    unknown = None if ignored is None else ignored[box]
    return [_border_mm(mask[box], grid, unknown) for mask in (prediction, reference)]


def _border_mm(mask: np.ndarray, grid: Grid, ignored: np.ndarray | None = None) -> np.ndarray:
    """Positions (N, 3) in mm of the voxels of a mask (X, Y, Z) that touch its outside, from its first voxel on.

    The mask's axes are those of a grid. Voxels `ignored` are neither the mask's nor outside it.
    """
    unknown = np.zeros_like(mask) if ignored is None else ignored
    border = mask & ~unknown & ~binary_erosion(mask | unknown)
    return np.argwhere(border) @ grid.affine[:3, :3].T


def _bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The slices that hold all of a mask (X, Y, Z) that is not empty, and so many voxels more, as far as there are."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(filled[0] - margin, 0), filled[-1] + 1 + margin))
    return tuple(box)


def _check_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != bool:
            raise InputError(f"{name}: wanted a boolean mask, found {mask.dtype}")
    if prediction.shape != reference.shape:
        raise InputError(f"prediction: wanted the reference's shape {reference.shape}, found {prediction.shape}")
