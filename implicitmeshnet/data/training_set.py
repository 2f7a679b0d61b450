"""The cases of a training: read and resampled once, kept as files, mapped into memory where they are drawn."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from implicitmeshnet.config import DataConfig, IntensityStatistics
from implicitmeshnet.data.appearance import random_overview
from implicitmeshnet.data.cache import entry_path, read_entry, write_entry
from implicitmeshnet.data.dataset import (
    Case,
    Facts,
    Sample,
    read_labelled,
    read_tissues,
    say,
    tissue_sample,
    training_sample,
)
from implicitmeshnet.data.overview import Overview
from implicitmeshnet.data.plausibility import check_box, intensity_statistics
from implicitmeshnet.data.tissue_maps import Anatomy, anatomy_of, tissue_parts
from implicitmeshnet.data.volume import Grid, Volume, canonical, network_grid, resample_labels
from implicitmeshnet.progress import progress
from implicitmeshnet.script import InputError, remove_partials
from implicitmeshnet.structures import Structures


def prepare(cases: Sequence[Case], config: DataConfig, margin: int, cache_dir: Path | str, kind: str = "image") -> None:
    """Make the samples of labelled cases that are missing in a cache folder, and say what was found about each file.

    Of a sample that is there the warnings are said again that reading its case had led to. Several processes may
    prepare parts of one training's cases at a time. Raises InputError as `training_sample`, and where the folder cannot
    be written to. With a `kind` 'tissues' the cases' images are tissue maps.
    """
    files = _SampleFiles(Path(cache_dir), config, margin, kind)
    with suppress(OSError):  # where nothing can be removed, there may still be all samples
        remove_partials(files.folder)
    for case in progress(cases, "reading cases"):
        sample = files.read(files.path_of(case))
        if sample is None:
            files.make(case)
        else:
            say(_facts_of(sample).warnings)


def check_cases(cases: Sequence[Case], config: DataConfig, cache_dir: Path | str, kind: str = "image") -> set[str]:
    """Read labelled cases that are only needed later, so that errors and warnings appear now, as `read_labelled`'s.

    Gives the names of the structures that any of them has. A cache folder remembers the cases that were found to be
    good, with their structures and warnings. With a `kind` 'tissues' the cases' images are tissue maps, and it keeps
    the `image_of_tissues`.
    """
    structures = Structures.of(config)
    labelled: set[str] = set()
    for case in progress(cases, "checking validation cases"):
        if kind == "tissues":
            image, labels = image_of_tissues(case, config, cache_dir)
            say(image.warnings)
            labelled.update(structures.present_in(labels.data))
            continue
        path = _path_of(case, config, Path(cache_dir), "checked")
        found = read_entry(path, lambda entry: (entry["structures"], entry["warnings"]))
        if found is None:
            image, labels = read_labelled(case, config)
            found = (structures.present_in(labels.data), [*image.warnings, *labels.warnings])
            write_entry(path, {"structures": found[0], "warnings": found[1]})
        else:
            say(found[1])
        labelled.update(found[0])
    return labelled


def image_of_tissues(case: Case, config: DataConfig, cache_dir: Path | str) -> tuple[Volume, Volume]:
    """A random image of all of a tissue map, and its label map, at the network's spacing: the same each time.

    They are kept in a cache folder. Raises InputError as `read_tissues`.
    """
    path = _path_of(case, config, Path(cache_dir), "image of tissues")
    entry = read_entry(path, dict)
    if entry is None:
        entry = _drawn_volume(case, config)
        write_entry(path, entry)
    x, y, z = entry["labels"].shape
    grid = Grid((x, y, z), np.array(entry["affine"]))
    image = Volume(entry["image"].numpy(), grid, tuple(entry["warnings"]), case.source)
    return image, Volume(entry["labels"].numpy(), grid)


def _drawn_volume(case: Case, config: DataConfig) -> dict[str, Any]:
    """What `image_of_tissues` keeps."""
    tissues, labels = map(canonical, read_tissues(case, config))
    sides_mm = tissues.data.shape * tissues.grid.spacing_mm
    shape = np.ceil(np.divide(sides_mm, config.spacing_mm)).astype(int)
    grid = network_grid(tissues.grid, shape.tolist(), config.spacing_mm)
    structures = Structures.of(config)
    classes = resample_labels(labels, grid, structures)
    parts = tissue_parts(tissues, grid)
    anatomy = anatomy_of(classes, parts[0], structures, grid)
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    drawn = random_overview(
        torch.from_numpy(parts),
        torch.from_numpy(classes),
        anatomy,
        grid.spacing_mm,
        generator,
        structures.ignored_class,
        without=("view",),
    )
    known = torch.where(drawn.label == structures.ignored_class, 0, drawn.label)
    return {
        "image": drawn.image[0],
        "labels": torch.from_numpy(structures.label_map(known.numpy())),
        "affine": grid.affine.tolist(),
        "warnings": [*tissues.warnings, *labels.warnings],
    }


class TrainingSet:
    """The samples of labelled cases: `samples[i]` is a Sample with an image of float16, its volumes mapped from a file.

    With a `kind` 'tissues' tissue parts take the image's place, and there are no `intensity_statistics`.

    Samples that are missing in the cache folder are made, as by `prepare`; so is one whose file was removed or damaged
    meanwhile. `facts` has what was counted and measured of each, and `intensity_statistics` describes the intensities
    that the network sees. Prints a line for each structure that the network's grid cuts. Raises InputError as
    `prepare`, where a structure appears in no case at all, and where the grid leaves most of a structure out.
    """

    def __init__(
        self, cases: Sequence[Case], config: DataConfig, margin: int, cache_dir: Path | str, kind: str = "image"
    ):
        self._cases = list(cases)
        self._files = _SampleFiles(Path(cache_dir), config, margin, kind)
        self._paths = [self._files.path_of(case) for case in cases]
        self.facts: list[Facts] = [_facts_of(self[index]) for index in range(len(self))]
        self._check_structures(Structures.of(config))
        for line in check_box([facts.shares_outside for facts in self.facts], config):
            print(line)

    @property
    def intensity_statistics(self) -> IntensityStatistics | list[IntensityStatistics]:
        """Of the images' channel, or of each where there are several."""
        quantiles = [facts.quantiles for facts in self.facts]
        of_channels = [intensity_statistics(of_channel) for of_channel in zip(*quantiles, strict=True)]
        return of_channels if len(of_channels) > 1 else of_channels[0]

    @property
    def ellipsoids(self) -> list[np.ndarray]:
        """Of each case, see `ellipsoids_of`: (S, 2, 3)."""
        return [facts.ellipsoids for facts in self.facts]

    def _check_structures(self, structures: Structures) -> None:
        """Raise InputError for a structure that appears in no sample."""
        voxels = np.sum([facts.voxels for facts in self.facts], 0)
        for name, count in zip(structures.names, voxels, strict=True):
            if not count:
                raise InputError(
                    f"data.structures: wanted {name} in at least one of {len(self)} cases, found it in none"
                )

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> Sample:
        # Mapped anew each time: what is in use then counts as the process's memory, not all that it has ever seen.
        sample = self._files.read(self._paths[index])
        if sample is None:
            self._paths[index], sample = self._files.make(self._cases[index])
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class _SampleFiles:
    """The samples of a config, with a margin, as files in a cache folder."""

    folder: Path
    config: DataConfig
    margin: int
    kind: str = "image"

    def path_of(self, case: Case) -> Path:
        what = "" if self.kind == "image" else f" of {self.kind}"
        return _path_of(case, self.config, self.folder, f"sample{what} with a margin of {self.margin}")

    def read(self, path: Path) -> Sample | None:
        """The sample in a file, its volumes mapped; None, and perhaps a warning, where it has to be made."""
        return read_entry(path, _from_entry)

    def make(self, case: Case) -> tuple[Path, Sample]:
        """Read and resample a case and write its sample, over what is there; its file and the sample."""
        path = self.path_of(case)  # before it is read: a file that changes meanwhile is another's then
        if self.kind == "tissues":
            sample = tissue_sample(case, self.config, self.margin)
        else:
            sample = training_sample(case, self.config, self.margin)
            sample = replace(sample, image=sample.image.half())
        write_entry(path, _to_entry(sample))
        return path, sample


