"""From folders in MM-WHS naming or Decathlon / nnU-Net layout to samples on the network's grid."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from implicitmeshnet.config import DataConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.data.nifti import NOTICEABLE_VOXELS, read_image, read_labels
from implicitmeshnet.data.overview import Overview, label_centre_mm, overview_of
from implicitmeshnet.data.plausibility import check_box, intensity_quantiles, intensity_statistics, shares_outside
from implicitmeshnet.data.volume import (
    Grid,
    Volume,
    box_inside,
    canonical,
    in_order_of,
    network_grid,
    normalise_intensity,
    resample_image,
    resample_labels,
    voxels_apart,
)
from implicitmeshnet.script import InputError, read_json, shorten
from implicitmeshnet.structures import Structures

ENDINGS = (".nii.gz", ".nii")
NAMED_VALUES = 20  # label values that a message lists


@dataclass(frozen=True)
class Case:
    """The files of one image and of its label map, where it has one."""

    name: str
    image: Path
    label: Path | None


@dataclass
class Sample:
    """One case on the network's grid of (X, Y, Z) voxels, with a margin of m voxels on every side."""

    image: torch.Tensor  # (X + 2m, Y + 2m, Z + 2m) float32 in [-1, 1]
    label: torch.Tensor | None  # same shape, uint8: a class map, see `Structures`
    grid: Grid  # without the margin
    overview: Overview | None = None  # of the whole volume, where data.region is 'found'
    shares_outside: np.ndarray | None = None  # (S,) of each structure's label that lies outside the grid
    quantiles: list[float] | None = None  # of the intensities within the grid, see `plausibility`


def find_cases(folder: Path | str, labelled: bool, split: str = "Tr") -> list[Case]:
    """The cases of a folder, sorted by name; with `labelled` each must have a label.

    Layouts: imagesTr and labelsTr, or of the split 'Ts' imagesTs and labelsTs (Decathlon: NAME for both; nnU-Net: image
    NAME_0000, label NAME; dataset.json may name the file_ending), MM-WHS (NAME_image and NAME_label), or, for
    unlabelled cases, any NIfTI files, NAME or NAME_0000. Raises InputError for a missing or empty folder, a missing
    label, a name found twice, more than one channel.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: wanted a folder of cases, found none")
    if splits_of(folder):
        cases = _data_set_cases(folder, split)
        wanted = f"images in images{split}"
    else:
        cases = _flat_cases(folder, labelled)
        wanted = "NAME_image.nii.gz files (MM-WHS) or an imagesTr folder with some"
    if not cases:
        raise InputError(f"{folder}: wanted {wanted}, found none")
    for case in cases:
        if labelled and case.label is None:
            raise InputError(f"{case.image}: wanted a label for this image, found none")
    return sorted(cases, key=lambda case: case.name)


def splits_of(folder: Path | str) -> list[str]:
    """Which of a data set's splits, 'Ts' and 'Tr', a folder has images of; none where it is no data set's root."""
    return [split for split in ("Ts", "Tr") if (Path(folder) / f"images{split}").is_dir()]


def _flat_cases(folder: Path, labelled: bool) -> list[Case]:
    files = _nifti_files(folder, ENDINGS)
    images = {stem.removesuffix("_image"): path for stem, path in files.items() if stem.endswith("_image")}
    if not (images or labelled):  # any file is an image then, unless it is the label map of another
        labels = {f"{stem}_label" for stem in files}
        others = {stem: path for stem, path in files.items() if stem not in labels}
        images = _without_channels(others, {})
    return [Case(name, path, files.get(f"{name}_label")) for name, path in images.items()]


def _data_set_cases(folder: Path, split: str) -> list[Case]:
    endings = _file_endings(folder / "dataset.json")
    channels = _nifti_files(folder / f"images{split}", endings)
    labels = _nifti_files(folder / f"labels{split}", endings)
    images = _without_channels(channels, labels)
    return [Case(name, path, labels.get(name)) for name, path in images.items()]


def _without_channels(images: dict[str, Path], labels: dict[str, Path]) -> dict[str, Path]:
    """Images by their case's name: NAME_0000 is NAME's first channel, unless a label is called NAME_0000 too."""
    cases: dict[str, Path] = {}
    for stem, path in images.items():
        base, _, channel = stem.rpartition("_")
        is_channel = re.fullmatch(r"\d{4}", channel) and f"{base}_0000" in images
        name = base if is_channel and stem not in labels else stem
        if name in cases:
            raise InputError(f"{path}: wanted single-channel images, found another channel {cases[name].name}")
        cases[name] = path
    return cases


def _file_endings(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ENDINGS
    if not path.is_file():  # a pipe, say, would keep the reader waiting
        raise InputError(f"{path}: wanted a file, found something else of this name")
    ending = read_json(path, "a description of a data set").get("file_ending")
    if ending not in (None, *ENDINGS):
        raise InputError(f"{path}: wanted file_ending .nii.gz or .nii, found {shorten(repr(ending))}")
    return (ending,) if ending else ENDINGS


def _nifti_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by their name without ending, sorted; none where there is no such folder.

    Hidden files are left out, as are those that macOS writes beside others, whose names begin with ._ too.
    """
    files: dict[str, Path] = {}
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
    """Draw the validation cases at random: (training, validation), both sorted by name.

    The same names and seed give the same split. Raises InputError where no case would be left for training.
    """
    if len(cases) <= validation_cases:
        raise InputError(
            f"data.validation_cases: wanted fewer than the {len(cases)} cases of the folder, found {validation_cases}"
        )
    order = np.random.default_rng(seed).permutation(len(cases))
    drawn = set(order[:validation_cases].tolist())
    training: list[Case] = []
    validation: list[Case] = []
    for index, case in enumerate(sorted(cases, key=lambda case: case.name)):
        part = validation if index in drawn else training
        part.append(case)
    return training, validation


