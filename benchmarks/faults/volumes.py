"""NIfTI files: sound ones of every kind, then changed; and what is done with them."""

import gzip
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from faults.children import Wrong, expect
from faults.project import Project
from faults.values import Input, odd_bytes, odd_number, pick
from implicitmeshnet.config import DataConfig
from implicitmeshnet.data.dataset import Case, training_sample
from implicitmeshnet.data.nifti import read_grid, read_image, read_labels, write_volume
from implicitmeshnet.data.volume import Volume, voxels_apart
from implicitmeshnet.predict import Predictor
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.files import read_mesh, write_mesh

SHAPE = (9, 8, 7)
SIZES_MM = (8.0, 9.0, 10.0)
LARGEST_PREDICTED = 2**18  # voxels
FORMS = ("both", "sform", "qform", "neither", "sheared")
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
NAMES = ("a.nii", "a.nii.gz", "[a] b.nii", "\u00e9.nii.gz")
FIELDS = (
    "dim",
    "dim",
    "pixdim",
    "pixdim",
    "datatype",
    "bitpix",
    "vox_offset",
    "scl_slope",
    "scl_inter",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "cal_max",
    "intent_code",
    "slice_code",
    "slice_end",
    "sizeof_hdr",
    "magic",
)
CLAIMS = (2, 3, 1000, 16397, 32767, 2**31 - 1, 2**40, 2**62)


class Volumes:
    """Draws files of one volume, which is read as an image and as a label map."""

    def __init__(self, project: Project):
        self.predictors = [project.untrained(intensity) for intensity in ("window", "percentile")]

    def draw(self, folder: Path, generator: np.random.Generator) -> Input:
        header, data, change = sound_volume(generator)
        changes = [change]
        damage = generator.random(4) < (0.6, 0.2, 0.2, 0.3)
        if damage[0]:
            changes += [change_header(header, generator) for _ in range(pick(generator, (1, 1, 2)))]
        extension = bytes(4)
        if damage[1]:
            extension, change = odd_extension(generator)
            changes.append(change)
        content = header.binaryblock + extension + data
        if damage[2] or not damage[:2].any():
            content, change = odd_bytes(content, generator, pick(generator, (len(header.binaryblock), None)))
            changes.append(change)
        if generator.random() < 0.4:
            content = gzip.compress(content, mtime=0)
            changes.append("gzip")
            if damage[3]:
                content, change = odd_gzip(content, generator)
                changes.append(change)
        path, predictor = folder / pick(generator, NAMES), pick(generator, self.predictors)
        path.write_bytes(content)
        uses = {"image": lambda: use_image(path, predictor), "labels": lambda: use_labels(path, predictor.config.data)}
        return Input("; ".join(changes), uses, re.compile(re.escape(path.name)))


def sound_volume(generator: np.random.Generator) -> tuple[nib.Nifti1Header, bytes, str]:
    """A header of any version, byte order, form and scaling, and voxels of any type, most of them label values."""
    kind, order = pick(generator, (nib.Nifti1Header, nib.Nifti2Header)), pick(generator, "<>")
    number, form = pick(generator, TYPES), pick(generator, FORMS)
    header = kind(endianness=order)
    header.set_data_dtype(np.dtype(order + number))
    header.set_data_shape(pick(generator, (SHAPE, (*SHAPE, 1))))
    header["pixdim"] = (pick(generator, (1, -1)), *SIZES_MM, 1, 1, 1, 1)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    header["xyzt_units"] = pick(generator, (2, 2, 10, 0))
    quaternion = generator.normal(size=4)
    turn = quaternion / np.linalg.norm(quaternion)
    if form in ("both", "qform"):
        header["qform_code"] = pick(generator, (1, 2))
        for name, value in zip("bcd", turn[1:] * np.sign(turn[0]), strict=True):
            header[f"quatern_{name}"] = value
    if form in ("both", "sform", "sheared"):
        header["sform_code"] = pick(generator, (1, 2))
        axes = np.eye(3)[generator.permutation(3)] * generator.choice([-1, 1], 3)
        axes[0, 1] += 0.2 * (form == "sheared")
        for name, row in zip("xyz", axes * SIZES_MM, strict=True):
            header[f"srow_{name}"] = (*row, generator.normal() * 100)
    scaling = pick(generator, ((1, 0), (0, 0), (2, -3), (0.01, 0), (float("nan"), float("nan"))))
    header["scl_slope"], header["scl_inter"] = scaling
    values = np.zeros(SHAPE)
    values[1:4, 1:5, 1:5], values[4:8, 2:7, 2:6] = 1, 2
    if generator.random() < 0.3:
        values = generator.normal(size=SHAPE) * 30
    data = values.astype(np.dtype(order + number)).tobytes(order="F")
    return header, data, f"{kind.__name__[:6]} {order}{number}, {form}, scaling {scaling}"


