"""One volume -> surfaces: what the evaluation, the validation of a training and notebooks all go through.

predictor = Predictor.from_config("configs_implicitmeshnet/whole_heart.json")
surfaces = predictor("heart.nii.gz")
surfaces.names  # ["LV", "RV", ...], S of them
surfaces.vertices, surfaces.faces  # (S, V, 3) in world mm, (F, 3)
surfaces.labelmap  # (X, Y, Z), on the image's own grid

An image of several channels is a list of files, in the order of data.intensity's rules: predictor(["a_0000.nii.gz",
"a_0001.nii.gz"]). Several configs are averaged: Predictor.from_config("fold_0/config.json", "fold_1/config.json").
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from implicitmeshnet.config import Config, DataConfig, load_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import Sample, on_network_grid, read_channels, standardise
from implicitmeshnet.data.overview import mask_centre_mm, overview_of
from implicitmeshnet.data.plausibility import intensity_warnings
from implicitmeshnet.data.volume import (
    Grid,
    Volume,
    box_inside,
    in_order_of,
    network_grid,
    resample_labels,
    slices_along,
    turned_by,
)
from implicitmeshnet.models.ensemble import Ensemble
from implicitmeshnet.models.mesh_net import ImplicitMeshNet
from implicitmeshnet.models.weights import load_network, pick_device, snapshot_path
from implicitmeshnet.ops import sample_trilinear
from implicitmeshnet.phases import Stopwatch
from implicitmeshnet.script import InputError, shorten
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.figures import Figure, StructureView, case_preview
from implicitmeshnet.surfaces.labelmap import mesh_to_mask, meshes_to_labelmap
from implicitmeshnet.surfaces.metrics import (
    agreement_warning,
    agreements,
    dice,
    move_warning,
    outside_warning,
    share_outside,
)
from implicitmeshnet.surfaces.precedence import made_way
from implicitmeshnet.surfaces.separation import GAP_MM, separate
from implicitmeshnet.surfaces.soundness import crossing_faces_of
from implicitmeshnet.surfaces.subdivide import subdivide
from implicitmeshnet.surfaces.walls import WALL_MM, walls_mm

POINTS_AT_ONCE = 2**18
"""Of which probabilities are interpolated: few enough to stay in the cache."""
TRAINING_ALONE = (
    "dir",
    "outside_view",
    "validation_cases",
    "fold",
    "folds",
    "training_cases",
    "cache_dir",
    "intensity_statistics",
)
"""Keys of data in which averaged networks may differ: of a prediction only a warning hangs on one of them."""


LEAST_GAP_MM = 0.001
"""Several times what float32 tells apart half a metre from the origin."""
MOST_MM = 10.0
"""That a gap or a wall may be."""


ORIENTATIONS = ("header", "guess")
"""Whom to believe about the direction of an image's axes."""


class NothingFound(InputError):
    """The coarse pass finds the structures nowhere in the volume."""


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What a network makes of a volume, for S structures of V vertices."""

    structures: Structures
    vertices: np.ndarray  # (S, V, 3) float64, world mm RAS
    raw_vertices: np.ndarray  # the same as the network leaves them, before the repair
    moves_mm: np.ndarray  # (S, V) how far the repair moved each vertex
    faces: np.ndarray  # (F, 3), shared by all structures
    labelmap: np.ndarray  # (X, Y, Z) int16 on the image's grid: the meshes, by the structures' first label values
    segmentation: np.ndarray  # the same: the network's voxel segmentation
    grid: Grid  # the image's
    sample: Sample  # the image as the network saw it
    agreement: dict[str, float]  # Dice of mesh and voxel segmentation, by structure
    crossing: list[int]  # (S,) faces that another face of the same mesh crosses, after the repair
    crossing_others: list[int]  # (S,) faces that another of these meshes crosses, after the repair
    outside: dict[str, float]  # the share of each mesh's area that lies outside the image, by structure
    warnings: list[str]  # a sentence on each thing that may make this result wrong
    seconds: dict[str, float]  # by phase, from the image on

    @property
    def names(self) -> tuple[str, ...]:
        """Of the structures, in the order of the vertices' first axis."""
        return self.structures.names

    @property
    def meshes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Vertices (V, 3) and faces (F, 3) of each structure."""
        return [(vertices, self.faces) for vertices in self.vertices]


class View(NamedTuple):
    """What the network is to see of an image; the image's own voxels are needed no more."""

    sample: Sample
    grid: Grid  # the image's own
    shown: tuple[slice, slice, slice]  # of the sample's voxels, those that the image covers
    name: str  # what messages call the image
    warnings: list[str]
    seconds: dict[str, float]  # by phase
    others: tuple["Turned", ...] = ()  # the same image in other worlds, of which the best is taken


