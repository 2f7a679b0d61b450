"""Folders in MM-WHS naming or Decathlon / nnU-Net layout -> samples on the network's grid."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.io import InputError
from implicitmeshnet.localise import Overview, centre_mm, overview_of
from implicitmeshnet.volume import (
    Grid,
    Volume,
    canonical,
    network_grid,
    normalise_intensity,
    read_image,
    read_labels,
    resample_image,
    resample_labels,
)

ENDINGS = (".nii.gz", ".nii")
AFFINE_TOLERANCE = 1e-2  # voxels by which a label may lie off its image: above rounding, below harm


@dataclass(frozen=True)
class Case:
    name: str
    image: Path
    label: Path | None


@dataclass
class Sample:
    """One case on the network's grid of (X, Y, Z) voxels, with a margin of m voxels on every side."""

    name: str
    image: torch.Tensor  # (X + 2m, Y + 2m, Z + 2m) float32 in [-1, 1]
    label: torch.Tensor | None  # same shape, uint8: 0 background, s + 1 the config's structure s
    grid: Grid  # without the margin
    overview: Overview | None = None  # of the whole volume, where data.region is 'found'


def find_cases(folder, labelled: bool) -> list[Case]:
    """The cases of a folder, sorted by name; with `labelled` each must have a label.

    Layouts: imagesTr and labelsTr (Decathlon: NAME for both; nnU-Net: image NAME_0000, label NAME; dataset.json may
    name the file_ending), MM-WHS (NAME_image and NAME_label), or, for unlabelled cases, any NIfTI files. Raises
    InputError for a missing or empty folder, a missing label, a name found twice, more than one channel.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: wanted a folder of cases, found none")
    if (folder / "imagesTr").is_dir():
        cases = _decathlon_cases(folder)
    else:
        files = _nifti_files(folder, ENDINGS)
        images = {stem.removesuffix("_image"): path for stem, path in files.items() if stem.endswith("_image")}
        if not (images or labelled):
            labels = {f"{stem}_label" for stem in files}
            images = {stem: path for stem, path in files.items() if stem not in labels}
        cases = [Case(name, path, files.get(f"{name}_label")) for name, path in images.items()]
    if not cases:
        raise InputError(
            f"{folder}: wanted NAME_image.nii.gz files (MM-WHS) or an imagesTr folder with some, found none"
        )
    for case in cases:
        if labelled and case.label is None:
            raise InputError(f"{case.image}: wanted a label for this image, found none")
    return sorted(cases, key=lambda case: case.name)


def _decathlon_cases(folder: Path) -> list[Case]:
    endings = _file_endings(folder / "dataset.json")
    images, labels = (_nifti_files(folder / name, endings) for name in ("imagesTr", "labelsTr"))
    cases = {}
    for stem, path in images.items():
        name = stem
        base, _, channel = stem.rpartition("_")
        if stem not in labels and re.fullmatch(r"\d{4}", channel) and f"{base}_0000" in images:
            name = base
        if name in cases:
            raise InputError(f"{path}: wanted single-channel images, found another channel {cases[name].image.name}")
        cases[name] = Case(name, path, labels.get(name))
    return list(cases.values())


def _file_endings(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ENDINGS
    try:
        description = json.loads(path.read_text())
        ending = description.get("file_ending")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: wanted a JSON object that describes the data set, found none ({error})") from error
    if ending not in (None, *ENDINGS):
        raise InputError(f"{path}: wanted file_ending .nii.gz or .nii, found {ending!r}")
    return (ending,) if ending else ENDINGS


def _nifti_files(folder: Path, endings) -> dict[str, Path]:
    """Files by name without ending, sorted; hidden ones, macOS's ._ among them, left out."""
    files = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ending = next((ending for ending in endings if path.name.endswith(ending)), None)
        if ending is None or path.name.startswith("."):
            continue
        stem = path.name.removesuffix(ending)
        if stem in files:
            raise InputError(f"{path}: wanted one file for each case, found {files[stem].name} beside it")
        files[stem] = path
    return files


