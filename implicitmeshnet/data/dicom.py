"""DICOM series in folders and zips: which there are, and each as a volume.

Files are known by their content, whatever they are called. Those of one series UID are a series, wherever they lie;
files without one are told apart by folder, series number and description. Slices are sorted by their position along
the normal of their plane, and the affine is that of the first one's axes and the mean distance of slices, as SimpleITK
reports a series. What would put voxels in a wrong place, or leave some out, is refused.
"""

import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from implicitmeshnet.data import itk
from implicitmeshnet.data.itk import Header
from implicitmeshnet.data.nifti import check_affine, finite_float32
from implicitmeshnet.data.volume import Grid, Volume
from implicitmeshnet.script import InputError, reason, shorten

MAX_UNPACKED_BYTES = 16 * 2**30
"""Of all files of a zip together."""
MAX_MEMBERS = 100_000
"""Files of a zip."""
COPIED_BYTES = 2**20
"""Of a zip's file that are unpacked at a time."""
NAME_LETTERS = 60
"""Of a series' number and description in a case's name."""
UNEVEN = 0.01
"""Share of the usual distance of slices by which one may differ."""
UNEVEN_MM = 0.02
"""What it may differ at any distance, as headers round positions."""
SIDEWAYS_PIXELS = 0.2
"""By which the last slice may lie beside the first one's normal: above rounding, below a tilted gantry."""
TURNED = 1e-3
"""By which the slices' axes, in mm a pixel, may differ."""

MARK = slice(128, 132)
BEGINNING = 1024  # bytes of a file in which its class stands
NO_IMAGES = re.compile(
    rb"1\.2\.840\.10008\.(?:1\.3\.10"  # a directory of files
    rb"|5\.1\.4\.1\.1\.(?:88|11|9|104|66|67|78|481\.[34568]|200)(?:\.|\x00|$|[^\d.]))"
)
"""Classes of DICOM objects that are no images, or none to look for structures in: reports, presentation states,
waveforms, documents, registrations and segmentations, contours, plans."""
ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
}
"""Classes of images whose frames each have their place, in sequences that are not read, by what they are called."""


class Key(NamedTuple):
    """What tells a series from others."""

    uid: str
    folder: str  # empty where there is a uid
    number: str
    description: str


@dataclass(frozen=True)
class Slice:
    """One file of a series, by its header."""

    file: str  # its path within the folder or zip, or its own
    key: Key
    shape: tuple[int, ...]
    channels: int
    frames: int
    affine: np.ndarray | None  # (4, 4) mm RAS; None where the header has no position, orientation or pixel spacing
    uid_of_class: str = ""

    @property
    def position_mm(self) -> np.ndarray:  # (3,) of the first pixel
        assert self.affine is not None
        return self.affine[:3, 3]


@dataclass(frozen=True, eq=False)
class Series:
    """One series of a folder or zip, by its slices' headers; messages call it its place with number and description."""

    place: Path
    slices: tuple[Slice, ...]
    fault: str | None = None
    """Of a file that cannot be read, and so belongs to no series: the sentence that reading it ends with."""

    def __str__(self) -> str:
        key = self.slices[0].key if self.slices else Key("", "", "", "")
        title = " ".join(filter(None, ("series" if key.number else "", key.number, key.description)))
        return f"{self.place} ({title})" if title else str(self.place)

    @property
    def case_name(self) -> str:
        """The folder's or zip's name and the series' number and description, as far as files may be called so."""
        key = self.slices[0].key if self.slices else Key("", "", "", "")
        title = re.sub(r"[^\w.+-]+", "_", f"{key.number}_{key.description}").strip("_.")
        return "_".join(filter(None, (_name_of(self.place), title[:NAME_LETTERS].rstrip("_."))))


