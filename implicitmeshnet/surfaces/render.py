"""A small renderer for previews of meshes, opaque and translucent."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

VIEW_FROM = (-0.55, 1.0, 0.35)  # RAS: from left, anterior and above
LIGHT = (0.35, 0.45, 0.82)  # on the screen: right, up, towards the viewer
SAMPLES = 2  # rendered pixels per pixel of the result and axis
FILLED = 0.94  # of the picture's side, by the meshes' longer one on the screen

Mesh = tuple[np.ndarray, np.ndarray, Sequence[float]]
"""Vertices (V, 3) in mm RAS, faces (F, 3) and an RGBA colour (4,)."""


class Fragments(NamedTuple):
    """The pieces of a mesh's surface that fall on single pixels."""

    pixel: np.ndarray  # (N,) index into the flattened picture
    depth: np.ndarray  # (N,) larger is nearer to the viewer
    normal: np.ndarray  # (N, 3) unit normals on the screen


def render(
    meshes: Sequence[Mesh], pixels: int, view_from: Sequence[float] = VIEW_FROM, side_mm: float | None = None
) -> np.ndarray:
    """Shaded view of meshes (vertices_mm (V, 3) RAS, faces (F, 3), RGBA (4,)): float RGBA (pixels, pixels, 4).

    Parallel projection from the direction `view_from` (3,), not along the body's long axis, with superior up; the
    picture's side is `side_mm`, by default as long as the meshes just fit in. Normals are interpolated (Phong shading).
    Of each mesh the nearest front face shows, over whatever lies behind it where its colour is translucent.
    """
    size = pixels * SAMPLES
    pixel = []
    depth = []
    colour = []
    on_screen = _on_screen(meshes, size, view_from, side_mm)
    for screen, (_, faces, rgba) in zip(on_screen, meshes, strict=True):
        nearest = _nearest(_fragments(screen, np.asarray(faces), size))
        pixel.append(nearest.pixel)
        depth.append(nearest.depth)
        colour.append(_shade(nearest.normal, rgba))
    picture = _blend(np.concatenate(pixel), np.concatenate(depth), np.concatenate(colour), size * size)
    # The mean of several samples smooths the outlines.
    picture = picture.reshape(pixels, SAMPLES, pixels, SAMPLES, 4).mean((1, 3))
    picture[..., :3] /= np.maximum(picture[..., 3:], 1e-9)  # alpha is no longer multiplied into the colours
    return picture[::-1].clip(0, 1)


def _on_screen(
    meshes: Sequence[Mesh], size: int, view_from: Sequence[float], side_mm: float | None
) -> list[np.ndarray]:
    """Each mesh's vertices (V, 3) as right, up and towards the viewer in pixels, all meshes centred on the screen."""
    camera = camera_from(view_from)
    views = [np.asarray(vertices, dtype=np.float64) @ camera for vertices, _, _ in meshes]
    low = np.min([view.min(axis=0) for view in views], axis=0)
    high = np.max([view.max(axis=0) for view in views], axis=0)
    middle = (low + high) / 2
    longest = max((high - low)[:2].max(), 1e-9)
    scale = size / (longest / FILLED if side_mm is None else side_mm)
    return [(view - middle) * scale + [size / 2, size / 2, 0] for view in views]


def camera_from(view_from: Sequence[float]) -> np.ndarray:
    """The matrix (3, 3) that takes a row in world RAS to right, up and towards the viewer."""
    toward = np.divide(view_from, np.linalg.norm(view_from))
    right = np.cross((0.0, 0.0, 1.0), toward) / np.hypot(*toward[:2])
    up = np.cross(toward, right)
    return np.stack([right, up, toward], axis=1)


def _nearest(fragments: Fragments) -> Fragments:
    """Of the fragments of one mesh the nearest to the viewer on each pixel."""
    order = np.lexsort((fragments.depth, fragments.pixel))  # by pixel, within it from far to near
    last = np.diff(fragments.pixel[order], append=-1) != 0
    order = order[last]
    return Fragments(fragments.pixel[order], fragments.depth[order], fragments.normal[order])


