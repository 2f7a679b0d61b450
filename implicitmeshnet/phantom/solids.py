"""Approximate signed distances of simple solids: negative inside, millimetres, float32.

Points are float32 arrays (3, ...) in millimetres; a field of distances has the shape (...) of its points. Away from the
surface the distances are estimates, but their sign is right everywhere.
Ellipsoid and smooth minimum after Inigo Quilez, https://iquilezles.org/articles/ellipsoids and .../smin.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import make_interp_spline

Curve = Sequence[ArrayLike]
"""Points (3,) along a curve, two or more."""
FAR_MM = 40.0
"""Tubes are evaluated only within this distance of the box around their path; elsewhere the field has this value."""
PIECE_MM = 4.0  # length of the straight pieces that a tube's curved path is cut into


def ellipsoid(
    points: np.ndarray, centre: ArrayLike, semi_axes: ArrayLike, rotation: np.ndarray | None = None
) -> np.ndarray:
    """The field of an ellipsoid around `centre` (3,) with the columns of `rotation` (3, 3) as its axes.

    An infinite semi-axis makes an elliptic cylinder. Without a rotation the axes are those of the frame.
    """
    axes = np.eye(3) if rotation is None else rotation
    lengths = np.asarray(semi_axes, dtype=np.float32)
    # Turn and scale space so that the ellipsoid becomes the unit sphere around 0.
    to_sphere = (axes / lengths).T.astype(np.float32)
    shift = (np.asarray(centre) @ axes / lengths).astype(np.float32)
    scaled = np.tensordot(to_sphere, points, 1)
    scaled -= shift.reshape(3, *[1] * (points.ndim - 1))
    # Dividing by the slope of the scaled radius turns it into millimetres near the surface.
    radius = np.sqrt(np.einsum("a...,a...->...", scaled, scaled))
    slope = np.sqrt(np.einsum("a...,a...,a->...", scaled, scaled, lengths**-2.0))
    tiny = np.float32(1e-6)  # at the centre both vanish; their ratio becomes the shortest semi-axis
    return (radius + tiny * lengths.min()) / (slope + tiny) * (radius - 1)


def tube(points: np.ndarray, path: Curve, radii: ArrayLike) -> np.ndarray:
    """The field of a round tube along the cubic spline through `path` (K, 3), K >= 2; its ends are half spheres.

    The radii (K,) at the points of the path are interpolated by the same spline.
    """
    samples = _sample_path(path, radii)
    # Most of a volume is far from a tube: only the points near the box around the path are evaluated.
    low = samples[:, :3].min(0) - FAR_MM
    high = samples[:, :3].max(0) + FAR_MM
    near = np.ones(points.shape[1:], dtype=bool)
    for axis in range(3):
        near &= (points[axis] > low[axis]) & (points[axis] < high[axis])
    chosen = points[:, near]
    nearest = np.full(chosen.shape[1], FAR_MM, dtype=np.float32)
    for start, end in pairwise(samples):
        np.minimum(nearest, _cone(chosen, start, end), out=nearest)
    field = np.full(points.shape[1:], FAR_MM, dtype=np.float32)
    field[near] = nearest
    return field


def _sample_path(path: Curve, radii: ArrayLike) -> np.ndarray:
    """Points of a tube's spline about PIECE_MM apart: (N, 4) float32, three coordinates and the radius."""
    centres = np.array([np.asarray(point) for point in path])
    knots = np.column_stack([centres, radii]).astype(np.float64)
    # The spline's parameter is the length along the straight lines between the knots.
    pieces = np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1)
    length = np.r_[0, np.cumsum(pieces)]
    degree = min(3, len(knots) - 1)
    spline = make_interp_spline(length, knots, k=degree)
    count = max(2, round(length[-1] / PIECE_MM) + 1)
    return spline(np.linspace(0, length[-1], count)).astype(np.float32)


def _cone(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance (N,) of points (3, N) from the segment start-end less the radius (component 3) at the closest point."""
    offset = points - start[:3, None]
    step = end[:3] - start[:3]
    along = np.clip(step @ offset / (step @ step), 0, 1)  # where on the segment the closest point lies
    offset -= step[:, None] * along
    distance = np.sqrt(np.einsum("an,an->n", offset, offset))
    radius = start[3] + (end[3] - start[3]) * along
    return distance - radius


def half_space(points: np.ndarray, point: ArrayLike, normal: ArrayLike) -> np.ndarray:
    """The field of the side of the plane through `point` (3,) that the unit vector `normal` (3,) points away from."""
    normal = np.asarray(normal, dtype=np.float32)
    offset = np.float32(normal @ np.asarray(point))
    return np.tensordot(normal, points, 1) - offset


def union(first: np.ndarray, *others: np.ndarray, blend_mm: float = 0.0) -> np.ndarray:
    """The union of fields of one shape; a `blend_mm` above 0 rounds the seams over about that width.

    The rounded field lies nowhere above the plain minimum, so nothing of the solids is lost.
    """
    for other in others:
        smaller = np.minimum(first, other)
        if blend_mm:
            # The polynomial smooth minimum: where two surfaces come close, the seam between them is filled.
            closeness = np.maximum(blend_mm - np.abs(first - other), 0)
            smaller -= closeness**2 / np.float32(4 * blend_mm)
        first = smaller
    return first


def intersection(first: np.ndarray, *others: np.ndarray, blend_mm: float = 0.0) -> np.ndarray:
    """The intersection of fields, rounded as in `union`; it lies nowhere below the plain maximum."""
    complements = [-other for other in others]
    return -union(-first, *complements, blend_mm=blend_mm)
