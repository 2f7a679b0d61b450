"""Closed meshes of several structures to one field of labels on a fine grid, in which neighbours touch.

Of each region there is a signed distance: that of its mesh, or of what is in a mesh and in none that it encloses. A
point belongs to the region in which it lies deepest. What the grid is too coarse for is decided before: a gap between
two regions is closed, a wall around an enclosed structure is made thick enough. At last single voxels change, until the
faces between voxels make a manifold around every region: the image is then well-composed (Latecki, 3D well-composed
pictures, Graphical Models and Image Processing 59, 1997).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from scipy.ndimage import label

from implicitmeshnet.ops import mesh2sdf
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.crossing import snap_step
from implicitmeshnet.surfaces.labelmap import Mesh
from implicitmeshnet.surfaces.quality import edge_lengths

VOXELS_PER_EDGE = 3
"""So fine is the grid, relative to the meshes' mean edge."""
MOST_VOXELS = 256
"""Along the longest side of the grid, which bounds time and memory."""
MARGIN = 4
"""Voxels around a mesh within which its distance is known."""
GAP = 1.0
"""Spacings of a gap between structures below which it is closed: it may fall between voxels."""
WALL = 3**0.5
"""Spacings to which a wall around an enclosed structure is thickened: so many have no holes, however the wall lies.

Gaps of as much could be closed alike, but that doubles the change of volumes."""
SMALL = 27
"""Voxels; smaller pieces of a region go to their surroundings."""
LAST_MM = 5.0
"""By which a region becomes the shallowest where a small piece of it was given away, so that it does not come back."""
ROUNDS = 8
"""In which voxels change for the regions to become manifold, and whole."""
CORNERS = np.array(list(product((0, 1), repeat=3)))
"""The eight voxels of a cell (8, 3); those that lie across from each other add up to 7."""
SQUARES = [np.flatnonzero(CORNERS[:, axis] == side) for axis in range(3) for side in (0, 1)]
"""The voxels of a cell's faces: the first and the last lie across from each other, as do the other two."""


@dataclass(frozen=True, eq=False)
class RegionField:
    """Regions on a regular grid along the world's axes; region 0 is outside, region s + 1 is structure s."""

    labels: np.ndarray  # (X, Y, Z) uint8, outside along the borders
    depths: np.ndarray  # (S + 1, X, Y, Z) float32 signed distances in mm, negative inside; the deepest has the voxel
    origin_mm: np.ndarray  # (3,) of the first voxel's centre
    spacing_mm: float
    critical: int
    """Cells at which the surface around some region is no manifold."""


def region_field(meshes: Sequence[Mesh], structures: Structures, kept_wall_mm: float) -> RegionField:
    """The regions of the structures' closed meshes, vertices in world mm.

    Around an enclosed structure a wall of `kept_wall_mm` or more stays, and is made as thick as the grid resolves.
    Raises InputError for coordinates that are not finite.
    """
    origin_mm, spacing_mm, shape = _grid(meshes)
    distances = np.stack([_distance(mesh, origin_mm, spacing_mm, shape) for mesh in meshes])
    _thicken_walls(distances, structures, kept_wall_mm, WALL * spacing_mm)
    depths = _depths(distances, structures)
    _close_gaps(depths, distances, GAP * spacing_mm)
    labels = depths.argmin(0).astype(np.uint8)
    for _ in range(ROUNDS):
        pieces = _remove_small_pieces(labels, depths)
        changes = _make_manifold(labels, depths)
        if not pieces and not changes:
            break
    critical = int(np.count_nonzero(_critical(labels)))
    return RegionField(labels, depths, origin_mm, spacing_mm, critical)