def _blend(pixel: np.ndarray, depth: np.ndarray, colour: np.ndarray, count: int) -> np.ndarray:
    """Fragments, colours (N, 4) with premultiplied alpha, over each other from far to near: (count, 4)."""
    order = np.lexsort((depth, pixel))
    pixel = pixel[order]
    colour = colour[order]
    first = np.flatnonzero(np.diff(pixel, prepend=-1))  # the farthest fragment of each pixel
    per_pixel = np.diff(first, append=len(pixel))
    behind = np.arange(len(pixel)) - np.repeat(first, per_pixel)  # how many fragments lie behind each
    # Fragments of one rank lie on different pixels, so each rank is blended in one go.
    picture = np.zeros((count, 4))
    for rank in range(behind.max(initial=-1) + 1):
        chosen = behind == rank
        where = pixel[chosen]
        transparency = 1 - colour[chosen, 3:]
        picture[where] = colour[chosen] + transparency * picture[where]
    return picture


def _fragments(screen: np.ndarray, faces: np.ndarray, size: int) -> Fragments:
    """Each pixel that each front face covers, from vertices (V, 3) on the screen and faces (F, 3)."""
    corners = screen[faces]  # (F, 3, 3)
    a, b, c = corners.transpose(1, 0, 2)
    face_normals = np.cross(b - a, c - a)  # twice as long as the face's area
    vertex_normals = np.zeros_like(screen)
    np.add.at(vertex_normals, faces, face_normals[:, None])
    # Faces turned away from the viewer are not seen.
    front = face_normals[:, 2] > 0
    corners = corners[front]
    normals = vertex_normals[faces[front]]  # (F, 3 corners, 3)
    area = face_normals[front, 2]
    # Every pixel of a face's bounding box is tried; those with a negative weight lie outside the face.
    face, point = _pixels_in_boxes(corners[..., :2], size)
    weights = _barycentric_weights(corners[face, :, :2], point, area[face])
    inside = (weights >= 0).all(1)
    face = face[inside]
    point = point[inside]
    weights = weights[inside]
    normal = np.einsum("nc,ncd->nd", weights, normals[face])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    depth = np.einsum("nc,nc->n", weights, corners[face, :, 2])
    pixel = point[:, 1] * size + point[:, 0]
    return Fragments(pixel, depth, normal)


def _pixels_in_boxes(corners: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels in the bounding box of each face, corners (F, 3, 2): the face's index (N,), the pixel (N, 2)."""
    start = np.ceil(corners.min(1)).astype(int).clip(0, size)
    end = np.floor(corners.max(1)).astype(int) + 1
    extent = end.clip(0, size) - start  # (F, 2)
    count = extent.prod(1)
    face = np.repeat(np.arange(len(corners)), count)
    before = np.cumsum(count) - count  # pixels of the faces before each
    step = np.arange(len(face)) - np.repeat(before, count)
    width = extent[face, 0]
    point = start[face] + np.stack([step % width, step // width], axis=1)
    return face, point


def _barycentric_weights(corners: np.ndarray, point: np.ndarray, area: np.ndarray) -> np.ndarray:
    """The weights (N, 3) of a triangle's corners (N, 3, 2) at a point (N, 2); `area` (N,) is twice the triangle's."""
    weights = np.empty((len(point), 3))
    for corner in range(3):
        # The weight is the share of the triangle that the point and the side opposite the corner span.
        a = corners[:, corner - 2]
        b = corners[:, corner - 1]
        side = b - a
        along = point - a
        parallelogram = side[:, 0] * along[:, 1] - side[:, 1] * along[:, 0]
        weights[:, corner] = parallelogram / area
    return weights


def _shade(normal: np.ndarray, colour: Sequence[float]) -> np.ndarray:
    """RGBA (N, 4), alpha premultiplied, of unit normals (N, 3) on the screen under a colour RGBA.

    Ambient and Lambert light, a soft highlight, darker rims; a translucent surface is less so at its rims.
    """
    light = np.divide(LIGHT, np.linalg.norm(LIGHT))
    lambert = (normal @ light).clip(0)[:, None]
    # The highlight is brightest where the normal halves the angle between the light and the viewer (Blinn-Phong).
    half = light + np.array([0, 0, 1])
    half_way = half / np.linalg.norm(half)
    highlight = (normal @ half_way).clip(0)[:, None] ** 40
    facing = normal[:, 2:]  # 1 towards the viewer, 0 at the rim
    rim = 0.55 + 0.45 * facing.clip(0) ** 0.6
    base = np.array(colour[:3]) * (0.3 + 0.75 * lambert) * rim
    rgb = (base + 0.22 * highlight).clip(0, 1)
    alpha = colour[3] + (1 - colour[3]) * (1 - facing.clip(0, 1)) ** 2
    return np.concatenate([rgb * alpha, alpha], axis=1)
