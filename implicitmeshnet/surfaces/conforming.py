"""One surface of several structures, in which those that touch share their wall, for mesh generators and solvers.

The meshes become a field of labels (`regions`), and that a surface by the dual of its grid: a vertex in each cell of
eight voxels that has several labels, a face between any two neighbouring voxels of different ones (SurfaceNets: Gibson,
MICCAI 1998; of several labels: Frisken, Journal of Computer Graphics Techniques 11, 2022). Vertices lie where the
signed distances of the regions are equal, spread evenly over the surface, and stay in their cells. Where faces cross
nevertheless, their vertices go towards the middles of their cells: there the surface is that of the voxels, which
crosses nothing, so that an end exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_matrix

from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.crossing import crossing_pairs, snapped
from implicitmeshnet.surfaces.labelmap import Mesh
from implicitmeshnet.surfaces.quality import smallest_angles
from implicitmeshnet.surfaces.regions import CORNERS, RegionField, region_field

INSET = 0.1
"""Of a cell's side, that vertices keep from its faces."""
LEAST = 0.02
"""Spacings by which a voxel lies deeper in its own region than in others, for places to be found in between."""
RELAXATIONS = 10
STEP = 0.5
"""Of the way to the mean of its neighbours that a vertex goes in a relaxation."""
FLAT = 0.1
"""Slope of a difference, per cell, below which its zero is sought no farther."""
RETREATS = 4
"""In so many steps a vertex goes to the middle of its cell."""
EDGES = [(one, other) for one, other in combinations(range(8), 2) if np.abs(CORNERS[one] - CORNERS[other]).sum() == 1]
"""The pairs of a cell's voxels that are neighbours, (12, 2)."""


@dataclass(frozen=True, eq=False)
class Conforming:
    """A surface around several regions; region 0 is outside, region s + 1 is structure s."""

    vertices: np.ndarray  # (V, 3) float64 in world mm, such that float32 holds the very numbers
    faces: np.ndarray  # (F, 3)
    regions: (
        np.ndarray
    )  # (F, 2) which the face lies between; counter-clockwise seen from the second, which is larger or 0
    field: RegionField  # that the surface was made of
    retreated: int
    """Vertices that were moved for no faces to cross."""

    @property
    def missing(self) -> list[int]:
        """The structures that the grid is too coarse for, none of which is in the surface."""
        regions = np.arange(1, len(self.field.depths))
        return (regions[~np.isin(regions, self.regions)] - 1).tolist()

    def around(self, region: int) -> Mesh:
        """The closed surface around one region, faces counter-clockwise from outside it; vertices are those of all."""
        outward = self.faces[self.regions[:, 0] == region]
        inward = self.faces[self.regions[:, 1] == region]
        return self.vertices, np.concatenate([outward, inward[:, ::-1]])


def conforming_surface(meshes: Sequence[Mesh], structures: Structures, kept_wall_mm: float) -> Conforming:
    """The surface of structures' closed meshes, vertices in world mm.

    See `regions.region_field` for what the grid changes, and for `kept_wall_mm`. The same input gives the same surface.
    Raises InputError for coordinates that are not finite.
    """
    field = region_field(meshes, structures, kept_wall_mm)
    dual = _dual(field.labels)
    places = _relaxed(dual, _crossings(dual, field), field)
    return _without_crossings(dual, places, field)


@dataclass(frozen=True, eq=False)
class Dual:
    """The surface between the labels of a grid, as cells and quads."""

    cells: np.ndarray  # (V, 3) the first voxel of each vertex's cell
    labels: np.ndarray  # (V, 8) of the cells' voxels
    quads: np.ndarray  # (Q, 4) vertices around each pair of neighbouring voxels
    axes: np.ndarray  # (Q,) along which the two voxels lie
    upward: np.ndarray  # (Q,) bool, whether the quad is counter-clockwise seen from above, along its axis
    regions: np.ndarray  # (Q, 2)

    @property
    def count(self) -> np.ndarray:
        """How many labels each cell has, (V,)."""
        ordered = np.sort(self.labels, axis=1)
        return 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1)


