"""Volumes of any format that is read, by what a path names: NIfTI, NRRD, MetaImage, a DICOM series.

NIfTI goes through `nifti`, all else through SimpleITK. What a path is, is told by its content where it has a mark
(DICOM), otherwise by its ending; a file of unknown ending is tried as NIfTI, whose errors then count.
"""

import math
from pathlib import Path

import numpy as np

from implicitmeshnet.data import dicom, itk, nifti
from implicitmeshnet.data.itk import Header
from implicitmeshnet.data.volume import Grid, Volume
from implicitmeshnet.script import InputError

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
SEGMENTATION_ENDING = ".seg.nrrd"
"""Of 3D Slicer's segmentations, which are no images."""
ALONE = (".nrrd", ".mha")
"""Endings of files that hold their voxels themselves."""
DETACHED = (".nhdr", ".mhd")
"""Endings of headers whose voxels are in a file beside them."""


def read_image(path: Path | str) -> Volume:
    """Read the volume that a path names as float32, in the file's own voxel order.

    The path is a NIfTI, NRRD or MetaImage file, or a folder, zip or file of one DICOM series. Voxels that are NaN or
    infinite take the smallest finite value. Raises InputError where it is missing or damaged, not one 3-D channel, or
    has no invertible affine, where a folder or zip holds several series, and where SimpleITK is wanted and missing.
    """
    path = Path(path)
    if path.is_dir() or dicom.is_zip(path) or dicom.is_dicom(path):
        return dicom.read_series(dicom.only_series(path))
    if ending_of(path) not in ITK_ENDINGS:
        return nifti.read_image(path)
    header, warnings = _checked_header(path)
    voxels = nifti.finite_float32(path, _voxels(path))
    return Volume(voxels, _grid(header), warnings, str(path))


def read_labels(path: Path | str) -> Volume:
    """Read a NIfTI, NRRD or MetaImage label map as int32 in the file's own voxel order.

    Raises InputError as `read_image` does, and for values that are no integers or need more than 32 bits.
    """
    path = Path(path)
    if ending_of(path) not in ITK_ENDINGS:
        return nifti.read_labels(path)
    header, warnings = _checked_header(path)
    grid = _grid(header)
    labels = nifti.integer_labels(path, nifti.Stored(_voxels(path), 1.0, 0.0, grid, warnings))
    return Volume(labels, grid, warnings, str(path))


def ending_of(path: Path | str) -> str | None:
    """Which of ENDINGS a file's name has, whatever its case; None for another one."""
    name = Path(path).name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def stem_of(path: Path | str) -> str:
    """A file's name without its ending of ENDINGS."""
    return Path(path).name[: -len(ending_of(path) or "") or None]


def _checked_header(path: Path) -> tuple[Header, tuple[str, ...]]:
    """The header of an NRRD or MetaImage file, and a sentence on what is doubtful about it; InputError as above."""
    itk.check_available(path)
    if not path.is_file():
        raise InputError(f"{path}: wanted a file, found {'something else' if path.exists() else 'none'}")
    header = itk.read_header(path)
    nifti.check_shape(path, header.shape)
    if header.channels != 1:
        raise InputError(f"{path}: wanted one number per voxel, found {header.channels}")
    nifti.check_affine(path, header.affine)
    claimed = math.prod(header.shape)
    if ending_of(path) in ALONE and claimed > path.stat().st_size * nifti.DEFLATE_LIMIT:
        raise InputError(f"{path}: wanted an intact image, found a header that claims {claimed} voxels")
    if header.tags.get("ITK_InputFilterName") == "NrrdImageIO" and "NRRD_space" not in header.tags:
        doubt = "the header names no space, so left and right are a guess; took the identity in LPS, as ITK does"
        return header, (f"{path}: {doubt}",)
    return header, ()


def _voxels(path: Path) -> np.ndarray:
    """The voxels (X, Y, Z) of a file whose header is checked. Raises InputError where they are no real numbers."""
    voxels = itk.read_voxels(path)
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path}: wanted one real number per voxel, found {voxels.dtype}")
    return voxels.reshape(voxels.shape[:3], order="F")


def _grid(header: Header) -> Grid:
    x, y, z = header.shape[:3]
    return Grid((x, y, z), header.affine)
