"""NIfTI files in and out, placed in the world as ITK, and so 3D Slicer, places them: the only nibabel user.

A header says where a volume lies by two forms, sform and qform, and by voxel sizes, which may contradict each other.
They count in this order (ITK 5.4, NiftiImageIO::SetImageIOOrientationFromNIfTI):

1. The voxels' sizes are `pixdim`, always; a form gives directions and position alone. Zero or no number means 1.
2. The sform counts where its code is not 0, its axes are perpendicular, and the qform's code is 0, or its own code is
   1 ("scanner"), or both forms say the same. Else the qform counts where its code is not 0.
3. Both codes 0: the first voxel lies at the origin, the axes run to the patient's left, back and head.
4. Sizes and positions are in the unit of `xyzt_units`; unknown means mm.

Where ITK reads no file at all, an oblique sform without a qform, the sform counts.
"""

import math
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.volumeutils import array_from_file

from implicitmeshnet.data import gzipped
from implicitmeshnet.data.volume import Grid, Volume, voxels_apart
from implicitmeshnet.script import InputError, atomic_path

NiftiHeader = nib.Nifti1Header  # of which nibabel's Nifti2Header is a subclass

WRITTEN_AS = {"bool": np.uint8, "int64": np.int32, "float16": np.float32, "float64": np.float32}
MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Of xyzt_units: metre, millimetre, micrometre."""
DEFLATE_LIMIT = 1032  # bytes that one byte of gzip can stand for, at most
FARTHEST_MM = 1e6  # beyond it single precision is coarser than voxels
PERPENDICULAR = 1e-4  # by which products of unit axes may differ from 0 and 1, as in ITK
SINGULAR = 1e6  # condition number from which a matrix counts as not invertible
GEOMETRY = (
    "pixdim",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)
"""The header's fields that place a volume in the world."""
QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
NOTICEABLE_VOXELS = 0.01
"""By which two placements of one volume may lie apart unnoticed: above rounding, below harm."""


class Form(NamedTuple):
    """What a header's sform or qform says, in its own unit."""

    axes: np.ndarray  # (3, 3) unit columns
    sizes: np.ndarray  # (3,) lengths of the voxels' sides
    position: np.ndarray  # (3,) of the first voxel


class Stored(NamedTuple):
    """A file's voxels as they are stored, and what the header says of them."""

    voxels: np.ndarray  # (X, Y, Z), any number type
    slope: float  # value = stored number * slope + intercept
    intercept: float
    grid: Grid
    warnings: tuple[str, ...]

    @property
    def scaled(self) -> bool:
        return (self.slope, self.intercept) != (1, 0)


quiet = np.errstate(all="ignore")
"""Headers may hold any number. What is computed from it is checked, so numpy need not warn as well."""


@quiet
def read_grid(path: Path | str) -> Grid:
    """Shape, affine and header of a NIfTI file, from its header alone. Errors as `read_image`."""
    with _open(path) as (_, header):
        grid, _ = _grid(path, header)
    return grid


@quiet
def read_image(path: Path | str) -> Volume:
    """Read a NIfTI volume as float32, scaled by the header, in the file's own voxel order.

    Trailing axes of length 1 are dropped; voxels that are NaN or infinite take the smallest finite value. Raises
    InputError where the file is missing, damaged, no NIfTI, not one 3-D channel, or has no invertible affine.
    """
    stored = _read(path)
    data = finite_float32(path, _values(stored))
    return Volume(data, stored.grid, stored.warnings, str(path))


@quiet
def finite_float32(path: Path | str, values: np.ndarray) -> np.ndarray:
    """Voxel values as float32; those that are NaN or infinite take the smallest finite value.

    Raises InputError, naming the file, where none is finite.
    """
    data = values.astype(np.float32)  # what is too large for it is infinite
    if values.dtype.kind in "iu":
        return data
    finite = np.isfinite(data)
    if not finite.any():
        raise InputError(f"{path}: wanted finite voxel values, found none")
    if not finite.all():
        data[~finite] = data[finite].min()
    return data


def _values(stored: Stored) -> np.ndarray:
    """The voxels' values, in float32 where that holds every stored number exactly, else in float64."""
    if not stored.scaled:
        return stored.voxels
    exact: Any = np.float32 if stored.voxels.dtype.itemsize <= 2 else np.float64
    return stored.voxels.astype(exact) * exact(stored.slope) + exact(stored.intercept)


@quiet
def read_labels(path: Path | str) -> Volume:
    """Read a NIfTI label map as int32 in the file's own voxel order.

    Where integers are stored with a slope below 1, values are off by up to half of it: the nearest integer counts.
    Raises InputError as `read_image` does, and for values that are no integers or need more than 32 bits.
    """
    stored = _read(path)
    return Volume(integer_labels(path, stored), stored.grid, stored.warnings, str(path))


