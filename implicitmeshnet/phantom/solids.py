"""Approximate signed distances of simple solids: negative inside, millimetres, float32.

Points are (3, ...) arrays in millimetres; a field has the shape (...) of its points.
Ellipsoid and smooth minimum after Inigo Quilez, https://iquilezles.org/articles/ellipsoids and .../smin.
"""

from itertools import pairwise

import numpy as np
from scipy.interpolate import make_interp_spline

FAR_MM = 40.0
"""Tubes are evaluated within this distance of their path's box and read this value elsewhere."""


def ellipsoid(points, centre, semi_axes, rotation=None) -> np.ndarray:
    """Ellipsoid with the columns of `rotation` (3, 3) as axes; an infinite semi-axis makes an elliptic cylinder."""
    rotation = np.eye(3) if rotation is None else np.asarray(rotation)
    semi_axes = np.asarray(semi_axes, dtype=np.float32)
    scaled = np.tensordot((rotation / semi_axes).T.astype(np.float32), points, 1)
    scaled -= (np.asarray(centre) @ rotation / semi_axes).astype(np.float32).reshape(3, *[1] * (points.ndim - 1))
    radius = np.sqrt(np.einsum("a...,a...->...", scaled, scaled))
    gradient = np.sqrt(np.einsum("a...,a...,a->...", scaled, scaled, semi_axes**-2.0))
    tiny = np.float32(1e-6)
    return (radius + tiny * semi_axes.min()) / (gradient + tiny) * (radius - 1)


def tube(points, path, radii) -> np.ndarray:
    """Round tube along the cubic spline through `path` (K, 3), K >= 2, with radii (K) interpolated likewise."""
    knots = np.column_stack([path, radii]).astype(np.float64)
    length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1))]
    spline = make_interp_spline(length, knots, k=min(3, len(knots) - 1))
    samples = spline(np.linspace(0, length[-1], max(2, round(length[-1] / 4) + 1))).astype(np.float32)
    low, high = samples[:, :3].min(0) - FAR_MM, samples[:, :3].max(0) + FAR_MM
    near = np.logical_and.reduce([(points[a] > low[a]) & (points[a] < high[a]) for a in range(3)])
    inside = points[:, near]
    nearest = np.full(inside.shape[1], FAR_MM, dtype=np.float32)
    for start, end in pairwise(samples):
        np.minimum(nearest, _cone(inside, start, end), out=nearest)
    field = np.full(points.shape[1:], FAR_MM, dtype=np.float32)
    field[near] = nearest
    return field


def _cone(points, start, end):
    """Distance to the segment start-end less the radius (component 3) at the closest point; points (3, N)."""
    offset, step = points - start[:3, None], end[:3] - start[:3]
    along = np.clip(step @ offset / (step @ step), 0, 1)
    offset -= step[:, None] * along
    return np.sqrt(np.einsum("an,an->n", offset, offset)) - (start[3] + (end[3] - start[3]) * along)


def half_space(points, point, normal) -> np.ndarray:
    """The side of the plane through `point` that the unit vector `normal` points away from."""
    normal = np.asarray(normal, dtype=np.float32)
    return np.tensordot(normal, points, 1) - np.float32(normal @ np.asarray(point))


def union(first, *others, blend_mm=0.0) -> np.ndarray:
    """Union of fields; blend_mm rounds the seams over about that width and never lies above the plain minimum."""
    for other in others:
        smaller = np.minimum(first, other)
        if blend_mm:
            smaller -= np.maximum(blend_mm - np.abs(first - other), 0) ** 2 / np.float32(4 * blend_mm)
        first = smaller
    return first


def intersection(first, *others, blend_mm=0.0) -> np.ndarray:
    """Intersection of fields; rounded likewise, never below the plain maximum."""
    return -union(-first, *(-other for other in others), blend_mm=blend_mm)
