"""Where a plane cuts a closed mesh: the contours of a slice as exact polygons."""

import numpy as np


def section(vertices: np.ndarray, faces: np.ndarray, axis: int, position: float) -> list[np.ndarray]:
    """The closed lines along which the plane across an axis at a position cuts a closed, oriented mesh.

    Vertices (V, 3) in any orthogonal coordinates, faces (F, 3). Each line is (N, 2) in the two other axes, in their
    order; its last point is not the first one again. A vertex in the plane counts as below it.
    """
    above = vertices[:, axis] > position
    corners = above[faces]  # (F, 3)
    cut = faces[corners.any(1) & ~corners.all(1)]
    # A face that is cut has one side that rises through the plane and one that falls, as its corners go round. The
    # neighbour behind the falling side runs along it the other way, so that there it rises: that is the next face.
    rising = _sides(cut, above, to_above=True)
    falling = _sides(cut, above, to_above=False)[:, ::-1]
    following = dict(zip(map(tuple, rising.tolist()), map(tuple, falling.tolist()), strict=True))
    across = [other for other in range(3) if other != axis]
    lines = []
    while following:
        side, behind = following.popitem()
        line = [side]
        while behind in following:
            line.append(behind)
            behind = following.pop(behind)
        start, end = vertices[np.array(line)].transpose(1, 0, 2)  # (N, 3) each
        share = (position - start[:, axis]) / (end[:, axis] - start[:, axis])
        lines.append((start + share[:, None] * (end - start))[:, across])
    return lines


def _sides(faces: np.ndarray, above: np.ndarray, to_above: bool) -> np.ndarray:
    """Of faces (F, 3) that a plane cuts the vertices (F, 2) of the one side that crosses it upwards, or downwards."""
    following = np.roll(faces, -1, axis=1)
    crossing = (above[faces] != above[following]) & (above[following] == to_above)
    side = crossing.argmax(1)
    rows = np.arange(len(faces))
    return np.stack([faces[rows, side], following[rows, side]], axis=1)