def read_case(case: Case) -> tuple[Volume, Volume | None]:
    """Read a case's image and, where it has one, its label map, brought to the image's own voxel order.

    A warning that holds for both files is kept for the image alone. Raises InputError for an unreadable file and for a
    label map that does not lie on its image.
    """
    image = read_image(case.image)
    if case.label is None:
        return image, None
    labels = in_order_of(read_labels(case.label), image.grid)
    check_same_grid(case.label, image.grid, labels.grid)
    own = []
    for warning in labels.warnings:
        of_image = warning.replace(str(case.label), str(case.image))
        if of_image not in image.warnings:
            own.append(warning)
    return image, replace(labels, grid=image.grid, warnings=tuple(own))


def standardise(image: Volume, config: DataConfig) -> Volume:
    """The canonical volume of normalised intensities: what overviews and the network's samples are cut from."""
    # Turned first, because percentiles of every n-th voxel would otherwise depend on the file's orientation.
    image = canonical(image)
    return replace(image, data=normalise_intensity(image.data, config))


def on_network_grid(
    image: Volume, labels: Volume | None, grid: Grid, structures: Structures, margin: int = 0
) -> Sample:
    """A standardised image and its canonical label map on the network's grid, `margin` voxels wider on every side."""
    padded = _pad(grid, margin)
    label = None
    if labels is not None:
        label = torch.from_numpy(resample_labels(labels, padded, structures))
    resampled = resample_image(image, padded, background=-1.0)
    return Sample(torch.from_numpy(resampled), label, grid)


def read_labelled(case: Case, config: DataConfig) -> tuple[Volume, Volume]:
    """Read a case that is known to have a label map, as `read_case`, and print the warnings about its files.

    Raises InputError as `read_case`, and for a label map that has none of the structures.
    """
    image, labels = read_case(case)
    assert labels is not None, "find_cases was asked for labelled cases"
    for warning in image.warnings + labels.warnings:
        tqdm.write(f"warning: {warning}", file=sys.stderr)
    check_labels(labels, Structures.of(config))
    return image, labels


def training_sample(case: Case, config: DataConfig, margin: int = 0) -> Sample:
    """Read a labelled case onto the network's grid, which lies around the structures where data.region is 'found'.

    Raises InputError as `read_case`, and for a label map that has none of the structures.
    """
    image, labels = read_labelled(case, config)
    image = standardise(image, config)
    labels = canonical(labels)
    overview = None
    centre_mm = None
    if config.region == "found":
        overview = overview_of(image, labels, config)
        centre_mm = label_centre_mm(labels, config)
    grid = network_grid(image.grid, config.shape, config.spacing_mm, centre_mm)
    sample = on_network_grid(image, labels, grid, Structures.of(config), margin)
    within_grid = without_margin(sample.image, grid.shape).numpy()
    seen = within_grid[box_inside(grid, image.grid)]  # no background from outside the volume
    return replace(
        sample,
        overview=overview,
        shares_outside=shares_outside(labels, grid, config),
        quantiles=intensity_quantiles(seen),
    )


