"""A small renderer for previews of meshes, opaque and translucent."""

import numpy as np

VIEW_FROM = (-0.55, 1.0, 0.35)  # RAS: from left, anterior and above
LIGHT = (0.35, 0.45, 0.82)  # on the screen: right, up, towards the viewer
SAMPLES = 2  # rendered pixels per pixel of the result and axis


def render(meshes, pixels: int) -> np.ndarray:
    """Shaded view of meshes (vertices_mm (V, 3) RAS, faces (F, 3), RGBA (4,)): float RGBA (pixels, pixels, 4).

    Parallel projection along VIEW_FROM with superior up; normals are interpolated (Phong shading). Of each mesh the
    nearest front face shows, over whatever lies behind it where its colour is translucent.
    """
    toward = np.divide(VIEW_FROM, np.linalg.norm(VIEW_FROM))
    right = np.cross((0.0, 0.0, 1.0), toward) / np.hypot(*toward[:2])
    camera = np.stack([right, np.cross(toward, right), toward], axis=1)  # world RAS -> screen right, up, towards
    views = [np.asarray(vertices, dtype=np.float64) @ camera for vertices, _, _ in meshes]
    low, high = (pick([pick(view, axis=0) for view in views], axis=0) for pick in (np.min, np.max))
    size = pixels * SAMPLES
    scale = 0.94 * size / max((high - low)[:2].max(), 1e-9)
    layers = []
    for view, (_, faces, colour) in zip(views, meshes, strict=True):
        screen = (view - (low + high) / 2) * scale + [size / 2, size / 2, 0]
        pixel, depth, normal = _nearest(*_fragments(screen, np.asarray(faces), size))
        layers.append((pixel, depth, _shade(normal, colour)))
    picture = _blend(*map(np.concatenate, zip(*layers, strict=True)), size * size)
    picture = picture.reshape(pixels, SAMPLES, pixels, SAMPLES, 4).mean((1, 3))
    picture[..., :3] /= np.maximum(picture[..., 3:], 1e-9)
    return picture[::-1].clip(0, 1)


def _nearest(pixel, depth, normal):
    """Of the fragments of one mesh the closest of each pixel, so the last in order of depth."""
    order = np.lexsort((depth, pixel))
    order = order[np.diff(pixel[order], append=-1) != 0]
    return pixel[order], depth[order], normal[order]


def _blend(pixel, depth, colour, count: int) -> np.ndarray:
    """Fragments, colours (N, 4) with premultiplied alpha, over each other from far to near: (count, 4)."""
    order = np.lexsort((depth, pixel))
    pixel = pixel[order]
    colour = colour[order]
    first = np.flatnonzero(np.diff(pixel, prepend=-1))
    behind = np.arange(len(pixel)) - np.repeat(first, np.diff(first, append=len(pixel)))  # fragments behind each
    picture = np.zeros((count, 4))
    for rank in range(behind.max(initial=-1) + 1):
        chosen = behind == rank
        where = pixel[chosen]
        picture[where] = colour[chosen] + (1 - colour[chosen, 3:]) * picture[where]
    return picture


def _fragments(screen, faces, size: int):
    """Each pixel that each front face covers: pixel index (N,), depth (N,) and unit normal (N, 3)."""
    corners = screen[faces]  # (F, 3, 3)
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # of twice the area
    vertex_normals = np.zeros_like(screen)
    np.add.at(vertex_normals, faces, face_normals[:, None])
    front = face_normals[:, 2] > 0
    corners, normals, area = corners[front], vertex_normals[faces[front]], face_normals[front, 2]
    start = np.ceil(corners[..., :2].min(1)).astype(int).clip(0, size)
    extent = (np.floor(corners[..., :2].max(1)).astype(int) + 1).clip(0, size) - start  # (F, 2)
    count = extent.prod(1)
    face = np.repeat(np.arange(len(corners)), count)
    step = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    point = start[face] + np.stack([step % extent[face, 0], step // extent[face, 0]], axis=1)
    weights = np.empty((len(face), 3))
    for corner in range(3):
        a, b = corners[face, corner - 2, :2], corners[face, corner - 1, :2]
        weights[:, corner] = (
            (b[:, 0] - a[:, 0]) * (point[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (point[:, 0] - a[:, 0])
        ) / area[face]
    inside = (weights >= 0).all(1)
    face, point, weights = face[inside], point[inside], weights[inside]
    normal = np.einsum("nc,ncd->nd", weights, normals[face])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return point[:, 1] * size + point[:, 0], np.einsum("nc,nc->n", weights, corners[face, :, 2]), normal


def _shade(normal, colour) -> np.ndarray:
    """RGBA (N, 4), alpha premultiplied, of unit normals (N, 3) on the screen under a colour RGBA.

    Ambient and Lambert light, a soft highlight, darker rims; what is translucent is less so at its rims.
    """
    light = np.divide(LIGHT, np.linalg.norm(LIGHT))
    half = light + np.array([0, 0, 1])
    lambert = (normal @ light).clip(0)[:, None]
    highlight = (normal @ (half / np.linalg.norm(half))).clip(0)[:, None] ** 40
    rim = 0.55 + 0.45 * normal[:, 2:].clip(0) ** 0.6
    rgb = (np.array(colour[:3]) * (0.3 + 0.75 * lambert) * rim + 0.22 * highlight).clip(0, 1)
    alpha = colour[3] + (1 - colour[3]) * (1 - normal[:, 2:].clip(0, 1)) ** 2
    return np.concatenate([rgb * alpha, alpha], axis=1)
