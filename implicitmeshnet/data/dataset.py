"""From folders in MM-WHS naming or Decathlon / nnU-Net layout to samples on the network's grid."""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from tqdm import tqdm

from implicitmeshnet.config import Config, DataConfig
from implicitmeshnet.data.dicom import Series, read_series
from implicitmeshnet.data.ellipsoids import ellipsoids_of
from implicitmeshnet.data.formats import ENDINGS, SEGMENTATION_ENDING, ending_of, read_image, read_labels, stem_of
from implicitmeshnet.data.nifti import NOTICEABLE_VOXELS
from implicitmeshnet.data.overview import Overview, label_centre_mm, overview_of
from implicitmeshnet.data.plausibility import intensity_quantiles, shares_outside
from implicitmeshnet.data.tissue_maps import Anatomy, anatomy_of, check_tissues, tissue_parts
from implicitmeshnet.data.volume import (
    Grid,
    Volume,
    box_inside,
    canonical,
    covered,
    in_order_of,
    network_grid,
    normalise_intensity,
    resample_channels,
    resample_labels,
    slices_along,
    turned_by,
    voxels_apart,
)
from implicitmeshnet.script import InputError, read_json, shorten
from implicitmeshnet.structures import Structures

CHANNEL = re.compile(r"_(\d{4})$")
"""How nnU-Net ends the names of a channel's images, before the file's ending."""
NO_IMAGE = re.compile(r"_(label|gt|seg|labelmap|segmentation|tissues)$", re.IGNORECASE)
"""How the names of files end that are no images: label maps of MM-WHS, ACDC and others, and this program's own maps."""
NAMED_VALUES = 20  # label values that a message lists


@dataclass(frozen=True)
class Case:
    """The files of one image and of its label map, where it has one."""

    name: str
    image: Path
    """Of the first channel, or the only one."""
    label: Path | None
    others: tuple[Path, ...] = ()
    """Of the second channel and further ones."""
    series: Series | None = None
    """The DICOM series that is the image, where it is one; `image` is then the folder or zip that holds it."""

    @property
    def source(self) -> str:
        """What messages call the image."""
        return str(self.series or self.image)

    @property
    def images(self) -> tuple[Path, ...]:
        """The files of all channels."""
        return (self.image, *self.others)

    @property
    def files(self) -> tuple[Path, ...]:
        """All of the case's files."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True, eq=False)
class Facts:
    """What is counted and measured of a training case when it is read."""

    warnings: tuple[str, ...]  # a sentence on each thing about its files that may make results wrong
    voxels: np.ndarray  # (S,) of each structure's own in the sample, margin included
    ellipsoids: np.ndarray  # (S, 2, 3) of what each structure's mesh holds in the grid, see `ellipsoids_of`
    shares_outside: np.ndarray  # (S,) of each structure's label that lies outside the grid
    quantiles: list[list[float]]  # by channel, of the intensities in the grid, see `plausibility`; none of tissues


@dataclass
class Sample:
    """One case on the network's grid of (X, Y, Z) voxels, with a margin of m voxels on every side."""

    image: torch.Tensor  # (C, X + 2m, Y + 2m, Z + 2m) float32 in [-1, 1], of a training set float16; or parts
    label: torch.Tensor | None  # (X + 2m, Y + 2m, Z + 2m) uint8: a class map, see `Structures`
    grid: Grid  # without the margin
    overview: Overview | None = None  # of the whole volume, where data.region is 'found'
    facts: Facts | None = None  # of a training case
    anatomy: Anatomy | None = None  # of one whose image are tissue parts