def split_cases(cases: list[Case], validation_cases: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Draw the validation cases: (training, validation), both by name; the same for the same names and seed."""
    if len(cases) <= validation_cases:
        raise InputError(
            f"data.validation_cases: wanted fewer than the {len(cases)} cases of the folder, found {validation_cases}"
        )
    cases = sorted(cases, key=lambda case: case.name)
    drawn = set(np.random.default_rng(seed).permutation(len(cases))[:validation_cases].tolist())
    return (
        [case for index, case in enumerate(cases) if index not in drawn],
        [case for index, case in enumerate(cases) if index in drawn],
    )


def prepare_case(case: Case, config: DataConfig, margin: int = 0, locate=None) -> Sample:
    """Read one case onto the network's grid, widened by `margin` voxels on every side.

    Where data.region is 'found' the grid lies around what `locate` finds in the case's Overview, a world position (3,)
    or None; by default around the label. Raises InputError for an unreadable file, a label that does not fit its image
    or has none of the structures, and where nothing is found.
    """
    image = read_image(case.image)
    labels = None
    if case.label is not None:
        labels = read_labels(case.label)
        check_labels(case, labels, config)
        check_same_grid(case.label, image.grid, labels.grid)
        labels = canonical(Volume(labels.data, image.grid))
    image = canonical(image)  # first, so that the same voxels make the percentiles in any orientation
    image = Volume(normalise_intensity(image.data, config), image.grid)
    overview, centre = None, None
    if config.region == "found":
        try:
            overview = overview_of(image, labels, config.overview_spacing_mm, config.label_values)
        except InputError as error:
            raise InputError(f"{case.image}: {error}") from error
        centre = locate(overview) if locate else centre_mm(overview.label.numpy(), overview.grid)
        if centre is None:
            path, shows = (case.image, "an image") if locate else (case.label, "a label")
            raise InputError(f"{path}: wanted {shows} that shows {', '.join(config.structures)} at"
                             f" data.overview_spacing_mm = {config.overview_spacing_mm:g}, found none of them")
    grid = network_grid(image.grid, config.shape, config.spacing_mm, centre)
    padded = _pad(grid, margin)
    label = None
    if labels is not None:
        label = torch.from_numpy(resample_labels(labels, padded, list(config.structures.values())))
    image = torch.from_numpy(resample_image(image, padded, background=-1.0))
    return Sample(case.name, image, label, grid, overview)


def check_labels(case: Case, labels: Volume, config: DataConfig):
    """Raise InputError where a label map has none of the configured values."""
    wanted = sorted(config.label_values)
    if not any((labels.data == value).any() for value in wanted):
        found = np.unique(labels.data).tolist()
        found = ", ".join(map(str, found[:20])) + (", ..." if len(found) > 20 else "")
        raise InputError(f"{case.label}: wanted some of the label values {', '.join(map(str, wanted))}, found {found}")


def check_same_grid(path, wanted: Grid, found: Grid, owner: str = "the image"):
    """Raise InputError where a file's grid is not its owner's, by shape or by more than a hundredth of a voxel."""
    if found.shape != wanted.shape:
        raise InputError(f"{path}: wanted {owner}'s shape {wanted.shape}, found {found.shape}")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(wanted.shape) - 1.0)
    apart = np.abs(transform(np.linalg.inv(wanted.affine) @ found.affine, corners) - corners).max()
    if apart > AFFINE_TOLERANCE:
        raise InputError(f"{path}: wanted {owner}'s affine, found one that lies {apart:.3g} voxels off")


def _pad(grid: Grid, margin: int) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, margin)
    return Grid(tuple(n + 2 * margin for n in grid.shape), affine)


class TrainingSet:
    """Prepared samples in memory, images as float16; `samples[i]` is a Sample with a float32 image.

    Raises InputError as `prepare_case`, and where a structure appears in no case at all.
    """

    def __init__(self, cases: list[Case], config: DataConfig, margin: int = 0):
        self.samples, seen = [], np.zeros(256, bool)
        for case in tqdm(cases, desc="reading cases", unit="case"):
            sample = prepare_case(case, config, margin)
            seen |= torch.bincount(sample.label.flatten(), minlength=256).numpy() > 0
            self.samples.append(replace(sample, image=sample.image.half()))
        for index, name in enumerate(config.structures, 1):
            if not seen[index]:
                raise InputError(
                    f"data.structures: wanted {name} in at least one of {len(cases)} cases, found it in none"
                )

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        return replace(sample, image=sample.image.float())


def template_statistics(samples, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean centre and semi-axes of what each structure's mesh holds, both (S, 3) float64 in normalised coordinates.

    The semi-axes are those of the ellipsoid with the mask's variance along each axis, sqrt(5 variance), each voxel
    counted as a cube. Margins beyond the grid are left out. Raises InputError for a structure that is in no sample.
    """
    structures, members, shape = list(config.structures), config.members, config.shape
    voxel = 2 / (np.array(shape) - 1)  # side length, normalised
    centres, radii = [[] for _ in structures], [[] for _ in structures]
    for sample in samples:
        margin = (sample.label.shape[0] - shape[0]) // 2
        label = sample.label.numpy()[tuple(slice(margin, margin + n) for n in shape)]
        for index in range(len(structures)):
            mask = np.isin(label, [member + 1 for member in members[index]])
            if mask.any():
                centre, variance = _moments(mask)
                centres[index].append(transform(np.linalg.inv(voxel_from_normalised(shape)), centre))
                radii[index].append(np.sqrt(5 * (variance + 1 / 12)) * voxel)
    for name, found in zip(structures, centres, strict=True):
        if not found:
            raise InputError(f"data.structures: wanted {name} in at least one training case, found it in none")
    return np.array([np.mean(rows, 0) for rows in centres]), np.array([np.mean(rows, 0) for rows in radii])


def _moments(mask) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and variance (3,) of the voxel indices in a mask (X, Y, Z)."""
    counts = [mask.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    mean = np.array([np.average(np.arange(len(count)), weights=count) for count in counts])
    square = np.array([np.average(np.arange(len(count)) ** 2, weights=count) for count in counts])
    return mean, square - mean**2