class Turned(NamedTuple):
    """An image in another world than its header's: slices along the network's, or axes that are taken to be flipped."""

    axes: str  # which are flipped, as "x z"
    view: View
    turn: np.ndarray  # (4, 4), from the header's world to this one


class Predictor:
    """A trained network, or the mean of several, as a function of one volume."""

    def __init__(
        self,
        network: ImplicitMeshNet | Ensemble,
        config: Config,
        structures: Sequence[str] | None = None,
        gap_mm: float = GAP_MM,
        wall_mm: float = WALL_MM,
        orientation: str = "header",
    ):
        """`network` stays where it is: volumes go to its device. `config` is its own, or the first of an ensemble's.

        `structures` names those that are wanted, by default all; label maps then leave out what the others claim.
        Meshes are moved `gap_mm` apart where they come closer, and where the segmentation shows a wall around an
        enclosed structure `wall_mm`. With an `orientation` "guess" the header's is not believed: each of the eight ways
        to flip an image's axes is tried, in eight times the time, and the one is taken in which meshes and segmentation
        agree best. Raises InputError for a name that the network does not have, or a length that is out of reach.
        """
        if orientation not in ORIENTATIONS:
            raise InputError(f"orientation: wanted {' or '.join(ORIENTATIONS)}, found {shorten(repr(orientation))}")
        self.orientation = orientation
        _check_length("gap_mm", gap_mm, LEAST_GAP_MM)
        _check_length("wall_mm", wall_mm, 0.0)
        self.gap_mm = gap_mm
        self.wall_mm = wall_mm
        self.network = network
        self.config = config
        self.data = config.data
        self.structures = Structures.of(config.data)
        self.wanted = self.structures if structures is None else self.structures.chosen(structures)

    @classmethod
    def from_config(
        cls,
        path: str | Path,
        *others: str | Path,
        device: str = "auto",
        structures: Sequence[str] | None = None,
        gap_mm: float = GAP_MM,
        wall_mm: float = WALL_MM,
        orientation: str = "header",
        label_values: Mapping[str, Sequence[int]] | None = None,
    ) -> "Predictor":
        """The networks of JSON configs with the weights that they name, on 'cpu', 'cuda', 'mps', or the best there is.

        One is taken as it is, several are averaged. `label_values` are what stands for structures in label maps instead
        of the configs' values. The others are as above. Raises InputError where there are no weights, where they do not
        fit their config, where configs contradict each other, for a device that is not there, for a structure that they
        do not have, and for a label value of two structures.
        """
        paths = (path, *others)
        configs = [_configured(each, label_values or {}) for each in paths]
        check_alike(configs, paths)
        networks = []
        for config, source in zip(configs, paths, strict=True):
            networks.append(load_network(config, snapshot_path(config, source), pick_device(device)))
        network = Ensemble(networks) if len(networks) > 1 else networks[0]
        return cls(network, configs[0], structures, gap_mm, wall_mm, orientation)

    def __call__(self, image: Volume | str | Path | Sequence[str | Path]) -> Surfaces:
        """Surfaces of a volume in the world, in any voxel order, or of a file; its name begins the warnings.

        A file is NIfTI, NRRD or MetaImage, or a folder, zip or file of one DICOM series. An image of several channels
        is a list of files. Raises NothingFound where no region of it shows the structures, InputError where it cannot
        be read, has another number of channels, or is too large for that.
        """
        if isinstance(image, str | Path):
            image = [image]
        if not isinstance(image, Volume):
            image = read_channels(image)
        return self.surfaces_of(self.look(image))

    def look(self, image: Volume) -> View:
        """What `surfaces_of` takes, for callers who let go of the image before that. Raises InputError as a call."""
        looks: list[Turned] = []
        lost: list[NothingFound] = []
        for flips in product((1.0, -1.0), repeat=3) if self.orientation == "guess" else [(1.0, 1.0, 1.0)]:
            mirror = _mirror(image.grid, flips)
            turn = slices_along(image.grid.turned(mirror), self.data.spacing_mm) @ mirror
            axes = " ".join(axis for axis, sign in zip("xyz", flips, strict=True) if sign < 0)
            try:
                looks.append(Turned(axes, self._look(turned_by(image, turn)), turn))
            except NothingFound as error:
                lost.append(error)
        if not looks:
            raise lost[0]
        first = looks[0]
        if len(looks) == 1 and (first.turn == np.eye(4)).all():
            return first.view
        # What is written lies in the header's world, and so does the sample that previews show.
        sample = replace(first.view.sample, grid=first.view.sample.grid.turned(np.linalg.inv(first.turn)))
        seconds = _summed(each.view.seconds for each in looks)
        return first.view._replace(sample=sample, grid=image.grid, seconds=seconds, others=tuple(looks))

    def _look(self, image: Volume) -> View:
        """`look` in one orientation."""
        clock = Stopwatch()
        seen = standardise(image, self.data)
        clock.lap("normalise")
        centre, rival = self._centre_mm(seen, clock)
        grid = network_grid(seen.grid, self.data.shape, self.data.spacing_mm, centre)
        sample = on_network_grid(seen, None, grid, self.structures)
        shown = box_inside(grid, seen.grid)
        within = sample.image.numpy()[(..., *shown)]
        doubts = [*rival, *(f"{image.name}: {doubt}" for doubt in intensity_warnings(within, self.data))]
        clock.lap("resample")
        return View(sample, image.grid, shown, image.name, [*image.warnings, *doubts], clock.seconds)

    def surfaces_of(self, view: View) -> Surfaces:
        """Surfaces of an image that was looked at, as a call gives them of the image."""
        if not view.others:
            return self._surfaces_of(view)
        guesses = [self._surfaces_of(each.view) for each in view.others]
        scores = [np.nan_to_num(list(guess.agreement.values())).mean() for guess in guesses]
        best = int(np.argmax(scores))  # the header's own comes first
        chosen = guesses[best]
        axes, _, turn = view.others[best]
        back = np.linalg.inv(turn)
        told = [f"{view.name}: taken with its axes {axes} flipped, against its header"] if axes else []
        handed = np.linalg.det(turn) > 0
        return replace(
            chosen,
            vertices=transform(back, chosen.vertices),
            raw_vertices=transform(back, chosen.raw_vertices),
            faces=chosen.faces if handed else np.ascontiguousarray(chosen.faces[:, ::-1]),
            grid=view.grid,
            sample=view.sample,
            warnings=[*told, *chosen.warnings],
            seconds=view.seconds | _summed(guess.seconds for guess in guesses),
        )

    def _surfaces_of(self, view: View) -> Surfaces:
        """`surfaces_of` in one orientation."""
        clock = Stopwatch(view.seconds)
        sample = view.sample
        grid = sample.grid
        vertices, logits = self._run(sample.image)
        clock.lap("network")
        faces = self.network.decoder.faces.cpu().numpy()
        raw = transform(grid.world_from_normalised, vertices)  # (S, V, 3) mm
        repaired = self._repaired(raw, faces, logits, view)
        clock.lap("repair")
        meshes = [(mesh, faces) for mesh in repaired]
        labelmap = meshes_to_labelmap(meshes, self.structures, view.grid)
        segmentation = segmentation_on_grid(logits, grid, self.structures, view.grid)
        wanted = self.wanted
        if wanted != self.structures:  # after the label map, as contested voxels may be another structure's
            kept = [self.structures.names.index(name) for name in wanted.names]
            raw = raw[kept]
            repaired = repaired[kept]
            labelmap = wanted.written_alone(labelmap)
            segmentation = wanted.written_alone(segmentation)
        clock.lap("label maps")
        agreement = agreements(labelmap, segmentation, wanted.written)
        own, others = (crossed.sum(1).tolist() for crossed in crossing_faces_of(repaired, faces))
        shares = [share_outside(mesh, faces, view.grid) for mesh in repaired]
        outside = dict(zip(wanted.names, shares, strict=True))
        moves_mm = np.linalg.norm(repaired - raw, axis=2)
        doubts = (
            agreement_warning(agreement),
            outside_warning(outside),
            move_warning(dict(zip(wanted.names, moves_mm.mean(1).tolist(), strict=True)), agreement),
            _crossing_warning(wanted.names, own, "themselves"),
            _crossing_warning(wanted.names, others, "each other"),
        )
        clock.lap("checks")
        return Surfaces(
            structures=wanted,
            vertices=repaired,
            raw_vertices=raw,
            moves_mm=moves_mm,
            faces=faces,
            labelmap=labelmap,
            segmentation=segmentation,
            grid=view.grid,
            sample=sample,
            agreement=agreement,
            crossing=own,
            crossing_others=others,
            outside=outside,
            warnings=[*view.warnings, *(f"{view.name}: {doubt}" for doubt in doubts if doubt)],
            seconds=clock.seconds,
        )

    def _repaired(self, raw: np.ndarray, faces: np.ndarray, logits: torch.Tensor, view: View) -> np.ndarray:
        """Meshes (S, V, 3) in mm moved so that none crosses itself or another, by the logits (S + 1, X, Y, Z)."""
        grid = view.sample.grid
        encloses = self.structures.encloses
        classes = logits.argmax(0).numpy()
        agreement = []  # in what is shown: what a segmentation says of the rest counts for nothing
        for structure, mesh in enumerate(raw):
            mask = mesh_to_mask(mesh, faces, grid)
            agreement.append(dice(mask[view.shown], self.structures.held(classes, structure)[view.shown]))
        placed = made_way(raw, faces, self._template, encloses, agreement)
        walls = None
        if any(encloses):
            walls = walls_mm(placed, faces, self.structures, classes, np.linalg.inv(grid.affine), self.wall_mm)
        return separate(placed, faces, self._template, encloses, self.gap_mm, walls)

    def subdivided(self, surfaces: Surfaces, times: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The meshes of `surfaces` subdivided so many times, each vertices (V, 3) in mm and faces (F, 3).

        That smooths them, and so may make neighbours touch again: they are then moved apart by the gap.
        """
        if times == 0:
            return surfaces.meshes
        finer = [subdivide(*mesh, times) for mesh in surfaces.meshes]
        sphere, faces = subdivide(self._template, surfaces.faces, times)
        vertices = np.stack([mesh for mesh, _ in finer])
        apart = separate(vertices, faces, sphere, surfaces.structures.encloses, self.gap_mm)
        return [(mesh, faces) for mesh in apart]

    @property
    def _template(self) -> np.ndarray:
        """The template sphere's vertices (V, 3)."""
        return self.network.decoder.template[0].cpu().double().numpy()

    def _centre_mm(self, seen: Volume, clock: Stopwatch) -> tuple[np.ndarray | None, list[str]]:
        """Where the coarse pass finds the structures, world mm (3,), None where the box lies in the volume's centre;
        and a warning of another region that might be theirs, if there is one."""
        data = self.data
        if data.region == "centre":
            return None, []
        overview = overview_of(seen, None, data)
        clock.lap("overview")
        room = np.multiply(data.shape, data.spacing_mm) / data.overview_spacing_mm
        assert self.network.localiser is not None, "networks of data.region 'found' have one"
        found = self.network.localiser.find(overview.image, room)
        centre = mask_centre_mm(found.structures, overview.grid, data)
        elsewhere = mask_centre_mm(found.rival, overview.grid, data)
        clock.lap("localise")
        if centre is None:
            names = ", ".join(self.structures.names)
            raise NothingFound(
                f"{seen.name}: wanted an image that shows {names} at data.overview_spacing_mm"
                f" = {data.overview_spacing_mm:g}, found none of them"
            )
        if elsewhere is None:
            return centre, []
        where = " x ".join(f"{position:.0f}" for position in elsewhere)
        away_mm = np.linalg.norm(elsewhere - centre)
        return centre, [
            f"{seen.name}: the coarse pass finds the structures in two places; took the surer one, the other lies"
            f" {away_mm:.0f} mm away, around {where} mm"
        ]

    @torch.inference_mode()
    def _run(self, image: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        """Of an image (C, X, Y, Z) vertices (S, V, 3) float64, normalised coordinates, and logits (S + 1, X, Y, Z)."""
        device = self.network.decoder.faces.device
        training = self.network.training
        prediction = self.network.eval()(image[None].to(device))
        self.network.train(training)
        return prediction.vertices[0].cpu().double().numpy(), prediction.segmentation[0].cpu()


def _configured(path: str | Path, label_values: Mapping[str, Sequence[int]]) -> Config:
    """The config in a file, with other label values for some of its structures."""
    config = load_config(path)
    names = config.data.structures
    for name in label_values:
        if name not in names:
            raise InputError(f"label_values: wanted structures among {', '.join(names)}, found {shorten(repr(name))}")
    if not label_values:
        return config
    structures = {name: list(label_values.get(name, values)) for name, values in names.items()}
    return load_config(path, [f"--data.structures={json.dumps(structures)}"])


def _mirror(grid: Grid, flips: Sequence[float]) -> np.ndarray:
    """The (4, 4) matrix that flips the world along some of a volume's axes, those that are nearest to R, A and S."""
    mirror = np.eye(4)
    if min(flips) > 0:
        return mirror  # exactly
    directions = _canonical_directions(grid)
    mirror[:3, :3] = directions @ np.diag(flips) @ np.linalg.inv(directions)
    centre = transform(grid.affine, (np.array(grid.shape) - 1) / 2)
    mirror[:3, 3] = centre - mirror[:3, :3] @ centre
    return mirror


def _canonical_directions(grid: Grid) -> np.ndarray:
    """Of a volume's axes brought to the order of RAS: the columns of (3, 3)."""
    canonical_grid = network_grid(grid, (1, 1, 1), 1.0)
    return canonical_grid.affine[:3, :3]


def _summed(seconds: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sum of each phase's seconds."""
    total: dict[str, float] = {}
    for of_one in seconds:
        for phase, value in of_one.items():
            total[phase] = total.get(phase, 0.0) + value
    return total


def check_alike(configs: Sequence[Config], paths: Sequence[str | Path]) -> None:
    """Raise InputError where the networks of configs, read from `paths`, cannot be averaged.

    They must have the first one's template_subdivisions and its section data, but for what the training alone uses.
    """
    for config, path in zip(configs, paths, strict=True):
        for key, wanted in _what_must_agree(configs[0]).items():
            found = _what_must_agree(config)[key]
            if str(found) != str(wanted):  # in the same order too, as structures are numbered by it
                raise InputError(f"{path}: wanted {key} {shorten(wanted)}, as {paths[0]} has, found {shorten(found)}")


def _what_must_agree(config: Config) -> dict[str, object]:
    """By key, what is to be the same in all configs whose networks are averaged."""
    values: dict[str, object] = {"network.template_subdivisions": config.network.template_subdivisions}
    for field in fields(DataConfig):
        if field.name not in TRAINING_ALONE:
            values[f"data.{field.name}"] = getattr(config.data, field.name)
    return values


def _check_length(name: str, value: float, least: float) -> None:
    if not least <= value <= MOST_MM:
        raise InputError(f"{name}: wanted {least:g} to {MOST_MM:g} mm, found {value:g}")


def _crossing_warning(names: tuple[str, ...], crossing: list[int], what: str) -> str | None:
    crossed = [f"{name} {count}" for name, count in zip(names, crossing, strict=True) if count]
    return f"meshes still cross {what} after the repair (faces: {', '.join(crossed)})" if crossed else None


def segmentation_on_grid(logits: torch.Tensor, source: Grid, structures: Structures, grid: Grid) -> np.ndarray:
    """Logits (S + 1, X, Y, Z) on the network's grid, `source` -> int16 label map on `grid`, background outside it.

    Probabilities are interpolated linearly and the largest wins. Where all eight voxels around a point agree, that is
    their class, so only the rest is interpolated. The two grids' axes must be parallel, as `volume.network_grid` makes
    them.
    """
    around = 2  # voxels of background, so that the outermost cells hold nothing else
    others = F.pad(logits.softmax(0)[1:], (around,) * 6)
    background = 1 - others.sum(0, keepdim=True)
    probabilities = torch.cat([background, others])[None]  # (1, S + 1, X + 4, Y + 4, Z + 4)
    probabilities = probabilities.contiguous(memory_format=torch.channels_last_3d)
    cells = _agreed_classes(probabilities)  # (X + 3, Y + 3, Z + 3)
    matrix = np.linalg.inv(source.affine) @ grid.affine
    axes = np.abs(matrix[:3, :3]).argmax(0)  # of the network's grid, by axis of `grid`
    positions = []  # by axis of `grid`, of its voxels in the outermost cells' reach, along the network's axis, padded
    index = []
    box = []
    for own, (axis, count) in enumerate(zip(axes, grid.shape, strict=True)):
        line = matrix[axis, own] * np.arange(count) + matrix[axis, 3] + around
        near = np.flatnonzero((line >= 1) & (line < cells.shape[axis] - 1))  # the outermost cells are background
        box.append(slice(near[0], near[-1] + 1) if len(near) else slice(0, 0))
        positions.append(line[near])
        index.append(np.floor(line[near]).astype(int))
    # From here on in the order in which files hold voxels, the first axis innermost: the result is a plain copy.
    values = structures.label_map(cells.clip(0)).transpose(axes).T
    mixed = (cells < 0).transpose(axes).T
    for axis, of_axis in zip((2, 1, 0), index, strict=True):  # the outermost last, as that copies whole planes
        values = values.take(of_axis, axis)
        mixed = mixed.take(of_axis, axis)
    undecided = np.flatnonzero(mixed)
    for start in range(0, len(undecided), POINTS_AT_ONCE):
        chosen = undecided[start : start + POINTS_AT_ONCE]
        voxels = np.unravel_index(chosen, values.shape)[::-1]
        points = torch.empty(1, len(chosen), 3)
        for axis, line, voxel in zip(axes, positions, voxels, strict=True):
            points[0, :, axis] = torch.from_numpy(2 * line[voxel] / cells.shape[axis] - 1)
        likeliest = sample_trilinear([probabilities], points)[0].argmax(-1).numpy()
        values.reshape(-1)[chosen] = structures.label_map(likeliest)
    labels = np.zeros(grid.shape, np.int16, order="F")  # memory is taken where something is written
    labels[tuple(box)] = values.T
    return labels


def _agreed_classes(probabilities: torch.Tensor) -> np.ndarray:
    """Of each cell between eight voxels the class that is likeliest at all of them, -1 where they differ: int16.

    Probabilities (1, S + 1, X, Y, Z) -> (X - 1, Y - 1, Z - 1).
    """
    classes = probabilities.argmax(1).float()
    highest = F.max_pool3d(classes, 2, 1)
    lowest = -F.max_pool3d(-classes, 2, 1)
    agreed = torch.where(highest == lowest, highest, -1)
    return agreed[0].to(torch.int16).numpy()


def preview(path: Path, surfaces: Surfaces, labels: Volume | None) -> Figure:
    """Slices of the first channel with contours on the network's grid, the label filled, and the meshes; PNG."""
    structures = surfaces.structures
    grid = surfaces.sample.grid
    masks = structures.own_parts([mesh_to_mask(*mesh, grid) for mesh in surfaces.meshes])
    classes = None if labels is None else resample_labels(in_order_of(labels, grid), grid, structures)
    views = []
    for structure, name in enumerate(structures.names):
        views.append(
            StructureView(
                name,
                masks[structure],
                None if classes is None else structures.own(classes, structure),
                surfaces.vertices[structure],
                surfaces.faces,
                encloses=bool(structures.encloses[structure]),
            )
        )
    return case_preview(path, surfaces.sample.image[0].numpy(), grid.affine, views)