def find_cases(
    folder: Path | str, labelled: bool, split: str = "Tr", channels: int = 1, kind: str = "image"
) -> list[Case]:
    """The cases of a folder, sorted by name; with `labelled` each must have a label.

    Layouts: imagesTr and labelsTr, or of the split 'Ts' imagesTs and labelsTs (Decathlon: NAME for both; nnU-Net: image
    NAME_0000, label NAME; dataset.json may name the file_ending), MM-WHS (NAME_image and NAME_label), and, for
    unlabelled cases, any other volumes, NAME or NAME_0000, whose names do not end as those of label maps do. Files are
    NIfTI, NRRD or MetaImage. Images of several `channels` are NAME_0000, NAME_0001, ...; beside these in one folder
    lies NAME_label. With a `kind` 'tissues' NAME_tissues takes the place of NAME_image. Raises InputError for a missing
    or empty folder, a missing label, a name found twice, more channels or fewer.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: wanted a folder of cases, found none")
    if splits_of(folder):
        cases = _data_set_cases(folder, split, channels)
        wanted = f"images in images{split}"
    else:
        cases = _flat_cases(folder, labelled, channels, kind)
        named = (
            f"NAME_{kind}.nii.gz files (MM-WHS)" if channels == 1 else "NAME_0000.nii.gz, NAME_0001.nii.gz, ... files"
        )
        wanted = f"{named} or an imagesTr folder with some"
    if not cases:
        raise InputError(f"{folder}: wanted {wanted}, found none")
    for case in cases:
        if labelled and case.label is None:
            raise InputError(f"{case.image}: wanted a label for this image, found none")
    return sorted(cases, key=lambda case: case.name)


def splits_of(folder: Path | str) -> list[str]:
    """Which of a data set's splits, 'Ts' and 'Tr', a folder has images of; none where it is no data set's root."""
    return [split for split in ("Ts", "Tr") if (Path(folder) / f"images{split}").is_dir()]


def has_images(folder: Path) -> bool:
    """Whether a folder has files of images, NIfTI, NRRD or MetaImage, in itself."""
    return not all(map(NO_IMAGE.search, _volume_files(folder, ENDINGS)))


def skipped_maps(folder: Path, cases: Sequence[Case]) -> list[str]:
    """The names of the files right in a folder that are no images by their names, nor maps of one of its cases."""
    known = {f"{case.name}_{kind}" for case in cases for kind in ("label", "tissues")}
    files = _volume_files(folder, ENDINGS)
    return [path.name for stem, path in files.items() if NO_IMAGE.search(stem) and stem not in known]


def _flat_cases(folder: Path, labelled: bool, channels: int, kind: str) -> list[Case]:
    files = _volume_files(folder, ENDINGS)
    ending = f"_{kind}"
    if channels > 1:
        numbered = {stem: path for stem, path in files.items() if CHANNEL.search(stem)}
        grouped = _by_case(numbered, {}, channels)
    else:
        named = {stem: path for stem, path in files.items() if stem.endswith(ending)}
        grouped = {stem.removesuffix(ending): (path,) for stem, path in named.items()}
        others = {} if labelled else _other_images(files, named)
        for name, paths in others.items():
            if name in grouped:
                raise InputError(f"{paths[0]}: wanted one file for each case, found {grouped[name][0].name} beside it")
        grouped |= others
    return [Case(name, paths[0], files.get(f"{name}_label"), paths[1:]) for name, paths in grouped.items()]


def _other_images(files: dict[str, Path], named: dict[str, Path]) -> dict[str, tuple[Path, ...]]:
    """The images of one channel among files, by case, that are not named as images, but not as maps either."""
    images = {stem: path for stem, path in files.items() if stem not in named and not NO_IMAGE.search(stem)}
    return _by_case(images, {}, 1)


def _data_set_cases(folder: Path, split: str, channels: int) -> list[Case]:
    endings = _file_endings(folder / "dataset.json")
    images = _volume_files(folder / f"images{split}", endings)
    labels = _volume_files(folder / f"labels{split}", endings)
    grouped = _by_case(images, labels, channels)
    return [Case(name, paths[0], labels.get(name), paths[1:]) for name, paths in grouped.items()]


def _by_case(images: dict[str, Path], labels: dict[str, Path], channels: int) -> dict[str, tuple[Path, ...]]:
    """The images of all `channels` of each case, by its name, from files by their names.

    NAME_0000 is NAME's first channel, unless a label is called NAME_0000 too.
    """
    cases: dict[str, dict[int, Path]] = {}
    for stem, path in images.items():
        name = stem
        number = 0
        match = CHANNEL.search(stem)
        if match and stem not in labels and (channels > 1 or f"{stem[: match.start()]}_0000" in images):
            name = stem[: match.start()]
            number = int(match[1])
        of_case = cases.setdefault(name, {})
        _check_channel(path, number, of_case, channels)
        of_case[number] = path
    return {name: _all_channels(name, of_case, channels) for name, of_case in cases.items()}


def _check_channel(path: Path, number: int, found: dict[int, Path], channels: int) -> None:
    """Raise InputError where a case has no place for another channel of a number, beside those found."""
    other = next(iter(found.values()), path)
    if channels == 1 and found:
        raise InputError(f"{path}: wanted single-channel images, found another channel {other.name}")
    if number >= channels:
        raise InputError(f"{path}: wanted {channels} channels, one for each rule of data.intensity, found another")
    if number in found:
        raise InputError(f"{path}: wanted one file for each channel, found {found[number].name} beside it")


def _all_channels(name: str, found: dict[int, Path], channels: int) -> tuple[Path, ...]:
    """The files of a case in the order of their channels; InputError where one is missing."""
    for number in range(channels):
        if number not in found:
            beside = next(iter(found.values()))
            missing = beside.with_name(f"{name}_{number:04}{ending_of(beside)}")
            raise InputError(f"{missing}: wanted this one of {channels} channels, a file each, found no such file")
    return tuple(found[number] for number in range(channels))


def _file_endings(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ENDINGS
    if not path.is_file():  # a pipe, say, would keep the reader waiting
        raise InputError(f"{path}: wanted a file, found something else of this name")
    ending = read_json(path, "a description of a data set").get("file_ending")
    if ending not in (None, *ENDINGS):
        raise InputError(f"{path}: wanted file_ending {' or '.join(ENDINGS)}, found {shorten(repr(ending))}")
    return (ending,) if ending else ENDINGS


def _volume_files(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by their name without ending, sorted; none where there is no such folder.

    Hidden files are left out, as are those that macOS writes beside others, whose names begin with ._ too, and the
    segmentations of 3D Slicer.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.name.lower().endswith(SEGMENTATION_ENDING):
            continue
        if ending_of(path) not in endings:
            continue
        stem = stem_of(path)
        if stem in files:
            raise InputError(f"{path}: wanted one file for each case, found {files[stem].name} beside it")
        files[stem] = path
    return files


def configured_split(cases: list[Case], config: Config) -> tuple[list[Case], list[Case]]:
    """The training and the validation cases of a config's training, as `split_cases`.

    With data.training_cases the training cases are so many of those, sorted by name too. Raises InputError as
    `split_cases`, and where fewer are left.
    """
    data = config.data
    fold = None if data.fold is None else (data.fold, data.folds)
    training, validation = split_cases(cases, data.validation_cases, config.training.seed, fold)
    if data.training_cases is None:
        return training, validation
    if data.training_cases > len(training):
        raise InputError(
            f"data.training_cases: wanted at most the {len(training)} that are left for training, found"
            f" {data.training_cases}"
        )
    order = np.random.default_rng(config.training.seed).permutation(len(training))
    drawn = sorted(order[: data.training_cases])
    return [training[index] for index in drawn], validation


def split_cases(
    cases: list[Case], validation_cases: int, seed: int, fold: tuple[int, int] | None = None
) -> tuple[list[Case], list[Case]]:
    """Draw the validation cases at random: (training, validation), both sorted by name.

    With a `fold` (k, n) they are part k of n parts, which hold every case once and differ in size by at most one,
    instead of so many `validation_cases`. The same names and seed give the same split. Raises InputError where no case
    would be left for training, and for fewer cases than folds.
    """
    order = np.random.default_rng(seed).permutation(len(cases))
    drawn = set(_held_out(order, validation_cases, fold).tolist())
    training: list[Case] = []
    validation: list[Case] = []
    for index, case in enumerate(sorted(cases, key=lambda case: case.name)):
        part = validation if index in drawn else training
        part.append(case)
    return training, validation


def _held_out(order: np.ndarray, validation_cases: int, fold: tuple[int, int] | None) -> np.ndarray:
    """Which of the cases are held out, by number, from a random order of all of them."""
    if fold is not None:
        number, folds = fold
        if len(order) < folds:
            raise InputError(f"data.folds: wanted at most the {len(order)} cases of the folder, found {folds}")
        return order[number::folds]
    if len(order) <= validation_cases:
        raise InputError(
            f"data.validation_cases: wanted fewer than the {len(order)} cases of the folder, found {validation_cases}"
        )
    return order[:validation_cases]


def read_case(case: Case) -> tuple[Volume, Volume | None]:
    """Read a case's image and, where it has one, its label map, brought to the image's own voxel order.

    A warning that holds for both files is kept for the image alone. Raises InputError as `read_channels`, and for a
    label map that cannot be read or does not lie on its image.
    """
    image = read_series(case.series) if case.series else read_channels(case.images)
    if case.label is None:
        return image, None
    return image, _on_grid_of(image, read_labels(case.label), "the image")


def read_channels(paths: Sequence[Path | str]) -> Volume:
    """Read an image of one channel a file, in the first one's voxel order.

    A warning that holds for several files is kept for the first alone. Raises InputError for an unreadable file and for
    a channel that does not lie on the first one.
    """
    first = read_image(paths[0])
    others = [_on_grid_of(first, read_image(path), "the first channel") for path in paths[1:]]
    warnings = first.warnings + tuple(warning for channel in others for warning in channel.warnings)
    return replace(first, others=tuple(channel.data for channel in others), warnings=warnings)


def _on_grid_of(owner: Volume, volume: Volume, name: str) -> Volume:
    """A volume from a file in the voxel order of another, its owner, without the warnings that this has too.

    Raises InputError, which calls the owner by `name`, where the volume does not lie on it.
    """
    turned = in_order_of(volume, owner.grid)
    check_same_grid(volume.name, owner.grid, turned.grid, name)
    own = []
    for warning in volume.warnings:
        if warning.replace(volume.name, owner.name) not in owner.warnings:
            own.append(warning)
    return replace(turned, grid=owner.grid, warnings=tuple(own))


def standardise(image: Volume, config: DataConfig) -> Volume:
    """The canonical volume of normalised intensities: what overviews and the network's samples are cut from.

    Raises InputError for an image of more channels, or fewer, than data.intensity has rules.
    """
    found = len(image.channels)
    if found != config.channels:
        raise InputError(f"{image.name}: wanted {config.channels} channels, as data.intensity has rules, found {found}")
    # Turned first, because percentiles of every n-th voxel would otherwise depend on the file's orientation.
    image = canonical(image)
    normalised = []
    for number, channel in enumerate(image.channels):
        normalised.append(normalise_intensity(channel, config, number))
    return image.with_channels(normalised)


def on_network_grid(
    image: Volume, labels: Volume | None, grid: Grid, structures: Structures, margin: int = 0
) -> Sample:
    """A standardised image and its canonical label map on the network's grid, `margin` voxels wider on every side."""
    padded = _pad(grid, margin)
    label = None
    if labels is not None:
        label = torch.from_numpy(_classes(labels, padded, structures))
    resampled = resample_channels(image, padded, background=-1.0)
    return Sample(torch.from_numpy(resampled), label, grid)