def change_header(header: nib.Nifti1Header, generator: np.random.Generator) -> str:
    """An odd number in one of the header's fields, or a claim of a huge volume."""
    if generator.random() < 0.1:
        sides = [pick(generator, CLAIMS) for _ in range(3)]
        for axis, side in enumerate(sides, 1):
            _put(header.structarr["dim"], axis, side)
        return f"claims {sides}"
    field = pick(generator, FIELDS)
    values = header.structarr[field]
    if field == "magic":
        header["magic"] = pick(generator, (b"", b"ni1", b"n+1", b"n+2", b"n+3", b"\xff\xff\xff"))
        return f"magic {bytes(values)}"
    flat = values.reshape(-1)
    place = int(generator.integers(min(flat.size, 5)))
    _put(flat, place, odd_number(generator, float(flat[place])))
    return f"{field}[{place}] = {flat[place]}"


def _put(values: np.ndarray, place: int, number: float):
    """A number into an array of any type; what does not fit an integer wraps around."""
    kind = values.dtype
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            values[place] = np.float64(number)
    elif np.isfinite(number):
        bits = 8 * kind.itemsize
        values[place] = np.array(int(number) % 2**bits, f"u{kind.itemsize}").view(f"{kind.kind}{kind.itemsize}")


def odd_extension(generator: np.random.Generator) -> tuple[bytes, str]:
    """The four bytes that announce extensions, and one of an odd size and code."""
    size, code = pick(generator, (16, 32, 0, -16, 7, 2**31 - 1)), pick(generator, (0, 4, 6, -1, 2**31 - 1))
    content = b"\1\0\0\0" + np.array([size, code], "<i4").tobytes() + generator.bytes(8)
    return content, f"extension of {size} bytes, code {code}"


def odd_gzip(content: bytes, generator: np.random.Generator) -> tuple[bytes, str]:
    kind = pick(generator, ("bytes", "bytes", "bytes", "twice", "two members", "empty member", "bomb", "checksum"))
    if kind == "bytes":
        return odd_bytes(content, generator)
    if kind == "twice":
        content = gzip.compress(content, mtime=0)
    elif kind == "two members":
        content += content
    elif kind == "empty member":
        content = gzip.compress(b"", mtime=0) + content
    elif kind == "bomb":
        content += gzip.compress(bytes(2**28), 9, mtime=0)
    else:
        content = content[:-8] + bytes(8)
    return content, f"gzip: {kind}"


def use_image(path: Path, predictor: Predictor):
    """What the evaluation does with an image."""
    grid, image = read_grid(path), read_image(path)
    expect(grid.shape == image.grid.shape == image.data.shape, "one shape")
    expect((grid.affine == image.grid.affine).all(), "one affine")
    expect(np.isfinite(image.data).all(), "finite voxels")
    check_labelmap(path.with_name("labelmap.nii.gz"), image)
    warnings = image.warnings
    if image.data.size <= LARGEST_PREDICTED:
        warnings = check_prediction(path, image, predictor)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def check_labelmap(path: Path, image: Volume):
    """A label map that is written on an image's grid can be read, and lies on it."""
    labels = (np.arange(image.data.size, dtype=np.int16) % 3).reshape(image.data.shape)
    try:
        write_volume(path, labels, image.grid.affine, image.grid.header)
        found = read_labels(path)
    except InputError as error:
        raise Wrong(f"wanted a label map on the image, found {error}") from error
    expect(found.data.shape == labels.shape and (found.data == labels).all(), "the label map's values")
    apart = voxels_apart(labels.shape, image.grid.affine, found.grid.affine)
    expect(apart < 1e-3, f"the label map on its image, found {apart} voxels off")


def check_prediction(path: Path, image: Volume, predictor: Predictor) -> list[str]:
    """Meshes of an image are finite, can be written and read, and its label maps have its shape; the warnings."""
    surfaces = predictor(image)
    expect(np.isfinite(surfaces.vertices).all(), "finite vertices")
    shapes = {surfaces.labelmap.shape, surfaces.segmentation.shape}
    expect(shapes == {image.data.shape}, "label maps of the image's shape")
    seen = surfaces.sample.image
    expect(bool((seen.abs() <= 1 + 1e-6).all()), "intensities in [-1, 1]")
    mesh = path.with_name("mesh.ply")
    try:
        write_mesh(mesh, surfaces.vertices[0], surfaces.faces)
        found, _ = read_mesh(mesh)
    except InputError as error:
        raise Wrong(f"wanted a mesh that can be read, found {error}") from error
    expect(np.allclose(found, surfaces.vertices[0], rtol=1e-6), "the mesh as it was written")
    return surfaces.warnings


def use_labels(path: Path, data: DataConfig):
    """What a training does with a label map, on an image of the same values."""
    labels = read_labels(path)
    expect(labels.data.dtype == np.int32, "integers of 32 bits")
    sample = training_sample(Case("a", path, path), data, margin=1)
    expect(bool((sample.image.abs() <= 1 + 1e-6).all()), "intensities in [-1, 1]")
    expect(int(sample.label.max()) <= len(data.structures), "the structures' indices")
    expect(bool((sample.overview.image.abs() <= 1 + 1e-6).all()), "an overview in [-1, 1]")
    outside = sample.facts.shares_outside[~np.isnan(sample.facts.shares_outside)]
    expect(bool(((outside >= 0) & (outside <= 1)).all()), "shares outside the box from 0 to 1")
    expect(np.isfinite(sample.facts.quantiles).all(), "finite quantiles")
