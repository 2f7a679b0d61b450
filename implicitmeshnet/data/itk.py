"""SimpleITK, the optional library (extra `formats`) that reads NRRD, MetaImage and DICOM: its only user.

It is imported when a file first needs it. Positions are turned from its LPS to RAS, arrays to (X, Y, Z).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np

from implicitmeshnet.script import InputError, shorten

EXTRA = "pip install 'implicitmeshnet[formats]'"
DICOM_READER = "GDCMImageIO"
TAGS = (
    "0008|0016",  # class
    "0008|103e",  # series description
    "0020|000e",  # series UID
    "0020|0011",  # series number
    "0020|0032",  # position
    "0020|0037",  # orientation
    "0028|0030",  # pixel spacing
    "ITK_InputFilterName",
    "NRRD_space",
)
"""What is asked of headers beside shape and place; others may hold letters that Python cannot."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Header:
    """What a file says of its voxels before they are read."""

    shape: tuple[int, ...]  # (X, Y, Z) of a volume
    channels: int  # numbers a voxel
    affine: np.ndarray  # (4, 4) float64, voxel -> world, mm RAS; of a file of fewer axes the identity
    tags: Mapping[str, str]  # those of TAGS that the header has


def available() -> bool:
    """Whether SimpleITK is installed."""
    return find_spec("SimpleITK") is not None


def check_available(path: Path | str) -> None:
    """Raise InputError, naming a file that needs it, where SimpleITK is not installed."""
    if not available():
        raise InputError(f"{path}: wanted SimpleITK to read this file, found it not installed ({EXTRA})")


def read_header(path: Path | str, reader: str = "", name: object = "") -> Header:
    """The header of a file, by the reader of a name, or by the one that its ending asks for.

    Raises InputError, which calls the file by `name`, where it is missing or damaged and where SimpleITK is.
    """
    file = _reader(path, reader)
    try:
        file.ReadImageInformation()
    except RuntimeError as error:
        raise _damaged(name or path, error) from error
    tags = {key: file.GetMetaData(key).strip() for key in TAGS if file.HasMetaDataKey(key)}
    return Header(file.GetSize(), file.GetNumberOfComponents(), _affine(file), tags)


def read_voxels(path: Path | str, reader: str = "", name: object = "") -> np.ndarray:
    """The voxels of a file of one number each, (X, Y, Z), rescaled as it says. Errors as `read_header`."""
    file = _reader(path, reader)
    try:
        image = file.Execute()
    except (RuntimeError, MemoryError) as error:
        raise _damaged(name or path, error) from error
    voxels = _library().GetArrayFromImage(image)  # (Z, Y, X)
    return voxels.transpose()


def _library() -> ModuleType:
    import SimpleITK

    SimpleITK.ProcessObject_GlobalWarningDisplayOff()  # what is doubtful about a file stands in our own warnings
    return SimpleITK


def _reader(path: Path | str, reader: str):
    check_available(path)
    file = _library().ImageFileReader()
    file.SetImageIO(reader)
    file.SetFileName(str(path))
    return file


def _affine(file) -> np.ndarray:
    """Voxel to world (4, 4), mm RAS, of what a reader reports about the first three axes."""
    axes = file.GetDimension()
    affine = np.eye(4)
    if axes >= 3:
        directions = np.reshape(file.GetDirection(), (axes, axes))[:3, :3]
        affine[:3, :3] = directions * file.GetSpacing()[:3]
        affine[:3, 3] = file.GetOrigin()[:3]
    return LPS_TO_RAS @ affine


def _damaged(name: object, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[-1].rpartition("): ")[2]
    return InputError(f"{name}: wanted an intact image, found one that cannot be read ({shorten(reason, 200)})")
