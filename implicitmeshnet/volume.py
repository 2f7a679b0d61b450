"""NIfTI in and out, canonical orientation, resampling, intensity: the only nibabel user.

A volume is read in the file's own voxel order; `canonical` turns it to RAS+. The network sees it on `network_grid`,
whose axes run along the canonical volume's, so `resample_image` and `resample_labels` are one matrix per axis.
"""

import gzip
import io
import math
import zlib
from contextlib import contextmanager
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from scipy.ndimage import find_objects

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.io import InputError, atomic_path

TIE_BREAK = (1e-3, 2e-3, 4e-3)  # source voxels
WRITTEN_AS = {"bool": np.uint8, "int64": np.int32, "float16": np.float32, "float64": np.float32}


@dataclass(frozen=True, eq=False)
class Grid:
    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4) float64, voxel -> world, mm RAS

    @property
    def spacing_mm(self) -> np.ndarray:  # (3,)
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def world_from_normalised(self) -> np.ndarray:  # (4, 4) float64
        return self.affine @ voxel_from_normalised(self.shape)


@dataclass(frozen=True, eq=False)
class Volume:
    data: np.ndarray  # (X, Y, Z)
    grid: Grid


def read_grid(path) -> Grid:
    """Shape and affine of a NIfTI file, from its header alone. Errors as `read_image`."""
    with _open_nifti(path) as image:
        return _grid(image)


def read_image(path) -> Volume:
    """Read a NIfTI volume as float32, scaled by the header, in the file's own voxel order.

    Trailing axes of length 1 are dropped; voxels that are NaN or infinite take the smallest finite value. Raises
    InputError where the file is missing, damaged, no NIfTI, not one 3-D channel, or has no invertible affine.
    """
    volume = _read(path, np.float32)
    finite = np.isfinite(volume.data)
    if not finite.any():
        raise InputError(f"{path}: wanted finite voxel values, found none")
    if not finite.all():
        volume.data[~finite] = volume.data[finite].min()
    return volume


def read_labels(path) -> Volume:
    """Read a NIfTI label map as int32 in the file's own voxel order. Errors as `read_image`, and non-integer values."""
    volume = _read(path, None)
    if volume.data.dtype.kind == "f":
        rounded = np.rint(volume.data)
        wrong = ~(np.abs(volume.data - rounded) <= 1e-3)  # a scaling in the header may leave rounding errors
        if wrong.any():
            raise InputError(f"{path}: wanted integer label values, found {volume.data[wrong][0]:g}")
        volume = Volume(rounded, volume.grid)
    if volume.data.min() < -(2**31) or volume.data.max() >= 2**31:
        raise InputError(f"{path}: wanted label values of at most 32 bits, found {volume.data.max():g}")
    return Volume(volume.data.astype(np.int32), volume.grid)