def _dual(labels: np.ndarray) -> Dual:
    """The dual surface of labels (X, Y, Z), of which the border has one label."""
    quads = []
    axes = []
    pairs = []
    for axis in range(3):
        low = labels[tuple(slice(None, -1) if each == axis else slice(None) for each in range(3))]
        high = labels[tuple(slice(1, None) if each == axis else slice(None) for each in range(3))]
        voxels = np.argwhere(low != high)
        quads.append(_around_edges(voxels, axis, labels.shape))
        axes.append(np.full(len(voxels), axis))
        pairs.append(np.stack([low[tuple(voxels.T)], high[tuple(voxels.T)]], 1))
    numbers, vertices = np.unique(np.concatenate(quads), return_inverse=True)
    regions = np.concatenate(pairs).astype(np.int64)
    upward = _is_first(regions[:, 0], regions[:, 1])
    corners = vertices.reshape(-1, 4)
    corners[~upward] = corners[~upward, ::-1]
    regions[~upward] = regions[~upward, ::-1]
    cells = np.stack(np.unravel_index(numbers, labels.shape), 1)
    of_cells = labels[tuple(np.moveaxis(cells[:, None] + CORNERS, -1, 0))]
    return Dual(cells, of_cells, corners, np.concatenate(axes), upward, regions)


