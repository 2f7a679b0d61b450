"""What a prediction is measured by: overlap and surface distances of masks, soundness of meshes."""

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from implicitmeshnet.io import InputError

PAIRS_AT_ONCE = 2_000_000  # bounds the memory of the search for self-intersections


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
    trees = [cKDTree(np.argwhere(mask[box] & ~binary_erosion(mask[box])) * spacing_mm)
             for mask in (prediction, reference)]
    directed = [other.query(border.data)[0] for border, other in zip(trees, trees[::-1], strict=True)]
    return {
        "assd_mm": float(np.mean([distances.mean() for distances in directed])),
        "hd95_mm": float(np.percentile(np.concatenate(directed), 95)),
    }


def mean_and_deviation(values) -> str:
    """Numbers as text, mean +- standard deviation; the mean alone where one is infinite (a mask without any voxel)."""
    if not len(values):
        return "-"
    return f"{np.mean(values):.3f}" + (f" +- {np.std(values):.3f}" if np.isfinite(values).all() else "")


def volume_ml(mask, spacing_mm) -> float:
    """Volume of a boolean mask (X, Y, Z) in millilitres, spacing_mm (3,)."""
    return float(np.count_nonzero(mask) * np.prod(spacing_mm) / 1000)


def mesh_volume_ml(vertices_mm, faces) -> float:
    """Signed volume inside a closed mesh, (V, 3) and (F, 3): positive with faces counter-clockwise from outside."""
    a, b, c = _corners(vertices_mm - np.mean(vertices_mm, axis=0), faces)
    return float(_dot(a, np.cross(b, c)).sum() / 6000)


def euler_characteristic(faces) -> int:
    """Vertices in use - edges + faces of a triangulation (F, 3): 2 for a sphere, 0 for a torus."""
    faces = np.asarray(faces)
    undirected = np.sort(_directed_edges(faces), axis=1)
    return len(np.unique(faces)) - len(np.unique(undirected, axis=0)) + len(faces)


def is_closed(faces) -> bool:
    """True where every edge of faces (F, 3) lies in exactly two faces, which run along it in opposite directions."""
    start, end = _directed_edges(np.asarray(faces, dtype=np.int64)).T
    if not len(start) or (start == end).any():
        return False
    count = max(start.max(), end.max()) + 1
    forward, backward = np.sort(start * count + end), np.sort(end * count + start)
    return bool((forward == backward).all() and (np.diff(forward) > 0).all())


def self_intersecting_faces(vertices, faces) -> np.ndarray:
    """The faces, bool (F,), that another face crosses with which they share no edge; vertices (V, 3), faces (F, 3).

    An edge of one face must pass strictly through the inside of the other, in float64: faces that only touch, or that
    overlap within one plane, do not count, so neither do faces without area.
    """
    faces = np.asarray(faces)
    triangles = np.asarray(vertices, dtype=np.float64)[faces]  # (F, 3 corners, 3)
    crossed = np.zeros(len(faces), dtype=bool)
    for first, second in _overlapping_boxes(triangles):
        shared = (faces[first][:, :, None] == faces[second][:, None, :]).any(2).sum(1)
        first, second = first[shared < 2], second[shared < 2]
        hit = _edges_cross(triangles[first], triangles[second]) | _edges_cross(triangles[second], triangles[first])
        crossed[first[hit]] = crossed[second[hit]] = True
    return crossed


def _overlapping_boxes(triangles):
    """Yield index pairs (first, second) of triangles (F, 3, 3) whose boxes overlap, each once: sort and sweep on x."""
    low, high = triangles.min(1), triangles.max(1)  # (F, 3)
    order = np.argsort(low[:, 0], kind="stable")
    low, high = low[order], high[order]
    count = np.searchsorted(low[:, 0], high[:, 0], side="right") - np.arange(len(order)) - 1  # later ones, x overlaps
    count = np.maximum(count, 0)  # NaN sorts anywhere
    block = np.cumsum(count) // PAIRS_AT_ONCE
    for rows in np.split(np.arange(len(order)), np.flatnonzero(np.diff(block)) + 1):
        first = np.repeat(rows, count[rows])
        position = np.arange(len(first)) - np.repeat(np.cumsum(count[rows]) - count[rows], count[rows])
        second = first + 1 + position
        for axis in (1, 2):
            overlap = (low[first, axis] <= high[second, axis]) & (low[second, axis] <= high[first, axis])
            first, second = first[overlap], second[overlap]
        yield order[first], order[second]


def _edges_cross(edged, triangle) -> np.ndarray:
    """Whether an edge of `edged` passes strictly through the inside of `triangle`, both (N, 3, 3): bool (N,)."""
    a, b, c = (triangle[:, None, corner] for corner in range(3))  # (N, 1, 3)
    p, q = edged, np.roll(edged, -1, axis=1)  # (N, 3 edges, 3)
    side_p, side_q = (_dot(a - end, np.cross(b - end, c - end)) for end in (p, q))  # exactly 0 at a shared corner
    along = q - p
    ab, bc, ca = (_dot(along, np.cross(u - p, v - p)) for u, v in ((a, b), (b, c), (c, a)))
    through = ((ab > 0) & (bc > 0) & (ca > 0)) | ((ab < 0) & (bc < 0) & (ca < 0))
    return ((side_p * side_q < 0) & through).any(1)


def _dot(u, v):
    return np.einsum("...i,...i->...", u, v)


def _corners(vertices, faces):
    return (np.asarray(vertices, dtype=np.float64)[np.asarray(faces)[:, corner]] for corner in range(3))


def _directed_edges(faces):  # (3F, 2)
    return faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)


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