def integer_labels(path: Path | str, stored: Stored) -> np.ndarray:
    """The label values of a file's voxels, int32. Raises InputError as `read_labels` for what is no label value."""
    labels = stored.voxels
    if stored.scaled or labels.dtype.kind == "f":
        labels = _rounded(path, stored)
    if labels.min() < -(2**31) or labels.max() >= 2**31:
        raise InputError(f"{path}: wanted label values of at most 32 bits, found {labels.max():g}")
    return labels.astype(np.int32)


def _rounded(path: Path | str, stored: Stored) -> np.ndarray:
    """The voxels' values rounded to integers, float64. Raises InputError where one is none."""
    values = stored.voxels.astype(np.float64) * stored.slope + stored.intercept
    rounded = np.rint(values)
    tolerance = 1e-3
    quantised = stored.voxels.dtype.kind != "f" and abs(stored.slope) < 1
    if quantised:
        half_a_step = abs(stored.slope) / 2
        tolerance = max(tolerance, half_a_step * (1 + 1e-6))
    wrong = ~(np.abs(values - rounded) <= tolerance)  # NaN is wrong too
    if wrong.any():
        raise InputError(f"{path}: wanted integer label values, found {values[wrong][0]:g}")
    return rounded


@quiet
def write_volume(path: Path | str, data: np.ndarray, affine: np.ndarray, header: NiftiHeader | None = None) -> None:
    """Write data (X, Y, Z) as .nii or .nii.gz, whole or not at all, where its (4, 4) affine in mm says.

    With the `header` of a Grid that was read, its forms, codes and units are written as they are. Without one, the
    sform holds the affine exactly (in float32), and so does the qform where it can. bool is written as uint8, 64-bit
    numbers as 32-bit ones. Raises InputError for another suffix, for data or an affine that could not be read again,
    and for a path that cannot be written.
    """
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: wanted a name that ends in .nii or .nii.gz")
    data = np.asarray(data)
    check_shape(path, data.shape)
    affine = np.asarray(affine, np.float32).astype(np.float64)  # as the file will hold it
    check_affine(path, affine)
    data = data.astype(WRITTEN_AS.get(data.dtype.name, data.dtype), copy=False)
    # NIfTI-1 counts voxels along an axis in 16 bits.
    large = max(data.shape) >= 2**15 or isinstance(header, nib.Nifti2Header)
    image = nib.Nifti2Image(data, None) if large else nib.Nifti1Image(data, None)
    if header is None:
        _place(image, affine)
    else:
        for field in GEOMETRY:
            image.header[field] = header[field]
    with atomic_path(path) as temporary:
        if temporary.suffix == ".gz":
            with gzipped.writer(temporary) as stream:
                image.to_stream(stream)
        else:
            nib.save(image, temporary)


def _place(image: nib.Nifti1Image, affine: np.ndarray) -> None:
    """Write an affine (4, 4) in mm into the header's sform, and into its qform where that can hold it.

    A qform holds no shear, and for turns by nearly 180 degrees its single precision is too coarse.
    """
    header = image.header
    header.set_xyzt_units("mm")
    image.set_qform(affine, code="scanner", strip_shears=True)
    image.set_sform(affine, code="scanner")
    sizes, _ = _sizes(header)
    sform = _sform(header)
    qform = _qform(header, sizes)
    assert sform is not None and qform is not None  # both were just set
    wanted = _affine(sform, sizes, 1.0)
    held = _affine(qform, sizes, 1.0)
    if voxels_apart(_shape(header), wanted, held) > NOTICEABLE_VOXELS:
        header["qform_code"] = 0


@contextmanager
def _open(path: Path | str) -> Iterator[tuple[BufferedIOBase, NiftiHeader]]:
    """Yield a file's stream, at its start, and its checked NIfTI header; whatever goes wrong is an InputError."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe would be waited for
            raise InputError(f"{path}: wanted a file, found a pipe or a device")
        with open(path, "rb") as file:
            zipped = file.peek(2)[:2] == b"\x1f\x8b"  # the name may say otherwise
            stream = gzipped.reader(file) if zipped else file
            header = _header(path, stream)
            _check_header(path, header)
            size = os.fstat(file.fileno()).st_size
            _check_size(path, header, size * DEFLATE_LIMIT if zipped else size)
            yield stream, header
    except InputError:
        raise
    except (
        OSError,
        EOFError,
        zlib.error,
        gzipped.DamagedByIsal,
        ValueError,
        TypeError,
        ArithmeticError,
        MemoryError,
        HeaderDataError,
        HeaderTypeError,
    ) as error:
        strerror = getattr(error, "strerror", None)
        if strerror:
            raise InputError(f"{path}: cannot be read ({strerror})") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: wanted an intact NIfTI file, found a truncated or damaged one ({reason})") from error


def _header(path: Path | str, stream: BufferedIOBase) -> NiftiHeader:
    """The header at a stream's start, of whichever NIfTI version and byte order, unchecked."""
    start = stream.read(nib.Nifti2Header.template_dtype.itemsize)
    stream.seek(0)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(start):
            header = kind(start[: kind.template_dtype.itemsize], check=False)
            if bytes(header["magic"])[:3] in (b"n+1", b"n+2"):
                return header
    raise InputError(f"{path}: wanted a NIfTI volume in one file, found another kind of file")


