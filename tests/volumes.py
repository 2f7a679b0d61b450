"""The masks, grids, cases on disk and damaged files of which several test files build their cases."""

import random
from pathlib import Path

import numpy as np

from implicitmeshnet.data.dataset import Case
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.data.volume import Grid
from implicitmeshnet.tissues import Tissue

BOXES_AFFINE = np.array([[0, -1.0, 0, 30], [1.5, 0, 0, -8], [0, 0, 2.0, 5], [0, 0, 0, 1]])
"""Of `write_boxes`."""


def block_mask(shape, start, stop) -> np.ndarray:
    """True from voxel `start` up to, and without, voxel `stop`."""
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = True
    return mask


def ball_mask(shape, centre, radius_mm: float, spacing_mm=(1.0, 1.0, 1.0)) -> np.ndarray:
    """True at the voxels whose centres are nearer than a radius to a centre, which is given in voxels."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    squares = [((axis - middle) * mm) ** 2 for axis, middle, mm in zip(axes, centre, spacing_mm, strict=True)]
    return sum(squares) < radius_mm**2


def grid_around(centre_mm, shape, directions) -> Grid:
    """A grid with its middle at a place of the world, whose axes run along the columns of directions, in mm a voxel."""
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(tuple(shape), affine)


def write_case(folder: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> Case:
    """A labelled case in the naming of MM-WHS."""
    case = Case(name, folder / f"{name}_image.nii.gz", folder / f"{name}_label.nii.gz")
    write_volume(case.image, image, affine)
    write_volume(case.label, label, affine)
    return case


def write_boxes(folder: Path, name="ct", values=(500, 420), affine=BOXES_AFFINE) -> Case:
    """A volume of 20 x 30 x 16 voxels with one box for each value, brighter than the rest."""
    labels = np.zeros((20, 30, 16), np.int16)
    for index, value in enumerate(values):
        labels[4:12, 4 + 10 * index : 12 + 10 * index, 4:12] = value
    return write_case(folder, name, np.where(labels > 0, 400, -50).astype(np.int16), labels, affine)


def write_two_blobs(folder: Path, case: int, generator: np.random.Generator, shift: int = 0) -> Case:
    """A noisy volume of 20 x 20 x 20 voxels of 4 mm with two boxes, 500 and 420, moved by `shift` voxels along x."""
    labels = np.zeros((20, 20, 20), np.int16)
    labels[4:10, 5:12, 6:13], labels[11:16, 6:13, 5:12] = 500, 420
    labels = np.roll(labels, shift, 0)
    image = (labels + generator.normal(0, 50, labels.shape)).astype(np.int16)
    return write_case(folder, f"ct_{case}", image, labels, np.diag([4.0, 4, 4, 1]))


def spoil(content: bytes, rng: random.Random, pieces: tuple[bytes, ...], header: int) -> bytes:
    """A file of which one to four pieces are overwritten, inserted, left out or cut off, most within its header."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(min(len(content), rng.choice((header, 10**9))) + 1)
        piece = rng.choice(pieces)
        content[start : start + rng.choice((0, 1, len(piece), 40))] = piece
        if rng.random() < 0.15:
            del content[start:]
    return bytes(content)


def tissue_heart() -> tuple[np.ndarray, np.ndarray]:
    """Tissues (40, 36, 32) uint8 of voxels of 4 mm, and their label map: four balls in fat, in a body in air.

    The left ventricle with its muscle lies in the middle, longer along z, the right one beside it along x, and the left
    atrium below.
    """
    shape = (40, 36, 32)
    tissues = np.full(shape, Tissue.AIR, np.uint8)
    tissues[3:-3, 3:-3] = Tissue.FAT
    for tissue, centre, radius_mm, spacing_mm in (
        (Tissue.RV, (26, 18, 16), 22, (4, 4, 3)),
        (Tissue.LA, (20, 18, 6), 18, (4, 4, 4)),
        (Tissue.MYOCARDIUM, (19, 18, 16), 26, (4, 4, 3)),
        (Tissue.LV, (19, 18, 16), 18, (4, 4, 2.5)),
    ):
        tissues[ball_mask(shape, centre, radius_mm, spacing_mm)] = tissue
    labels = np.zeros(shape, np.int16)
    for tissue, value in ((Tissue.LV, 500), (Tissue.RV, 600), (Tissue.LA, 420), (Tissue.MYOCARDIUM, 205)):
        labels[tissues == tissue] = value
    return tissues, labels


def write_tissues(folder: Path, name: str) -> Case:
    """The `tissue_heart` as a case whose image is its tissue map."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case(name, folder / f"{name}_tissues.nii.gz", folder / f"{name}_label.nii.gz")
    for path, data in zip(case.files, tissue_heart(), strict=True):
        write_volume(path, data, np.diag([4.0, 4, 4, 1]))
    return case