def without_margin(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A volume (X + 2m, Y + 2m, Z + 2m) without its margin of m voxels: its middle of the shape (X, Y, Z)."""
    box = []
    for wide, size in zip(volume.shape, shape, strict=True):
        margin = (wide - size) // 2
        box.append(slice(margin, margin + size))
    return volume[tuple(box)]


def check_cases(cases: list[Case], config: DataConfig) -> None:
    """Read labelled cases that are only needed later, so that errors and warnings appear now, as `read_labelled`'s."""
    for case in tqdm(cases, desc="checking validation cases", unit="case"):
        read_labelled(case, config)


def check_labels(labels: Volume, structures: Structures) -> None:
    """Raise InputError where a label map has none of the structures' values."""
    if structures.any_in(labels.data):
        return
    wanted = ", ".join(map(str, structures.label_values))
    present = np.unique(labels.data).tolist()
    found = ", ".join(map(str, present[:NAMED_VALUES]))
    more = ", ..." if len(present) > NAMED_VALUES else ""
    raise InputError(f"{labels.name}: wanted some of the label values {wanted}, found {found}{more}")


def check_same_grid(path: Path | str, wanted: Grid, found: Grid, owner: str = "the image") -> None:
    """Raise InputError where a file's grid is not its owner's, by shape or by more than a hundredth of a voxel."""
    if found.shape != wanted.shape:
        raise InputError(f"{path}: wanted {owner}'s shape {wanted.shape}, found {found.shape}")
    apart = voxels_apart(wanted.shape, wanted.affine, found.affine)
    if apart > NOTICEABLE_VOXELS:
        raise InputError(f"{path}: wanted {owner}'s affine, found one that lies {apart:.3g} voxels off")


def _pad(grid: Grid, margin: int) -> Grid:
    """A grid that is `margin` voxels wider on every side."""
    affine = grid.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, margin)
    x, y, z = grid.shape
    return Grid((x + 2 * margin, y + 2 * margin, z + 2 * margin), affine)


class TrainingSet:
    """Prepared samples in memory, images as float16; `samples[i]` is a Sample with a float32 image.

    Prints a line for each structure that the network's grid cuts. `intensity_statistics` describes the intensities that
    the network sees. Raises InputError as `training_sample`, where a structure appears in no case at all, and where the
    grid leaves most of a structure out.
    """

    def __init__(self, cases: list[Case], config: DataConfig, margin: int = 0):
        self.samples: list[Sample] = []
        for case in tqdm(cases, desc="reading cases", unit="case"):
            sample = training_sample(case, config, margin)
            self.samples.append(replace(sample, image=sample.image.half()))
        self._check_structures(Structures.of(config))
        outside = [sample.shares_outside for sample in self.samples if sample.shares_outside is not None]
        for line in check_box(outside, config):
            print(line)
        quantiles = [sample.quantiles for sample in self.samples if sample.quantiles is not None]
        self.intensity_statistics = intensity_statistics(quantiles)

    def _check_structures(self, structures: Structures) -> None:
        """Raise InputError for a structure that appears in no sample."""
        voxels = np.zeros(len(structures), np.int64)
        for sample in self.samples:
            assert sample.label is not None, "training_sample reads labelled cases"
            voxels += structures.counts(sample.label.numpy())
        for name, count in zip(structures.names, voxels, strict=True):
            if not count:
                raise InputError(
                    f"data.structures: wanted {name} in at least one of {len(self)} cases, found it in none"
                )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        return replace(sample, image=sample.image.float())

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def template_statistics(samples: Iterable[Sample], config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean centre and semi-axes of what each structure's mesh holds, both (S, 3) float64 in normalised coordinates.

    The samples are labelled. The semi-axes are those of the ellipsoid with the mask's variance along each axis,
    sqrt(5 variance), each voxel counted as a cube. Margins beyond the grid are left out. Raises InputError for a
    structure that is in no sample.
    """
    structures = Structures.of(config)
    centres: list[list[np.ndarray]] = [[] for _ in structures.names]
    radii: list[list[np.ndarray]] = [[] for _ in structures.names]
    for sample in samples:
        assert sample.label is not None, "template_statistics wants labelled samples"
        classes = without_margin(sample.label, config.shape).numpy()
        for structure in range(len(structures)):
            mask = structures.held(classes, structure)
            if mask.any():
                centre, semi_axes = ellipsoid_of(mask)
                centres[structure].append(centre)
                radii[structure].append(semi_axes)
    for name, found in zip(structures.names, centres, strict=True):
        if not found:
            raise InputError(f"data.structures: wanted {name} in at least one training case, found it in none")
    mean_centres = np.array([np.mean(rows, 0) for rows in centres])
    mean_radii = np.array([np.mean(rows, 0) for rows in radii])
    return mean_centres, mean_radii


def ellipsoid_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and semi-axes (3,), normalised, of the axis-parallel ellipsoid with the moments of a mask (X, Y, Z)."""
    mean, variance = _moments(mask)
    normalised_from_voxel = np.linalg.inv(voxel_from_normalised(mask.shape))
    centre = transform(normalised_from_voxel, mean)
    side = 2 / (np.array(mask.shape) - 1)  # of a voxel, normalised
    own_variance = 1 / 12  # of a voxel as a cube of side 1
    return centre, np.sqrt(5 * (variance + own_variance)) * side


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (3,) and variance (3,) of the voxel indices in a mask (X, Y, Z)."""
    means = []
    squares = []
    for axis in range(3):
        counts = mask.sum(tuple({0, 1, 2} - {axis}))
        index = np.arange(len(counts))
        means.append(np.average(index, weights=counts))
        squares.append(np.average(index**2, weights=counts))
    mean = np.array(means)
    return mean, np.array(squares) - mean**2