def is_zip(path: Path) -> bool:
    """Whether a file is called .zip; what is in it is not looked at."""
    return path.suffix.lower() == ".zip" and path.is_file()


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, whatever it is called; False for what cannot be opened."""
    try:
        with path.open("rb") as file:
            return _begins_as_dicom(file.read(BEGINNING))
    except OSError:
        return False


def find_series(place: Path) -> list[Series]:
    """The series of images in a folder and those below it, in a zip, or of a file, sorted by their names.

    A damaged file, which belongs to no series, is one with a fault. Raises InputError for a zip that is damaged or too
    large, and where there are DICOM files but no SimpleITK.
    """
    slices: list[Slice] = []
    broken: list[Series] = []
    with _all_files(place) as files:
        for file, path in files:
            itk.check_available(place)
            try:
                slices.append(_slice(file, path, _within(place, file)))
            except InputError as error:
                broken.append(Series(_within(place, file), (), str(error)))
    series = _grouped(place, slices)
    return sorted(series, key=lambda each: each.case_name) + broken


def only_series(place: Path) -> Series:
    """The one series of a folder, zip or file. Raises InputError as `find_series`, and for none or several."""
    series = find_series(place)
    if not series:
        raise InputError(f"{place}: wanted a DICOM series, found none")
    if len(series) > 1:
        names = ", ".join(map(str, series))
        raise InputError(f"{place}: wanted one DICOM series, found {len(series)}: {shorten(names)}")
    return series[0]


def read_series(series: Series) -> Volume:
    """A series as a volume of float32, rescaled as its headers say; its own axes are columns, rows and slices.

    Raises InputError, naming the series, where a file is damaged, is no slice of grey values, has no place in the
    world or several frames; for a single slice, slices of several sizes or orientations, a missing one, uneven
    distances, several at one place, and a tilted gantry.
    """
    ordered, affine = arranged(series)
    columns, rows = ordered[0].shape[:2]
    data = np.empty((len(ordered), rows, columns), np.float32)
    with source_files(series) as paths:
        for plane, path, each in zip(data, paths, ordered, strict=True):
            plane[:] = itk.read_voxels(path, itk.DICOM_READER, _within(series.place, each.file))[:, :, 0].T
    voxels = finite_float32(str(series), data)
    return Volume(voxels.transpose(), Grid((columns, rows, len(ordered)), affine), (), str(series))


@contextmanager
def source_files(series: Series) -> Iterator[list[Path]]:
    """Yield the paths of a series' files in the order of its slices, those of a zip unpacked for the while."""
    names = [each.file for each in arranged(series)[0]]
    if not is_zip(series.place):
        yield [_within(series.place, name) for name in names]
        return
    with _opened(series.place) as archive, TemporaryDirectory() as folder:
        yield [_unpack(archive, archive.getinfo(name), Path(folder) / str(number)) for number, name in enumerate(names)]


def arranged(series: Series) -> tuple[list[Slice], np.ndarray]:
    """A series' slices in their order along the normal, and its affine (4, 4), mm RAS. InputError as `read_series`."""
    if series.fault:
        raise InputError(series.fault)
    _check_alike(series)
    first = series.slices[0]
    assert first.affine is not None  # it was checked
    normal = np.cross(first.affine[:3, 0], first.affine[:3, 1])
    normal /= np.linalg.norm(normal)
    ordered = sorted(series.slices, key=lambda each: each.position_mm @ normal)
    positions = np.stack([each.position_mm for each in ordered])
    _check_distances(series, ordered, positions @ normal)
    across = positions[-1] - positions[0]
    depth_mm = across @ normal
    _check_tilt(series, across - depth_mm * normal, depth_mm, first.affine)
    affine = first.affine.copy()
    affine[:3, 2] = normal * depth_mm / (len(ordered) - 1)
    affine[:3, 3] = positions[0]
    check_affine(str(series), affine)
    return ordered, affine


