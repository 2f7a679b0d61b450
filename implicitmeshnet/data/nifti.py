"""NIfTI files in and out, placed in the world as ITK, and so 3D Slicer, places them: the only nibabel user.

The rule (ITK 5.4, NiftiImageIO::SetImageIOOrientationFromNIfTI), over the header's two forms and voxel sizes:

1. The voxels' sizes are `pixdim`, always; a form gives directions and position alone. Zero or no number means 1.
2. The sform counts where its code is not 0, its axes are perpendicular, and the qform's code is 0, or its own code is
   1 ("scanner"), or both forms say the same. Else the qform counts where its code is not 0.
3. Both codes 0: the first voxel lies at the origin, the axes run to the patient's left, back and head.
4. Sizes and positions are in the unit of `xyzt_units`; unknown means mm.

Where ITK reads no file at all, an oblique sform without a qform, the sform counts.
"""

import gzip
import math
import os
import stat
import zlib
from contextlib import contextmanager
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.volumeutils import array_from_file

from implicitmeshnet.data.volume import Grid, Volume, voxels_apart
from implicitmeshnet.script import InputError, atomic_path

WRITTEN_AS = {"bool": np.uint8, "int64": np.int32, "float16": np.float32, "float64": np.float32}
MM_PER_UNIT = {1: 1e3, 2: 1.0, 3: 1e-3}
"""Of xyzt_units: metre, millimetre, micrometre."""
DEFLATE_LIMIT = 1032  # bytes that one byte of gzip can stand for, at most
FARTHEST_MM = 1e6  # beyond it single precision is coarser than voxels
PERPENDICULAR = 1e-4  # by which a product of two unit axes may differ from the identity's, as in ITK
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
NOTICEABLE_VOXELS = 0.01
"""By which two placements of one volume may lie apart unnoticed: above rounding, below harm."""


class Form(NamedTuple):
    """What a header's sform or qform says, in its own unit."""

    axes: np.ndarray  # (3, 3) unit columns
    sizes: np.ndarray  # (3,) lengths of the voxels' sides
    position: np.ndarray  # (3,) of the first voxel


quiet = np.errstate(all="ignore")
"""Headers may hold any number; what comes of it is checked, and no warning of numpy's is needed beside that."""


@quiet
def read_grid(path) -> Grid:
    """Shape, affine and header of a NIfTI file, from its header alone. Errors as `read_image`."""
    with _open(path) as (_, header):
        return _grid(path, header)[0]


@quiet
def read_image(path) -> Volume:
    """Read a NIfTI volume as float32, scaled by the header, in the file's own voxel order.

    Trailing axes of length 1 are dropped; voxels that are NaN or infinite take the smallest finite value. Raises
    InputError where the file is missing, damaged, no NIfTI, not one 3-D channel, or has no invertible affine.
    """
    stored, (slope, intercept), grid, warnings = _read(path)
    exact = np.float32 if stored.dtype.itemsize <= 2 else np.float64  # holds what is stored
    data = stored if (slope, intercept) == (1, 0) else stored.astype(exact) * exact(slope) + exact(intercept)
    data = data.astype(np.float32)  # what is too large for it is infinite
    finite = np.isfinite(data)
    if not finite.any():
        raise InputError(f"{path}: wanted finite voxel values, found none")
    if not finite.all():
        data[~finite] = data[finite].min()
    return Volume(data, grid, warnings, str(path))


@quiet
def read_labels(path) -> Volume:
    """Read a NIfTI label map as int32 in the file's own voxel order. Errors as `read_image`, and non-integer values.

    Where integers are stored with a slope below 1, values are off by up to half of it: the nearest integer counts.
    """
    stored, (slope, intercept), grid, warnings = _read(path)
    if (slope, intercept) != (1, 0) or stored.dtype.kind == "f":
        values = stored.astype(np.float64) * slope + intercept
        rounded = np.rint(values)
        quantised = stored.dtype.kind != "f" and abs(slope) < 1
        tolerance = max(1e-3, abs(slope) / 2 * (1 + 1e-6)) if quantised else 1e-3
        wrong = ~(np.abs(values - rounded) <= tolerance)
        if wrong.any():
            raise InputError(f"{path}: wanted integer label values, found {values[wrong][0]:g}")
        stored = rounded
    if stored.min() < -(2**31) or stored.max() >= 2**31:
        raise InputError(f"{path}: wanted label values of at most 32 bits, found {stored.max():g}")
    return Volume(stored.astype(np.int32), grid, warnings, str(path))


