"""A patient's tissues on a grid, and where in it the heart lies and how it is turned: what random appearance needs.

Of each voxel the four tissues are kept that fill most of it, with their shares: an image of any contrast that is made
of them has the partial volume that resampling the image itself would have, in eight bytes a voxel.
"""

from dataclasses import dataclass, replace

import numpy as np

from implicitmeshnet.data.ellipsoids import ellipsoids_of
from implicitmeshnet.data.volume import Grid, Volume, covered, shares
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures
from implicitmeshnet.tissues import Tissue

PARTS = 4
"""Tissues that are kept of a voxel."""
WHOLE = 255
"""The sum of their shares in a voxel that the volume covers."""
_SOLID = Structures(
    tuple(tissue.name for tissue in Tissue if tissue != Tissue.AIR),
    tuple((tissue.value,) for tissue in Tissue if tissue != Tissue.AIR),
    ((),) * (len(Tissue) - 1),
)
"""All tissues but the air around the body, as structures that can be resampled; its share is what they leave."""


def check_tissues(tissues: Volume) -> None:
    """Raise InputError where a tissue map has a value that is no tissue's."""
    highest = int(tissues.data.max())
    if highest > max(Tissue):
        raise InputError(f"{tissues.name}: wanted the values 0 to {max(Tissue)} of a tissue map, found {highest}")


def tissue_parts(tissues: Volume, grid: Grid) -> np.ndarray:
    """The PARTS tissues that fill most of each voxel of a grid, and their shares: uint8 (2 * PARTS, X, Y, Z).

    The first PARTS of them are the tissues, by falling share, the last their shares, of WHOLE; where the volume does
    not reach, all shares are 0. Raises ValueError as `resample_image`.
    """
    tissue = np.zeros((PARTS, *grid.shape), np.uint8)
    share = np.zeros((PARTS, *grid.shape), np.float32)
    air = covered(tissues.grid, grid).astype(np.float32)
    for structure, filled in shares(tissues, grid, _SOLID):
        air -= filled
        _insert(tissue, share, Tissue[_SOLID.names[structure]], filled)
    _insert(tissue, share, Tissue.AIR, np.maximum(air, 0))
    total = share.sum(0)
    rounded = np.floor(share * (WHOLE / np.maximum(total, 1e-6)))
    rounded[0] += np.where(total > 0, WHOLE - rounded.sum(0), 0)
    return np.concatenate([tissue, rounded.astype(np.uint8)])


def _insert(tissue: np.ndarray, share: np.ndarray, value: int, filled: np.ndarray) -> None:
    """Put a tissue that fills so much of each voxel (X, Y, Z) at its place among the largest shares, in place."""
    carried = np.full(filled.shape, value, np.uint8)
    for rank in range(PARTS):
        larger = filled > share[rank]
        # What is pushed out of this rank is tried at the next one.
        tissue[rank], carried = np.where(larger, carried, tissue[rank]), np.where(larger, tissue[rank], carried)
        share[rank], filled = np.maximum(filled, share[rank]), np.minimum(filled, share[rank])


@dataclass(frozen=True, eq=False)
class Anatomy:
    """Where a heart lies in a volume: in mm along the volume's axes, from its centre."""

    centres_mm: np.ndarray  # (S, 3) of the structures, NaN for one that is not there
    semi_axes_mm: np.ndarray  # (S, 3) of ellipsoids with their moments
    axes: np.ndarray  # (3, 3), columns: from the left to the right ventricle, the third, the LV's base to its apex
    lv_mm: np.ndarray  # (4,) middle of the LV's blood, and its half length along its long axis; NaN where unknown
    left_atrium: np.ndarray  # (S,) bool, which structure it is

    @property
    def known(self) -> np.ndarray:
        """Which structures are there: (S,) bool."""
        return np.isfinite(self.centres_mm).all(1)

    def seen_from(self, grid: Grid, other: Grid) -> "Anatomy":
        """The same heart, of a volume on a grid, in another volume whose axes are parallel."""
        directions = grid.affine[:3, :3] / grid.spacing_mm
        step = np.linalg.inv(directions) @ (_centre_mm(grid) - _centre_mm(other))
        return replace(self, centres_mm=self.centres_mm + step, lv_mm=self.lv_mm + np.append(step, 0))


def anatomy_of(classes: np.ndarray, tissue: np.ndarray, structures: Structures, grid: Grid) -> Anatomy:
    """The anatomy in a class map and a map of each voxel's main tissue, both (X, Y, Z) on a grid."""
    half_mm = (np.array(grid.shape) - 1) / 2 * grid.spacing_mm
    ellipsoids = ellipsoids_of(classes, structures) * half_mm  # (S, 2, 3)
    left_atrium = np.array(structures.names) == "LA"
    left, right, atrium = (_places_mm(tissue == blood, grid) for blood in (Tissue.LV, Tissue.RV, Tissue.LA))
    if min(map(len, (left, right, atrium))) < 3:
        return Anatomy(ellipsoids[:, 0], ellipsoids[:, 1], np.eye(3), np.full(4, np.nan), left_atrium)
    middle = left.mean(0)
    _, directions = np.linalg.eigh(np.cov(left.T))
    apex = directions[:, 2]  # of the largest variance
    apex = apex * np.sign(apex @ (middle - atrium.mean(0)))
    septum = right.mean(0) - middle
    septum = septum - (septum @ apex) * apex
    septum /= np.linalg.norm(septum)
    half_length = np.ptp(left @ apex) / 2
    axes = np.stack([septum, np.cross(apex, septum), apex], 1)
    return Anatomy(ellipsoids[:, 0], ellipsoids[:, 1], axes, np.append(middle, half_length), left_atrium)


def _places_mm(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Where a mask (X, Y, Z) is, (N, 3) in mm along the grid's axes from its centre."""
    return (np.argwhere(mask) - (np.array(grid.shape) - 1) / 2) * grid.spacing_mm


def _centre_mm(grid: Grid) -> np.ndarray:
    """The world position (3,) of a grid's centre."""
    return grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