def _check_alike(series: Series) -> None:
    """Raise InputError where the slices of a series do not make a volume, or are none."""
    first = series.slices[0]
    for each in series.slices:
        enhanced = ENHANCED.get(each.uid_of_class, "")
        if each.frames > 1 or enhanced:
            kind = f"{enhanced} Image Storage, " if enhanced else ""
            frames = "one frame" if each.frames == 1 else f"{each.frames} frames"
            raise InputError(
                f"{series}: wanted a file for each slice, found {frames} in {each.file} ({kind}enhanced"
                " multi-frame DICOM; dcm2niix makes a NIfTI of it)"
            )
        if each.channels != 1:
            raise InputError(f"{series}: wanted grey values, found a colour image in {each.file}")
        if each.affine is None:
            raise InputError(
                f"{series}: wanted position, orientation and pixel spacing of each slice, found one without in"
                f" {each.file}"
            )
        if each.shape[:2] != first.shape[:2]:
            sizes = " and ".join(" x ".join(map(str, one.shape[:2])) for one in (first, each))
            raise InputError(
                f"{series}: wanted slices of one size, found {sizes} pixels in {first.file} and {each.file}"
            )
    for each in series.slices:
        assert each.affine is not None and first.affine is not None
        if np.abs(each.affine[:3, :2] - first.affine[:3, :2]).max() > TURNED:
            raise InputError(
                f"{series}: wanted slices of one orientation and pixel spacing, found others in {first.file} and"
                f" {each.file}"
            )
    if len(series.slices) == 1:
        raise InputError(f"{series}: wanted a series of at least two slices, found one")


def _check_distances(series: Series, ordered: Sequence[Slice], along_mm: np.ndarray) -> None:
    """Raise InputError where slices, at sorted positions along their normal, do not lie at equal distances."""
    gaps = np.diff(along_mm)
    usual = float(np.median(gaps))
    uneven = np.abs(gaps - usual) > max(UNEVEN * usual, UNEVEN_MM)
    same = gaps < UNEVEN_MM
    if not (same | uneven).any():
        return
    place = int(np.flatnonzero(same if same.any() else uneven)[0])
    before, behind = ordered[place].file, ordered[place + 1].file
    if same.any():
        raise InputError(
            f"{series}: wanted one slice at each place, found {before} and {behind} at {along_mm[place]:g} mm along the"
            " normal"
        )
    missing = round(gaps[place] / usual) - 1
    guess = f", as if {missing} were missing" if missing > 0 else ""
    raise InputError(
        f"{series}: wanted slices at equal distances of {usual:g} mm, found {gaps[place]:g} mm between {before} and"
        f" {behind}, {along_mm[place]:g} to {along_mm[place + 1]:g} mm along the normal{guess}"
    )


def _check_tilt(series: Series, sideways_mm: np.ndarray, depth_mm: float, affine: np.ndarray) -> None:
    """Raise InputError where the last slice does not lie on the first one's normal, but sideways (3,) of it."""
    pixel_mm = np.linalg.norm(affine[:3, :2], axis=0).min()
    beside_mm = float(np.linalg.norm(sideways_mm))
    if beside_mm > SIDEWAYS_PIXELS * pixel_mm:
        degrees = math.degrees(math.atan2(beside_mm, depth_mm))
        raise InputError(
            f"{series}: wanted slices right above each other, found a gantry tilt of {degrees:.3g} degrees"
        )


def _grouped(place: Path, slices: Iterable[Slice]) -> list[Series]:
    groups: dict[Key, list[Slice]] = {}
    for each in slices:
        key = Key(each.key.uid, "", "", "") if each.key.uid else each.key
        groups.setdefault(key, []).append(each)
    series = []
    for group in groups.values():
        files = tuple(group)
        series.append(Series(_home(place, files), _relative(place, files)))
    return series


def _home(place: Path, slices: Sequence[Slice]) -> Path:
    """The folder that holds all files of a series; the zip itself, or the file."""
    if not place.is_dir():
        return place
    folders = [str(PurePosixPath(each.file).parent) for each in slices]
    return place / os.path.commonpath(folders)