def _classes(labels: Volume, grid: Grid, structures: Structures) -> np.ndarray:
    """The class map of a canonical label map on a grid, as `resample_labels`; beyond the volume perhaps ignored."""
    classes = resample_labels(labels, grid, structures)
    if structures.ignores_outside:
        classes[~covered(labels.grid, grid)] = structures.ignored_class
    return classes


def read_labelled(case: Case, config: DataConfig) -> tuple[Volume, Volume]:
    """Read a case that is known to have a label map, as `read_case`, and print the warnings about its files.

    Their world is turned where the network wants it, see `slices_along`. Raises InputError as `read_case`, and for a
    label map that has none of the structures.
    """
    image, labels = read_case(case)
    assert labels is not None, "find_cases was asked for labelled cases"
    say(image.warnings + labels.warnings)
    check_labels(labels, Structures.of(config))
    turn = slices_along(image.grid, config.spacing_mm)
    return turned_by(image, turn), turned_by(labels, turn)


def read_tissues(case: Case, config: DataConfig) -> tuple[Volume, Volume]:
    """Read a case whose image is a tissue map, and its label map, as `read_labelled`.

    Raises InputError as that, and for values that are no tissue's.
    """
    assert case.label is not None, "find_cases was asked for labelled cases"
    tissues = read_labels(case.image)
    labels = _on_grid_of(tissues, read_labels(case.label), "the tissue map")
    say(tissues.warnings + labels.warnings)
    check_tissues(tissues)
    check_labels(labels, Structures.of(config))
    return tissues, labels