@quiet
def write_volume(path, data, affine, header=None):
    """Write data (X, Y, Z) as .nii or .nii.gz, whole or not at all, where its (4, 4) affine in mm says.

    With the `header` of a Grid that was read, its forms, codes and units are written as they are. Else the sform holds
    the affine exactly (in float32), and the qform too where it can. bool is written as uint8, 64-bit numbers
    as 32-bit ones. Raises InputError for another suffix, for data or an affine that could not be read again, and for a
    path that cannot be written.
    """
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: wanted a name that ends in .nii or .nii.gz")
    data = np.asarray(data)
    _check_shape(path, data.shape)
    affine = np.asarray(affine, np.float32).astype(np.float64)  # as the file will hold it
    _check_affine(path, affine)
    data = data.astype(WRITTEN_AS.get(data.dtype.name, data.dtype), copy=False)
    large = max(data.shape) >= 2**15 or isinstance(header, nib.Nifti2Header)
    image = (nib.Nifti2Image if large else nib.Nifti1Image)(data, None)
    if header is None:
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code="scanner", strip_shears=True)
        image.set_sform(affine, code="scanner")
        _drop_wrong_qform(image.header)
    else:
        for field in GEOMETRY:
            image.header[field] = header[field]
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _drop_wrong_qform(header):
    """Leave the qform out where it does not say what the sform says: it has no shear, and of turns by nearly 180
    degrees its single precision leaves little."""
    sizes, _ = _sizes(header)
    wanted = _affine(_sform(header), sizes, 1.0)
    if voxels_apart(_shape(header), wanted, _affine(_qform(header, sizes), sizes, 1.0)) > NOTICEABLE_VOXELS:
        header["qform_code"] = 0


@contextmanager
def _open(path):
    """Yield a file's stream, at its start, and its checked NIfTI header; whatever goes wrong is an InputError."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe would be waited for
            raise InputError(f"{path}: wanted a file, found a pipe or a device")
        with open(path, "rb") as file:
            zipped = file.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=file) if zipped else file
            header = _header(path, stream)
            _check_header(path, header)
            _check_size(path, header, os.fstat(file.fileno()).st_size * (DEFLATE_LIMIT if zipped else 1))
            yield stream, header
    except InputError:
        raise
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        ArithmeticError,
        MemoryError,
        zlib.error,
        HeaderDataError,
        HeaderTypeError,
    ) as error:
        if getattr(error, "strerror", None):
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: wanted an intact NIfTI file, found a truncated or damaged one ({reason})") from error


def _header(path, stream):
    """The header at a stream's start, of whichever NIfTI version and byte order, unchecked."""
    start = stream.read(nib.Nifti2Header.template_dtype.itemsize)
    stream.seek(0)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(start):
            header = kind(start[: kind.template_dtype.itemsize], check=False)
            if bytes(header["magic"])[:3] in (b"n+1", b"n+2"):
                return header
    raise InputError(f"{path}: wanted a NIfTI volume in one file, found another kind of file")


def _check_header(path, header):
    code = int(header["datatype"])
    if code not in nib.nifti1.data_type_codes.dtype or nib.nifti1.data_type_codes.dtype[code].kind not in "iuf":
        name = nib.nifti1.data_type_codes.label.get(code, code)
        raise InputError(f"{path}: wanted one real number per voxel, found data type {name}")
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise InputError(f"{path}: wanted 1 to 7 dimensions in the header, found {dimensions}")
    _check_shape(path, _shape(header))


def _check_shape(path, shape):
    if len(shape) < 3 or min(shape[:3]) < 2 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: wanted a 3-D volume with one channel, found shape {tuple(shape)}")


def _check_size(path, header, available: int):
    """Refuse a header that claims more voxels than the file can hold, before memory is taken for them."""
    claimed = math.prod(_shape(header)) * header.get_data_dtype().itemsize
    if claimed > available:
        raise InputError(
            f"{path}: wanted an intact NIfTI file, found a truncated or damaged one (its header claims"
            f" {claimed} bytes of voxels)"
        )


def _check_affine(path, affine):
    if not np.isfinite(affine).all() or np.linalg.cond(affine[:3, :3]) > 1e6:
        raise InputError(f"{path}: wanted an invertible affine, found {affine[:3].tolist()}")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm.min() < 1e-3 or spacing_mm.max() > 1e3:
        raise InputError(f"{path}: wanted a voxel spacing of 0.001 to 1000 mm, found {spacing_mm.tolist()}")
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        raise InputError(
            f"{path}: wanted a first voxel within {FARTHEST_MM:g} mm of the world's origin, found it at"
            f" {affine[:3, 3].tolist()}"
        )


def _shape(header) -> tuple[int, ...]:
    """All dimensions; Python's integers, which no product of them exceeds."""
    return tuple(int(n) for n in header["dim"][1 : 1 + int(header["dim"][0])])


def _read(path):
    """What is stored, in any number type (X, Y, Z), its slope and intercept, its grid, and what is doubtful."""
    with _open(path) as (stream, header):
        grid, warnings = _grid(path, header)
        offset = max(int(header["vox_offset"]), header.single_vox_offset)
        stored = array_from_file(grid.shape, header.get_data_dtype(), stream, offset, mmap=False)
        stream.seek(0, os.SEEK_END)  # gzip compares its checksum there
    return stored, _scaling(header), grid, warnings