def _check_header(path: Path | str, header: NiftiHeader) -> None:
    code = int(header["datatype"])
    known: Any = nib.nifti1.data_type_codes  # nibabel's own types do not say what it holds
    if code not in known.dtype or known.dtype[code].kind not in "iuf":
        name = known.label.get(code, code)
        raise InputError(f"{path}: wanted one real number per voxel, found data type {name}")
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise InputError(f"{path}: wanted 1 to 7 dimensions in the header, found {dimensions}")
    check_shape(path, _shape(header))


def check_shape(path: Path | str, shape: Sequence[int]) -> None:
    """Raise InputError, naming the file, where a shape is not (X, Y, Z) of 2 or more each, or that and axes of 1."""
    if len(shape) < 3 or min(shape[:3]) < 2 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: wanted a 3-D volume with one channel, found shape {tuple(shape)}")


def _check_size(path: Path | str, header: NiftiHeader, available: int) -> None:
    """Refuse a header that claims more voxels than the file can hold, before memory is taken for them."""
    claimed = math.prod(_shape(header)) * header.get_data_dtype().itemsize
    if claimed > available:
        raise InputError(
            f"{path}: wanted an intact NIfTI file, found a truncated or damaged one (its header claims"
            f" {claimed} bytes of voxels)"
        )


def check_affine(path: Path | str, affine: np.ndarray) -> None:
    """Raise InputError, naming the file, where an affine (4, 4) has no inverse or is no affine of a patient's in mm."""
    if not np.isfinite(affine).all() or np.linalg.cond(affine[:3, :3]) > SINGULAR:
        raise InputError(f"{path}: wanted an invertible affine, found {affine[:3].tolist()}")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm.min() < 1e-3 or spacing_mm.max() > 1e3:
        raise InputError(f"{path}: wanted a voxel spacing of 0.001 to 1000 mm, found {spacing_mm.tolist()}")
    first_mm = affine[:3, 3]
    if np.abs(first_mm).max() > FARTHEST_MM:
        raise InputError(
            f"{path}: wanted a first voxel within {FARTHEST_MM:g} mm of the world's origin, found it at"
            f" {first_mm.tolist()}"
        )


def _shape(header: NiftiHeader) -> tuple[int, ...]:
    """All dimensions; as Python's integers, because a product of them may exceed any other."""
    count = int(header["dim"][0])
    return tuple(header["dim"][1 : count + 1].tolist())


def _read(path: Path | str) -> Stored:
    with _open(path) as (stream, header):
        grid, warnings = _grid(path, header)
        offset = max(int(header["vox_offset"]), header.single_vox_offset)
        voxels = array_from_file(grid.shape, header.get_data_dtype(), stream, offset, mmap=False)
        stream.seek(0, os.SEEK_END)  # gzip compares its checksum there
    slope, intercept = _scaling(header)
    return Stored(voxels, slope, intercept, grid, warnings)


def _scaling(header: NiftiHeader) -> tuple[float, float]:
    """Slope and intercept as ITK takes them: a slope of 0 or no number is 1, an intercept of no number 0."""
    slope = float(header["scl_slope"])
    intercept = float(header["scl_inter"])
    if not math.isfinite(slope) or abs(slope) < np.finfo(float).eps:
        slope = 1.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _grid(path: Path | str, header: NiftiHeader) -> tuple[Grid, tuple[str, ...]]:
    """Where a volume lies, and a sentence on each thing that is doubtful about it."""
    first, second, third, *_ = _shape(header)
    shape = (first, second, third)
    unit = int(header["xyzt_units"]) & 7  # the other bits are the unit of time
    per_unit = MM_PER_UNIT.get(unit, 1.0)
    sizes, warnings = _sizes(header)
    sform = _sform(header)
    qform = _qform(header, sizes)
    if sform is None and qform is None and int(header["sform_code"]) > 0:
        raise InputError(f"{path}: wanted an invertible affine, found an sform that has no inverse")
    chosen = _choose(sform, qform, int(header["sform_code"]))
    affine = _affine(chosen, sizes, per_unit)
    check_affine(path, affine)
    if sform is None and qform is None:
        warnings.append(
            "the header gives no world position (sform and qform code 0), so left and right are a guess;"
            " took the identity in LPS, as ITK does"
        )
    if sform is not None and chosen is sform:
        warnings += _doubts_about_sform(sform, np.abs(sizes), per_unit, shape)
    if sform is not None and qform is not None:
        other = _affine(qform if chosen is sform else sform, sizes, per_unit)
        apart = voxels_apart(shape, affine, other)
        if apart > NOTICEABLE_VOXELS:
            name = "sform" if chosen is sform else "qform"
            warnings.append(f"sform and qform lie {apart:.3g} voxels apart; took the {name}")
    named = tuple(f"{path}: {warning}" for warning in warnings)
    return Grid(shape, affine, header), named