def say(warnings: Iterable[str]) -> None:
    """Print a line on stderr for each warning, past a progress bar where there is one."""
    for warning in warnings:
        tqdm.write(f"warning: {warning}", file=sys.stderr)


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
    structures = Structures.of(config)
    sample = on_network_grid(image, labels, grid, structures, margin)
    assert sample.label is not None, "a label map was given"
    within_grid = without_margin(sample.image, grid.shape).numpy()
    seen = within_grid[(..., *box_inside(grid, image.grid))]  # no background from outside the volume
    facts = Facts(
        warnings=image.warnings + labels.warnings,
        voxels=structures.counts(sample.label.numpy()),
        ellipsoids=ellipsoids_of(without_margin(sample.label, grid.shape).numpy(), structures),
        shares_outside=shares_outside(labels, grid, config),
        quantiles=list(map(intensity_quantiles, seen)),
    )
    return replace(sample, overview=overview, facts=facts)


def tissue_sample(case: Case, config: DataConfig, margin: int = 0) -> Sample:
    """As `training_sample`, of a case whose image is a tissue map: tissue parts take the image's place, and the
    overview's.

    Raises InputError as `read_tissues`.
    """
    tissues, labels = map(canonical, read_tissues(case, config))
    structures = Structures.of(config)
    overview = None
    centre_mm = None
    if config.region == "found":
        seen = overview_of(tissues.with_channels([np.zeros(tissues.data.shape, np.float32)]), labels, config)
        overview = replace(seen, image=torch.from_numpy(tissue_parts(tissues, seen.grid)))
        centre_mm = label_centre_mm(labels, config)
    grid = network_grid(tissues.grid, config.shape, config.spacing_mm, centre_mm)
    padded = _pad(grid, margin)
    classes = _classes(labels, padded, structures)
    parts = tissue_parts(tissues, padded)
    anatomy = anatomy_of(classes, parts[0], structures, padded)
    if overview is not None:
        overview = replace(overview, anatomy=anatomy.seen_from(padded, overview.grid))
    label = torch.from_numpy(classes)
    facts = Facts(
        warnings=tissues.warnings + labels.warnings,
        voxels=structures.counts(classes),
        ellipsoids=ellipsoids_of(without_margin(label, grid.shape).numpy(), structures),
        shares_outside=shares_outside(labels, grid, config),
        quantiles=[],
    )
    return Sample(torch.from_numpy(parts), label, grid, overview, facts, anatomy)


def without_margin(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A volume (..., X + 2m, Y + 2m, Z + 2m) without its margin of m voxels: its middle of the shape (X, Y, Z)."""
    box = []
    for wide, size in zip(volume.shape[-3:], shape, strict=True):
        margin = (wide - size) // 2
        box.append(slice(margin, margin + size))
    x, y, z = box
    return volume[..., x, y, z]


def check_labels(labels: Volume, structures: Structures) -> None:
    """Raise InputError where a label map has none of the structures' values."""
    if not structures.any_in(labels.data):
        refuse_labels(labels.name, structures.label_values, np.unique(labels.data).tolist())


def refuse_labels(name: Path | str, wanted: Iterable[int], present: Sequence[int]) -> NoReturn:
    """Raise the InputError of a label map that has none of the values wanted but those present."""
    found = ", ".join(map(str, present[:NAMED_VALUES]))
    more = ", ..." if len(present) > NAMED_VALUES else ""
    raise InputError(f"{name}: wanted some of the label values {', '.join(map(str, wanted))}, found {found}{more}")


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