def write_volume(path, data, affine):
    """Write data (X, Y, Z) with its (4, 4) affine in mm as .nii or .nii.gz, whole or not at all.

    sform holds the affine exactly (in float32); qform the nearest one without shear. bool is written as uint8, 64-bit
    numbers as 32-bit ones. Raises InputError for another suffix and for a path that cannot be written.
    """
    if not str(path).endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: wanted a name that ends in .nii or .nii.gz")
    data = np.asarray(data)
    image = nib.Nifti1Image(data.astype(WRITTEN_AS.get(data.dtype.name, data.dtype), copy=False), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner", strip_shears=True)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def canonical(volume: Volume) -> Volume:
    """The same volume with its voxel axes permuted and flipped to those closest to RAS+."""
    orientation = io_orientation(volume.grid.affine)
    return Volume(apply_orientation(volume.data, orientation), _canonical_grid(volume.grid))


def network_grid(grid: Grid, shape, spacing_mm: float, centre_mm=None) -> Grid:
    """The isotropic grid of `shape` along the axes of the volume's canonical orientation, around a world position (3,),
    by default its centre.

    It moves by up to half a voxel so that its middle voxel sits on one of the volume's: at the volume's own spacing
    voxels are then copied, where half-way between them images would blur and label borders tie.
    """
    source, shape = _canonical_grid(grid), np.array(shape)
    step, middle = spacing_mm / source.spacing_mm, (shape - 1) // 2  # step in source voxels
    around = (np.array(source.shape) - 1) / 2
    if centre_mm is not None:
        around = transform(np.linalg.inv(source.affine), np.asarray(centre_mm, np.float64))
    centred = around + step * (middle - (shape - 1) / 2)  # source voxel at the middle one
    snapped = np.ceil(centred - 0.501)  # to the nearest, half-way down whatever the rounding of affines
    affine = np.eye(4)
    affine[:3, :3] = source.affine[:3, :3] * step
    affine[:3, 3] = transform(source.affine, snapped - step * middle)
    return Grid(tuple(shape.tolist()), affine)


def resample_image(volume: Volume, target: Grid, background: float) -> np.ndarray:
    """The volume on the target grid, float32 (X, Y, Z): linear, anti-aliased where the target is coarser.

    Voxels whose centre lies more than half a source voxel outside the volume are `background`. Raises ValueError where
    the two grids' axes are not parallel.
    """
    weights, inside = _axis_weights(volume.grid, target)
    return np.where(inside, _apply(weights, volume.data.astype(np.float32, copy=False)), np.float32(background))


def resample_labels(volume: Volume, target: Grid, values: list[list[int]]) -> np.ndarray:
    """Structure indices on the target grid, uint8 (X, Y, Z): 0 background, s + 1 where a label of values[s] is largest.

    Every structure's indicator is resampled like an image, background being the rest, and the largest share wins. Grids
    half a voxel apart would tie at every border and lose it to the background (a tenth of a hippocampus), so labels are
    read TIE_BREAK aside. Raises ValueError as `resample_image`.
    """
    index = np.zeros_like(volume.data, np.uint8)  # in the same memory order, which is most of the speed
    for structure, group in enumerate(values, 1):
        for value in group:
            index[volume.data == value] = structure
    weights, inside = _axis_weights(volume.grid, target, TIE_BREAK)
    largest, total = np.zeros((2, *target.shape), np.float32)
    label = np.zeros(target.shape, np.uint8)
    for structure, box in enumerate(find_objects(index), 1):
        if box is not None:
            mask = (index[box] == structure).astype(np.float32)
            share = _apply([matrix[:, part] for matrix, part in zip(weights, box, strict=True)], mask)
            label[share > largest] = structure
            np.maximum(largest, share, out=largest)
            total += share
    return np.where(inside & (largest > 1 - total), label, np.uint8(0))


def resample_nearest(volume: Volume, spacing_mm: float) -> Volume:
    """The volume with isotropic voxels along its own axes, over the same field of view to half a voxel, by nearest
    neighbour. Raises InputError where that leaves fewer than two voxels along an axis, or more than 2^31 in all."""
    affine, indices = volume.grid.affine.copy(), []
    counts = [round(side_mm / spacing_mm) for side_mm in volume.data.shape * volume.grid.spacing_mm]
    if min(counts) < 2 or math.prod(counts) > 2**31:
        raise InputError(f"volume: wanted 2 to 2^31 voxels at {spacing_mm:g} mm, found {counts}")
    for axis, (size, count) in enumerate(zip(volume.data.shape, counts, strict=True)):
        step = spacing_mm / volume.grid.spacing_mm[axis]
        first = (size - 1) / 2 - step * (count - 1) / 2  # in voxels of the volume
        indices.append(np.floor((first + step * np.arange(count)).round(6) + 0.5).clip(0, size - 1).astype(int))
        affine[:3, 3] += first * volume.grid.affine[:3, axis]
        affine[:3, axis] *= step
    data = np.ascontiguousarray(volume.data[np.ix_(*indices)])
    return Volume(data, Grid(tuple(data.shape), affine))


def normalise_intensity(data: np.ndarray, config: DataConfig) -> np.ndarray:
    """Map voxel values to [-1, 1], float32, clipped: the config's window in HU, or the volume's own percentiles.

    A volume whose percentiles coincide is mapped from its minimum and maximum, a constant one to -1.
    """
    if config.intensity == "window":
        low, high = config.level_hu - config.window_hu / 2, config.level_hu + config.window_hu / 2
    else:
        step = int(np.ceil((data.size / 2e6) ** (1 / 3)))  # of big volumes a regular subset will do
        low, high = map(float, np.percentile(data[::step, ::step, ::step], config.percentiles))
        if low == high:
            low, high = float(data.min()), float(data.max())
    if low == high:
        return np.full(data.shape, -1, np.float32)
    return np.clip((data.astype(np.float32) - low) * (2 / (high - low)) - 1, -1, 1)


@contextmanager
def _open_nifti(path):
    """Yield the checked nibabel image of a file, its data not yet read; whatever goes wrong is an InputError."""
    try:
        with open(path, "rb") as file:
            stream = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            start = stream.read(540)
            stream.seek(0)
            kinds = [kind for kind in (nib.Nifti1Image, nib.Nifti2Image) if kind.header_class.may_contain_header(start)]
            if not kinds:
                raise InputError(f"{path}: wanted a NIfTI volume, found another kind of file")
            image = kinds[0].from_file_map(kinds[0].make_file_map({"image": stream}), mmap=False)
            _check_header(path, image)
            yield image
    except InputError:
        raise
    except (OSError, EOFError, ValueError, MemoryError, zlib.error, HeaderDataError) as error:
        if getattr(error, "strerror", None):
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: wanted an intact NIfTI file, found a truncated or damaged one ({reason})") from error


def _check_header(path, image):
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: wanted one real number per voxel, found data type {image.get_data_dtype()}")
    shape = image.shape
    if len(shape) < 3 or min(shape[:3]) < 2 or any(n != 1 for n in shape[3:]):
        raise InputError(f"{path}: wanted a 3-D volume with one channel, found shape {shape}")
    affine = image.affine
    if not np.isfinite(affine).all() or np.linalg.cond(affine[:3, :3]) > 1e6:
        raise InputError(f"{path}: wanted an invertible affine, found {affine[:3].tolist()}")
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing_mm.min() < 1e-3 or spacing_mm.max() > 1e3:
        raise InputError(f"{path}: wanted a voxel spacing of 0.001 to 1000 mm, found {spacing_mm.tolist()}")


def _grid(image) -> Grid:
    return Grid(tuple(int(n) for n in image.shape[:3]), np.array(image.affine, np.float64))


def _read(path, dtype) -> Volume:
    with _open_nifti(path) as image:
        data = np.asarray(image.dataobj, dtype)
        image.file_map["image"].fileobj.seek(0, io.SEEK_END)  # gzip compares its checksum there
        grid = _grid(image)
    return Volume(data.reshape(grid.shape), grid)


def _canonical_grid(grid: Grid) -> Grid:
    orientation = io_orientation(grid.affine)
    shape = np.empty(3, int)
    shape[orientation[:, 0].astype(int)] = grid.shape
    return Grid(tuple(shape.tolist()), grid.affine @ inv_ornt_aff(orientation, grid.shape))


def _axis_weights(source: Grid, target: Grid, shift=(0.0, 0.0, 0.0)):
    """One (target, source) matrix per axis, float32, and where the target lies inside, broadcast to (X, Y, Z).

    The volume is read `shift` source voxels beside the target's voxel centres.
    """
    matrix = np.linalg.inv(source.affine) @ target.affine
    across = np.abs(matrix[:3, :3] - np.diag(matrix.diagonal()[:3])) @ np.array(target.shape)
    if across.max() > 1e-2:  # source voxels, over the whole grid
        raise ValueError(f"target: wanted axes parallel to the volume's, found them {across.max():.3g} voxels apart")
    weights, inside = [], []
    for axis, (count, size) in enumerate(zip(source.shape, target.shape, strict=True)):
        step = matrix[axis, axis]
        positions = (step * np.arange(size) + matrix[axis, 3]).round(6)  # the same whatever the rounding of affines
        weights.append(_triangle_weights(positions + shift[axis], max(1.0, abs(step)), count))
        inside.append((positions >= -0.5) & (positions <= count - 0.5))
    return weights, inside[0][:, None, None] & inside[1][:, None] & inside[2]


def _triangle_weights(positions, half_width: float, count: int) -> np.ndarray:
    """Weights (P, count) of a triangle around each position, the volume's border repeated; rows sum to 1.

    Where half_width is no integer, samples of a triangle are not balanced around its centre; the factor linear in the
    offset balances them, so that a linear ramp stays exact.
    """
    reach = int(np.ceil(half_width)) + 1
    positions = positions.clip(-0.5, count - 0.5)
    offset = np.arange(-reach, count + reach) - positions[:, None]
    weights = np.maximum(0, 1 - np.abs(offset) / half_width)
    first, second = ((weights * offset**power).sum(1, keepdims=True) for power in (1, 2))
    weights *= 1 - offset * first / np.maximum(second, 1e-12)
    weights /= weights.sum(1, keepdims=True)
    weights[:, reach] += weights[:, :reach].sum(1)
    weights[:, -reach - 1] += weights[:, -reach:].sum(1)
    return weights[:, reach:-reach].astype(np.float32)


def _apply(weights, data):
    """Multiply each axis of data by its matrix, the axes that shrink most first."""
    for axis in sorted(range(3), key=lambda axis: weights[axis].shape[0] / weights[axis].shape[1]):
        data = np.moveaxis(np.tensordot(weights[axis], data, (1, axis)), 0, axis)
    return data