def _grid(meshes: Sequence[Mesh]) -> tuple[np.ndarray, float, np.ndarray]:
    """Origin, spacing and shape of a grid around all meshes, in numbers that vertices can have exactly."""
    points = np.concatenate([vertices for vertices, _ in meshes])
    step = snap_step(points) * 4  # of the grid, which reaches beyond the points
    edge_mm = np.concatenate([edge_lengths(*mesh) for mesh in meshes]).mean()
    finest_mm = np.ptp(points, axis=0).max() / (MOST_VOXELS - 2 * MARGIN)
    wanted_mm = max(edge_mm / VOXELS_PER_EDGE, finest_mm)
    # Half a spacing is a whole number of steps, so that the middles of cells have exact coordinates.
    spacing_mm = 2 * step * max(np.ceil(wanted_mm / (2 * step)), 1)
    origin_mm = np.floor((points.min(0) - MARGIN * spacing_mm) / step) * step
    shape = np.ceil((points.max(0) - origin_mm) / spacing_mm).astype(int) + MARGIN + 1
    return origin_mm, float(spacing_mm), shape


def _distance(mesh: Mesh, origin_mm: np.ndarray, spacing_mm: float, shape: np.ndarray) -> np.ndarray:
    """The signed distance of a mesh at the grid's voxels, float32; far from it no more than MARGIN spacings."""
    vertices, faces = mesh
    voxels = (np.asarray(vertices, dtype=np.float64) - origin_mm) / spacing_mm
    start = np.maximum(np.floor(voxels.min(0)).astype(int) - MARGIN, 0)
    stop = np.minimum(np.ceil(voxels.max(0)).astype(int) + MARGIN + 1, shape)
    half = ((stop - start).max() - 1) / 2  # of a cube that begins at `start`
    centred = torch.from_numpy((voxels - start) / half - 1).float()
    corners = torch.as_tensor(np.ascontiguousarray(faces), dtype=torch.int64)
    cube = mesh2sdf(centred, corners, int(2 * half + 1)).numpy() * np.float32(half * spacing_mm)
    distance = np.full(shape, MARGIN * spacing_mm, dtype=np.float32)
    own = tuple(slice(first, last) for first, last in zip(start, stop, strict=True))
    distance[own] = cube[tuple(slice(0, size) for size in stop - start)]
    return distance


def _thicken_walls(distances: np.ndarray, structures: Structures, kept_wall_mm: float, thick_mm: float) -> None:
    """Move enclosed structures inward, as their distances (S, X, Y, Z) say, where a wall is too thin for the grid."""
    for outer, inside in enumerate(structures.encloses):
        for inner in inside:
            thickness = distances[inner] - distances[outer]
            moved = np.maximum(distances[inner], distances[outer] + np.float32(thick_mm))
            distances[inner] = np.where(thickness >= kept_wall_mm, moved, distances[inner])


def _depths(distances: np.ndarray, structures: Structures) -> np.ndarray:
    """The signed distances of the regions (S + 1, X, Y, Z), of those of the meshes (S, X, Y, Z)."""
    depths = np.concatenate([-distances.min(0, keepdims=True), distances])
    for outer, inside in enumerate(structures.encloses):
        for inner in inside:
            np.maximum(depths[outer + 1], -distances[inner], out=depths[outer + 1])
    return depths


def _close_gaps(depths: np.ndarray, distances: np.ndarray, gap_mm: float) -> None:
    """Make the outside shallower than the regions where it is a gap between two meshes narrower than `gap_mm`.

    A voxel lies in a gap where the ways away from the two meshes, of distances (S, X, Y, Z), are opposed.
    """
    close = distances <= gap_mm  # beyond, no gap that counts begins
    near = np.flatnonzero((depths[0] < 0) & (np.count_nonzero(close, axis=0) > 1))
    voxels = np.unravel_index(near, depths.shape[1:])
    between = np.zeros(len(near), dtype=bool)
    ways = [_gradient(distance, voxels) for distance in distances]
    for one, other in combinations(range(len(ways)), 2):
        opposed = (ways[one] * ways[other]).sum(0) < 0
        width = distances[one][voxels] + distances[other][voxels]
        between |= opposed & (width <= gap_mm)
    x, y, z = (index[between] for index in voxels)
    depths[0, x, y, z] = depths[1:, x, y, z].max(0) + gap_mm