def _doubts_about_sform(sform: Form, sizes: np.ndarray, per_unit: float, shape: Sequence[int]) -> list[str]:
    doubts = []
    if not _perpendicular(sform.axes):
        doubts.append("the sform's axes are not perpendicular, which ITK refuses to read; took them as they are")
    shift = np.abs(sform.sizes / sizes - 1) * np.subtract(shape, 1)  # of the last voxels, in voxels
    if shift.max() > NOTICEABLE_VOXELS:
        taken = _triple(sizes * per_unit)
        other = _triple(sform.sizes * per_unit)
        doubts.append(f"pixdim says {taken} mm, the sform's columns {other} mm; took pixdim, as ITK does")
    return doubts


def _sizes(header: NiftiHeader) -> tuple[np.ndarray, list[str]]:
    """The voxels' sides from pixdim (3,), signed, and a warning where one is no size."""
    sizes = header["pixdim"][1:4].astype(np.float64)
    known = np.isfinite(sizes) & (sizes != 0)
    if known.all():
        return sizes, []
    warning = f"pixdim holds {_triple(sizes)}, which is no voxel size; took 1 where it is none, as ITK does"
    return np.where(known, sizes, 1.0), [warning]


def _sform(header: NiftiHeader) -> Form | None:
    """The header's sform, None where its code is 0 or it is not invertible."""
    rows = [header[f"srow_{axis}"] for axis in "xyz"]
    matrix = np.stack(rows).astype(np.float64)
    if int(header["sform_code"]) <= 0 or not np.isfinite(matrix).all():
        return None
    sizes = np.linalg.norm(matrix[:, :3], axis=0)
    if sizes.min() == 0 or np.linalg.cond(matrix[:, :3]) > SINGULAR:
        return None
    return Form(matrix[:, :3] / sizes, sizes, matrix[:, 3])


def _qform(header: NiftiHeader, sizes: np.ndarray) -> Form | None:
    """The header's qform, None where its code is 0; a quaternion that is longer than 1 is shortened to 1.

    As nifti_quatern_to_mat44 of the NIfTI-1 library; pixdim's sign says whether the third axis is turned around.
    """
    if int(header["qform_code"]) <= 0:
        return None
    b, c, d, x, y, z = np.nan_to_num([float(header[field]) for field in QFORM], posinf=0, neginf=0)
    axes = _rotation(np.array([b, c, d]))
    if header["pixdim"][0] < 0:
        axes[:, 2] *= -1
    return Form(axes, np.abs(sizes), np.array([x, y, z]))


def _rotation(vector: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) of the unit quaternion with this vector part (3,) and a scalar part that is not negative."""
    square = 1 - vector @ vector  # of the scalar part
    if square < 1e-7:
        vector = vector / np.linalg.norm(vector)
        square = 0.0
    a = math.sqrt(square)
    b, c, d = vector
    first = [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)]
    second = [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)]
    third = [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b]
    return np.array([first, second, third])


def _choose(sform: Form | None, qform: Form | None, sform_code: int) -> Form:
    """The form that counts, see the head of this file."""
    if sform is not None and _perpendicular(sform.axes):
        agreed = qform is None or _same(sform, qform)
        if agreed or sform_code == 1:
            return sform
    if qform is not None:
        return qform
    if sform is not None:
        return sform
    return Form(np.diag([-1.0, -1.0, 1.0]), np.ones(3), np.zeros(3))


def _same(sform: Form, qform: Form) -> bool:
    apart = [np.abs(one - other).max() for one, other in zip(sform, qform, strict=True)]
    return all(distance < PERPENDICULAR for distance in apart)


def _perpendicular(axes: np.ndarray) -> bool:
    products = axes @ axes.T
    return bool(np.abs(products - np.eye(3)).max() <= PERPENDICULAR)


def _affine(form: Form, sizes: np.ndarray, mm_per_unit: float) -> np.ndarray:
    """Voxels to mm (4, 4), by a form's directions and position and by the voxels' sizes from pixdim."""
    affine = np.eye(4)
    affine[:3, :3] = form.axes * sizes * mm_per_unit
    affine[:3, 3] = form.position * mm_per_unit
    return affine


def _triple(numbers: np.ndarray) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