def _scaling(header) -> tuple[float, float]:
    """Slope and intercept as ITK takes them: a slope of 0 or no number is 1, an intercept of no number 0."""
    slope, intercept = (float(header[field]) for field in ("scl_slope", "scl_inter"))
    if not math.isfinite(slope) or abs(slope) < np.finfo(float).eps:
        slope = 1.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _grid(path, header) -> tuple[Grid, tuple[str, ...]]:
    """Where a volume lies, and a sentence on each thing that is doubtful about it."""
    shape = _shape(header)[:3]
    per_unit = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    sizes, warnings = _sizes(header)
    sform, qform = _sform(header), _qform(header, sizes)
    if sform is None and qform is None and int(header["sform_code"]) > 0:
        raise InputError(f"{path}: wanted an invertible affine, found an sform that has no inverse")
    chosen = _choose(sform, qform, int(header["sform_code"]))
    affine = _affine(chosen, sizes, per_unit)
    _check_affine(path, affine)
    if sform is None and qform is None:
        warnings.append(
            "the header gives no world position (sform and qform code 0), so left and right are a guess;"
            " took the identity in LPS, as ITK does"
        )
    if chosen is sform:
        warnings += _doubts_about_sform(sform, np.abs(sizes), per_unit, shape)
    if sform is not None and qform is not None:
        other = _affine(qform if chosen is sform else sform, sizes, per_unit)
        apart = voxels_apart(shape, affine, other)
        if apart > NOTICEABLE_VOXELS:
            name = "sform" if chosen is sform else "qform"
            warnings.append(f"sform and qform lie {apart:.3g} voxels apart; took the {name}")
    return Grid(shape, affine, header), tuple(f"{path}: {warning}" for warning in warnings)


def _doubts_about_sform(sform: Form, sizes, per_unit: float, shape) -> list[str]:
    doubts = []
    if not _perpendicular(sform.axes):
        doubts.append("the sform's axes are not perpendicular, which ITK refuses to read; took them as they are")
    shift = np.abs(sform.sizes / sizes - 1) * np.subtract(shape, 1)  # of the last voxels, in voxels
    if shift.max() > NOTICEABLE_VOXELS:
        doubts.append(
            f"pixdim says {_triple(sizes * per_unit)} mm, the sform's columns"
            f" {_triple(sform.sizes * per_unit)} mm; took pixdim, as ITK does"
        )
    return doubts


def _sizes(header) -> tuple[np.ndarray, list[str]]:
    """The voxels' sides from pixdim (3,), signed, and a warning where one is no size."""
    sizes = header["pixdim"][1:4].astype(np.float64)
    known = np.isfinite(sizes) & (sizes != 0)
    if known.all():
        return sizes, []
    return np.where(known, sizes, 1.0), [
        f"pixdim holds {_triple(sizes)}, which is no voxel size; took 1 where it is none, as ITK does"
    ]


def _sform(header) -> Form | None:
    """The header's sform, None where its code is 0 or it is not invertible."""
    matrix = np.stack([header[f"srow_{axis}"] for axis in "xyz"]).astype(np.float64)
    if int(header["sform_code"]) <= 0 or not np.isfinite(matrix).all():
        return None
    sizes = np.linalg.norm(matrix[:, :3], axis=0)
    if sizes.min() == 0 or np.linalg.cond(matrix[:, :3]) > 1e6:
        return None
    return Form(matrix[:, :3] / sizes, sizes, matrix[:, 3])


def _qform(header, sizes) -> Form | None:
    """The header's qform, None where its code is 0; a quaternion that is longer than 1 is shortened to 1.

    As nifti_quatern_to_mat44 of the NIfTI-1 library; pixdim's sign says whether the third axis is turned around.
    """
    if int(header["qform_code"]) <= 0:
        return None
    fields = [f"quatern_{letter}" for letter in "bcd"] + [f"qoffset_{letter}" for letter in "xyz"]
    values = np.nan_to_num([float(header[field]) for field in fields], posinf=0, neginf=0)
    vector, position = values[:3], values[3:]
    square = 1 - vector @ vector
    if square < 1e-7:
        vector, square = vector / np.linalg.norm(vector), 0.0
    b, c, d = vector
    a = math.sqrt(square)
    axes = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    if header["pixdim"][0] < 0:
        axes[:, 2] *= -1
    return Form(axes, np.abs(sizes), position)


def _choose(sform: Form | None, qform: Form | None, sform_code: int) -> Form:
    """The form that counts, see the head of this file."""
    if sform is not None and _perpendicular(sform.axes) and (qform is None or sform_code == 1 or _same(sform, qform)):
        return sform
    if qform is not None:
        return qform
    if sform is not None:
        return sform
    return Form(np.diag([-1.0, -1.0, 1.0]), np.ones(3), np.zeros(3))


def _same(sform: Form, qform: Form) -> bool:
    return all(np.abs(one - other).max() < PERPENDICULAR for one, other in zip(sform, qform, strict=True))


def _perpendicular(axes) -> bool:
    return bool(np.abs(axes @ axes.T - np.eye(3)).max() <= PERPENDICULAR)


def _affine(form: Form, sizes, mm_per_unit: float) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = form.axes * sizes * mm_per_unit
    affine[:3, 3] = form.position * mm_per_unit
    return affine


def _triple(numbers) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