def _is_first(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether a region's outside is the front of a face between two: that of the smaller one, or of the only one."""
    return (one != 0) & ((other == 0) | (one < other))


def _around_edges(voxels: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """The four cells around edges along an axis from voxels (Q, 3), counter-clockwise from above, as numbers (Q, 4)."""
    second = np.eye(3, dtype=int)[(axis + 1) % 3]
    third = np.eye(3, dtype=int)[(axis + 2) % 3]
    around = [voxels - second - third, voxels - third, voxels, voxels - second]
    return np.stack([np.ravel_multi_index(tuple(cell.T), shape) for cell in around], 1)


def _depths_at(field: RegionField, voxels: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The signed distances of regions (N,), one for each of the voxels (N, 3), in spacings."""
    x, y, z = voxels.T
    return field.depths[regions, x, y, z].astype(np.float64) / field.spacing_mm


def _crossings(dual: Dual, field: RegionField) -> np.ndarray:
    """The mean of where, along the edges of each cell, the deepest region changes: (V, 3) within the cell, 0 to 1."""
    total = np.zeros(dual.cells.shape)
    number = np.zeros(len(dual.cells))
    for one, other in EDGES:
        first = dual.labels[:, one].astype(int)
        second = dual.labels[:, other].astype(int)
        # How much deeper each voxel lies in its own region.
        at_one = dual.cells + CORNERS[one]
        at_other = dual.cells + CORNERS[other]
        start = _depths_at(field, at_one, second) - _depths_at(field, at_one, first)
        end = _depths_at(field, at_other, first) - _depths_at(field, at_other, second)
        known = (start > 0) & (end > 0)
        share = np.where(known, start / np.where(known, start + end, 1), 0.5)
        crossed = first != second
        place = CORNERS[one] + share[:, None] * (CORNERS[other] - CORNERS[one])
        total[crossed] += place[crossed]
        number += crossed
    return total / number[:, None]


def _relaxed(dual: Dual, places: np.ndarray, field: RegionField) -> np.ndarray:
    """Places (V, 3) within the cells, spread evenly and where all regions of their cell are equally deep."""
    mean, several = _neighbour_means(dual)
    differences = _differences(dual, field)
    places = np.clip(places, INSET, 1 - INSET)
    for _ in range(RELAXATIONS):
        aim = mean @ (dual.cells + places) - dual.cells
        places = np.where(several[:, None], places + STEP * (aim - places), places)
        for rows, difference in differences:
            places[rows] = _projected(places[rows], difference)
        places = np.clip(places, INSET, 1 - INSET)
    return places


def _neighbour_means(dual: Dual) -> tuple[csr_matrix, np.ndarray]:
    """What takes values at vertices to the means of their neighbours (V, V), and which vertices have enough of them.

    Where three regions meet, only neighbours count that lie along the same line; ends of such lines stay.
    """
    edges = np.unique(np.sort(dual.quads[:, [0, 1, 1, 2, 2, 3, 3, 0]].reshape(-1, 2), axis=1), axis=0)
    both = np.concatenate([edges, edges[:, ::-1]])
    count = dual.count
    both = both[count[both[:, 1]] >= count[both[:, 0]]]
    size = len(dual.cells)
    number = np.bincount(both[:, 0], minlength=size)
    weights = 1 / number[both[:, 0]]
    needed = np.where(count == 2, 1, np.where(count == 3, 2, size))
    return csr_matrix((weights, (both[:, 0], both[:, 1])), shape=(size, size)), number >= needed


def _differences(dual: Dual, field: RegionField) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is zero where all labels of a cell are equally deep: cells (R,) and values at their corners (R, 8), each
    time of the next two labels in the cells that have so many.

    At voxels of these two labels only the signs are left that they have, also where labels were changed.
    """
    differences = []
    ordered = np.sort(dual.labels, axis=1).astype(int)
    for place in range(1, len(CORNERS)):
        # A rise in the sorted labels is a pair of labels that follow each other.
        rows = np.flatnonzero(ordered[:, place] > ordered[:, place - 1])
        low = ordered[rows, place - 1]
        high = ordered[rows, place]
        values = []
        for corner in range(len(CORNERS)):
            voxels = dual.cells[rows] + CORNERS[corner]
            deeper = _depths_at(field, voxels, high) - _depths_at(field, voxels, low)
            label = dual.labels[rows, corner]
            deeper = np.where(label == low, np.maximum(deeper, LEAST), deeper)
            values.append(np.where(label == high, np.minimum(deeper, -LEAST), deeper))
        differences.append((rows, np.stack(values, 1)))
    return differences


def _projected(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places (V, 3) in cells moved along the gradient towards the zero of what is `values` (V, 8) at the corners."""
    weights = np.where(CORNERS, places[:, None], 1 - places[:, None])  # (V, 8, 3)
    value = (values * weights.prod(2)).sum(1)
    slope = np.empty(places.shape)
    for axis in range(3):
        others = np.delete(weights, axis, 2).prod(2)
        slope[:, axis] = (values * others * (2 * CORNERS[:, axis] - 1)).sum(1)
    steep = np.maximum((slope**2).sum(1), FLAT**2)
    return places - np.clip(value / steep, -1, 1)[:, None] * slope


def _without_crossings(dual: Dual, places: np.ndarray, field: RegionField) -> Conforming:
    """The surface of vertices at places (V, 3) in their cells, of which those draw back whose faces cross others.

    Faces whose vertices are all in the middles of their cells cross nothing, so each round has a vertex to move.
    """
    steps = np.zeros(len(places), dtype=int)
    pairs = np.zeros((0, 2), dtype=int)
    moved = np.ones(len(places), dtype=bool)
    while True:
        share = 1 - steps[:, None] / RETREATS
        inside = 0.5 + share * (places - 0.5)
        vertices = snapped(field.origin_mm + field.spacing_mm * (dual.cells + inside))
        faces = _triangles(dual, vertices)
        chosen = np.repeat(moved[dual.quads].any(1), 2)
        pairs = np.concatenate([pairs[~chosen[pairs].any(1)], crossing_pairs(vertices, faces, chosen)])
        moved = np.zeros(len(places), dtype=bool)
        moved[faces[pairs]] = True
        moved &= steps < RETREATS
        if not moved.any():
            break
        steps += moved
    regions = np.repeat(dual.regions, 2, axis=0)
    return Conforming(vertices, faces, regions, field, int(np.count_nonzero(steps)))


def _triangles(dual: Dual, vertices: np.ndarray) -> np.ndarray:
    """Each quad cut into two triangles (2 Q, 3) along the diagonal that leaves the larger smallest angle.

    No triangle may look backward along the quad's axis: the vertices lie in four quadrants around that, so there is
    always such a diagonal.
    """
    cuts = []
    worth = []
    for first in (0, 1):
        a, b, c, d = (dual.quads[:, (first + corner) % 4] for corner in range(4))
        cut = np.stack([np.stack([a, b, c], 1), np.stack([a, c, d], 1)], 1)  # (Q, 2, 3)
        angles = smallest_angles(vertices, cut.reshape(-1, 3)).reshape(-1, 2)
        forward = _along_axis(vertices, cut, dual).min(1) > 0
        cuts.append(cut)
        worth.append(angles.min(1) + 180.0 * forward)
    better = worth[1] > worth[0]
    return np.where(better[:, None, None], cuts[1], cuts[0]).reshape(-1, 3)


def _along_axis(vertices: np.ndarray, cut: np.ndarray, dual: Dual) -> np.ndarray:
    """How far the normals of each quad's triangles (Q, 2, 3) go the way that the quad looks along its axis: (Q, 2)."""
    a, b, c = (vertices[cut[..., corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    along = np.take_along_axis(normals, dual.axes[:, None, None], 2)[..., 0]
    return np.where(dual.upward[:, None], along, -along)