def _gradient(distance: np.ndarray, voxels: tuple[np.ndarray, ...]) -> np.ndarray:
    """Along which a distance (X, Y, Z) grows at voxels (N,) along each axis, (3, N) in mm over two voxels."""
    along = []
    for axis in range(3):
        ends = []
        for step in (1, -1):
            index = list(voxels)
            index[axis] = np.clip(index[axis] + step, 0, distance.shape[axis] - 1)
            ends.append(distance[tuple(index)])
        along.append(ends[0] - ends[1])
    return np.stack(along)


def _remove_small_pieces(labels: np.ndarray, depths: np.ndarray) -> int:
    """Give small pieces of regions to what is deepest there otherwise; the largest piece of each stays.

    Gives how many voxels changed.
    """
    changed = 0
    for region in range(len(depths)):
        pieces, _ = label(labels == region)
        sizes = np.bincount(pieces.ravel())[1:]
        if not len(sizes):
            continue
        small = sizes < SMALL
        small[sizes.argmax()] = False
        x, y, z = np.nonzero(np.concatenate([[False], small])[pieces])
        depths[region, x, y, z] = depths[:, x, y, z].max(0) + LAST_MM
        labels[x, y, z] = depths[:, x, y, z].argmin(0)
        changed += len(x)
    return changed


def _make_manifold(labels: np.ndarray, depths: np.ndarray) -> int:
    """Change single voxels where the surface around a region is no manifold, as long as fewer such places are left.

    Gives how many voxels changed.
    """
    changed = 0
    for cell in np.argwhere(_critical(labels)):
        changed += _mend(labels, depths, cell)
    return changed


def _mend(labels: np.ndarray, depths: np.ndarray, cell: np.ndarray) -> bool:
    """Change one voxel of a cell so that fewer places around it are critical, if any can; the least deep change."""
    voxels = cell + CORNERS
    own = labels[tuple(voxels.T)]
    around = np.stack([_block(labels, voxel) for voxel in voxels])  # (8, 3, 3, 3)
    before = _critical(around).sum((1, 2, 3))
    best = (np.inf, 0, 0)
    for region in np.unique(own):
        changed = around.copy()
        changed[:, 1, 1, 1] = region
        better = np.flatnonzero(_critical(changed).sum((1, 2, 3)) < before)
        for corner in better:
            x, y, z = voxels[corner]
            cost = depths[region, x, y, z] - depths[own[corner], x, y, z]
            best = min(best, (float(cost), int(corner), int(region)))
    if best[0] < np.inf:
        labels[tuple(voxels[best[1]])] = best[2]
    return best[0] < np.inf


def _block(labels: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """The 3 x 3 x 3 labels around a voxel."""
    return labels[tuple(slice(index - 1, index + 2) for index in voxel)]


def _critical(labels: np.ndarray) -> np.ndarray:
    """How many places of each cell of labels (..., X, Y, Z) make a surface no manifold: (..., X - 1, Y - 1, Z - 1).

    Two voxels of a region may not meet at an edge, or at a corner, alone, and neither may two that are not of it.
    """
    corners = [_corner(labels, offset) for offset in CORNERS]
    count = np.zeros(corners[0].shape, dtype=np.uint8)
    for square in SQUARES:
        a, b, c, d = (corners[number] for number in square)
        count += (a == d) & (b != a) & (c != a)
        count += (b == c) & (a != b) & (d != b)
    for first in range(4):
        one = corners[first]
        across = corners[7 - first]
        others = [corners[number] for number in range(8) if number not in (first, 7 - first)]
        alone = one == across
        within = (one != others[0]) & (across != others[0])
        for other in others:
            alone = alone & (other != one)
            within = within & (other == others[0])
        count += alone
        count += within
    return count


def _corner(labels: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """One voxel of every cell of labels (..., X, Y, Z)."""
    x, y, z = (slice(start, size - 1 + start) for start, size in zip(offset, labels.shape[-3:], strict=True))
    return labels[..., x, y, z]