def _relative(place: Path, slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
    """Slices of a folder with their files named from the folder that holds them all."""
    home = _home(place, slices)
    if home == place:
        return slices
    start = f"{home.relative_to(place).as_posix()}/"
    return tuple(replace(each, file=each.file.removeprefix(start)) for each in slices)


def _within(place: Path, file: str) -> Path:
    """The path of a file of a folder or zip; a file on its own is its place."""
    return place / file if place.is_dir() or is_zip(place) else place


def _name_of(place: Path) -> str:
    if is_zip(place):
        return place.stem
    return place.resolve().name


def _slice(file: str, path: Path, name: Path) -> Slice:
    """The header of a DICOM file that messages call by a name. Raises InputError where it is damaged."""
    header = itk.read_header(path, itk.DICOM_READER, name)
    tags = header.tags
    uid = tags.get("0020|000e", "")
    folder = "" if uid else str(PurePosixPath(file).parent)
    key = Key(uid, folder, tags.get("0020|0011", ""), tags.get("0008|103e", ""))
    shape = header.shape
    frames = shape[2] if len(shape) > 2 else 1
    affine = header.affine if _is_placed(header) else None
    return Slice(file, key, shape, header.channels, frames, affine, tags.get("0008|0016", ""))


def _is_placed(header: Header) -> bool:
    """Whether a DICOM header has position, orientation and pixel spacing, which SimpleITK otherwise makes up."""
    return all(header.tags.get(tag) for tag in ("0020|0032", "0020|0037", "0028|0030"))


def _begins_as_dicom(start: bytes) -> bool:
    """Whether a file's first bytes are those of a DICOM object that may be an image, with its preamble or without."""
    marked = start[MARK] == b"DICM"
    bare = (
        start[:2] in (b"\x08\x00", b"\x02\x00")
        and start[3:4] == b"\0"
        and (start[4:6].isupper() or start[6:8] == b"\0\0")
    )
    return (marked or bare) and not NO_IMAGES.search(start)


@contextmanager
def _all_files(place: Path) -> Iterator[Iterator[tuple[str, Path]]]:
    """Yield the DICOM files of a folder or zip, or the file that it is: each one's path within, and one to read."""
    if is_zip(place):
        with _opened(place) as archive, TemporaryDirectory() as folder:
            yield _zipped_files(archive, Path(folder) / "slice")
    elif place.is_dir():
        yield _files_below(place)
    else:
        yield iter([(place.name, place)] if is_dicom(place) else [])


def _files_below(place: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(place):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file() and is_dicom(path):
                yield path.relative_to(place).as_posix(), path


def _zipped_files(archive: zipfile.ZipFile, temporary: Path) -> Iterator[tuple[str, Path]]:
    """The DICOM files of a zip, one at a time in the same temporary file; none is written where its own name says."""
    for member in archive.infolist():
        if member.is_dir():
            continue
        with archive.open(member) as file:
            start = file.read(BEGINNING)
        if _begins_as_dicom(start):
            yield member.filename, _unpack(archive, member, temporary)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Path:
    """Write a zip's file to a path."""
    with archive.open(member) as source, path.open("wb") as target:
        while piece := source.read(COPIED_BYTES):
            target.write(piece)
    return path


@contextmanager
def _opened(place: Path) -> Iterator[zipfile.ZipFile]:
    """Yield an open zip of bounded size; whatever goes wrong with it is an InputError."""
    try:
        with zipfile.ZipFile(place) as archive:
            _check_size(place, archive.infolist())
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{place}: wanted an intact zip without password, found one that cannot be unpacked ({reason(error)})"
        ) from error
    except OSError as error:
        raise InputError(f"{place}: cannot be unpacked ({reason(error)})") from error


def _check_size(place: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise InputError for a zip that would fill the disk; zipfile gives no more of a member than it announces."""
    unpacked = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or unpacked > MAX_UNPACKED_BYTES:
        raise InputError(
            f"{place}: wanted a zip of at most {MAX_MEMBERS} files and {MAX_UNPACKED_BYTES} bytes unpacked, found"
            f" {len(members)} files and {unpacked} bytes"
        )