def _path_of(case: Case, config: DataConfig, folder: Path, kind: str) -> Path:
    assert case.label is not None, "find_cases was asked for labelled cases"
    return entry_path(folder, case.name, (*case.images, case.label), config, kind)


def _facts_of(sample: Sample) -> Facts:
    assert sample.facts is not None, "training_sample fills them in"
    return sample.facts


def _to_entry(sample: Sample) -> dict[str, Any]:
    """A training sample as tensors and plain values."""
    facts = _facts_of(sample)
    overview = sample.overview
    return {
        **_volume_to_entry(sample),
        "overview": None if overview is None else _volume_to_entry(overview),
        "warnings": list(facts.warnings),
        "voxels": facts.voxels.tolist(),
        "ellipsoids": facts.ellipsoids.tolist(),
        "shares_outside": facts.shares_outside.tolist(),
        "quantiles": facts.quantiles,
    }


def _from_entry(entry: dict[str, Any]) -> Sample:
    """The training sample of an entry; an error of any kind where it is none."""
    overview = entry["overview"]
    facts = Facts(
        tuple(entry["warnings"]),
        np.array(entry["voxels"]),
        np.array(entry["ellipsoids"]),
        np.array(entry["shares_outside"]),
        entry["quantiles"],
    )
    return Sample(
        *_volume_from_entry(entry, torch.float16),
        None if overview is None else _overview_from_entry(overview),
        facts,
        _anatomy_from_entry(entry),
    )


def _overview_from_entry(entry: dict[str, Any]) -> Overview:
    return Overview(*_volume_from_entry(entry, torch.float32), _anatomy_from_entry(entry))


def _anatomy_from_entry(entry: dict[str, Any]) -> Anatomy | None:
    values = entry["anatomy"]
    return None if values is None else Anatomy(**{name: np.array(value) for name, value in values.items()})


def _volume_to_entry(volume: Sample | Overview) -> dict[str, Any]:
    grid = volume.grid
    anatomy = volume.anatomy
    return {
        "image": volume.image,
        "label": volume.label,
        "shape": list(grid.shape),
        "affine": grid.affine.tolist(),
        "anatomy": None if anatomy is None else {name: value.tolist() for name, value in vars(anatomy).items()},
    }


def _volume_from_entry(entry: dict[str, Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Grid]:
    """Image of that type (C, ...), or tissue parts of uint8, label of uint8 and grid; ValueError where they do not
    belong together."""
    image = entry["image"]
    label = entry["label"]
    if image.dtype not in (dtype, torch.uint8) or label.dtype != torch.uint8 or image.shape[1:] != label.shape:
        raise ValueError("wanted an image and its class map")
    x, y, z = entry["shape"]
    return image, label, Grid((x, y, z), np.array(entry["affine"]))
