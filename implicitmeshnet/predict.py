"""One volume -> surfaces: what the evaluation, the validation of a training and notebooks all go through.

predictor = Predictor.from_config("configs_implicitmeshnet/whole_heart.json")
surfaces = predictor(read_image("heart.nii.gz"))
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from implicitmeshnet.config import Config, DataConfig, load_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import Sample, on_network_grid, standardise
from implicitmeshnet.data.overview import mask_centre_mm, overview_of
from implicitmeshnet.data.plausibility import intensity_warning
from implicitmeshnet.data.volume import Grid, Volume, box_inside, canonical, network_grid, resample_labels
from implicitmeshnet.models.mesh_net import ImplicitMeshNet
from implicitmeshnet.models.weights import load_network, snapshot_path
from implicitmeshnet.ops import sample_trilinear
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.figures import Figure, Structure, case_preview
from implicitmeshnet.surfaces.labelmap import mesh_to_mask, meshes_to_labelmap, own_parts
from implicitmeshnet.surfaces.metrics import agreement_warning, agreements
from implicitmeshnet.surfaces.repair import untangle
from implicitmeshnet.surfaces.soundness import self_intersecting_faces


class NothingFound(InputError):
    """The coarse pass finds the structures nowhere in the volume."""


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What a network makes of a volume, for S structures of V vertices."""

    names: list[str]
    vertices: np.ndarray  # (S, V, 3) float64, world mm RAS
    raw_vertices: np.ndarray  # the same as the network leaves them, before the repair
    faces: np.ndarray  # (F, 3), shared by all structures
    labelmap: np.ndarray  # (X, Y, Z) int16 on the image's grid: the meshes, by the structures' first label values
    segmentation: np.ndarray  # the same: the network's voxel segmentation
    grid: Grid  # the image's
    sample: Sample  # the image as the network saw it
    agreement: dict[str, float]  # Dice of mesh and voxel segmentation, by structure
    crossing: list[int]  # (S,) faces that another face of the same mesh crosses, after the repair
    warnings: list[str]  # a sentence on each thing that may make this result wrong


class Predictor:
    """A trained network as a function of one volume."""

    def __init__(self, network: ImplicitMeshNet, config: Config, device: torch.device):
        self.network = network
        self.config = config
        self.device = device
        self.names = list(config.data.structures)
        self.values = {name: group[0] for name, group in config.data.structures.items()}

    @classmethod
    def from_config(cls, path: str | Path, device: torch.device | str = "cpu") -> "Predictor":
        """The network of a JSON config with the weights that it names. Raises InputError where there is none."""
        config, device = load_config(path), torch.device(device)
        return cls(load_network(config, snapshot_path(config, path), device), config, device)

    def __call__(self, image: Volume, name: str = "image") -> Surfaces:
        """Surfaces of a volume in the world, in any voxel order; `name` begins its errors and warnings.

        Raises NothingFound where no region of it shows the structures, InputError where it is too large for that.
        """
        data = self.config.data
        seen = standardise(image, data)
        grid = network_grid(seen.grid, data.shape, data.spacing_mm, self._centre_mm(seen, name))
        sample = on_network_grid(name, seen, None, grid, data)
        vertices, logits = self._run(sample.image)
        faces = self.network.decoder.faces.cpu().numpy()
        raw = transform(grid.world_from_normalised, vertices)  # (S, V, 3) mm
        repaired = np.stack([untangle(structure, faces) for structure in raw])
        values = list(self.values.values())
        labelmap = meshes_to_labelmap([(structure, faces) for structure in repaired], values, image.grid, data.members)
        segmentation = segmentation_on_grid(logits, grid, values, image.grid)
        agreement = agreements(labelmap, segmentation, self.values)
        crossing = [int(self_intersecting_faces(structure, faces).sum()) for structure in repaired]
        within = sample.image.numpy()[box_inside(grid, seen.grid)]
        doubts = [
            intensity_warning(within, data.intensity_statistics),
            agreement_warning(agreement),
            _crossing_warning(self.names, crossing),
        ]
        warnings = [*image.warnings, *(f"{name}: {doubt}" for doubt in doubts if doubt)]
        return Surfaces(
            self.names, repaired, raw, faces, labelmap, segmentation, image.grid, sample, agreement, crossing, warnings
        )

    def _centre_mm(self, seen: Volume, name: str) -> np.ndarray | None:
        """Where the coarse pass finds the structures, world mm (3,); None where the box lies in the volume's centre."""
        data = self.config.data
        if data.region == "centre":
            return None
        overview = overview_of(name, seen, None, data)
        room = np.multiply(data.shape, data.spacing_mm) / data.overview_spacing_mm
        centre = mask_centre_mm(self.network.localiser.find(overview.image, room), overview.grid, data)
        if centre is None:
            raise NothingFound(
                f"{name}: wanted an image that shows {', '.join(self.names)} at data.overview_spacing_mm"
                f" = {data.overview_spacing_mm:g}, found none of them"
            )
        return centre

    @torch.inference_mode()
    def _run(self, image) -> tuple[np.ndarray, torch.Tensor]:
        """Vertices (S, V, 3) float64 in normalised coordinates, and logits (S + 1, X, Y, Z), of an image (X, Y, Z)."""
        training = self.network.training
        prediction = self.network.eval()(image[None, None].to(self.device))
        self.network.train(training)
        return prediction.vertices[0].cpu().double().numpy(), prediction.segmentation[0].cpu()


def _crossing_warning(names: list[str], crossing: list[int]) -> str | None:
    crossed = [f"{name} {count}" for name, count in zip(names, crossing, strict=True) if count]
    return f"meshes still cross themselves after the repair (faces: {', '.join(crossed)})" if crossed else None


def segmentation_on_grid(logits, source: Grid, values: list[int], grid: Grid) -> np.ndarray:
    """Logits (S + 1, X, Y, Z) on the network's grid, `source` -> int16 label map on `grid`, background outside it.

    Probabilities are interpolated linearly and the largest wins. Where all eight voxels around a point agree, that is
    their class, so only the rest is interpolated. The two grids' axes must be parallel, as `volume.network_grid` makes
    them.
    """
    around = 2  # voxels of background, so that the outermost cells hold nothing else
    others = F.pad(logits.softmax(0)[1:], (around,) * 6)
    probabilities = torch.cat([1 - others.sum(0, keepdim=True), others])[None]  # (1, S + 1, X + 4, Y + 4, Z + 4)
    probabilities = probabilities.contiguous(memory_format=torch.channels_last_3d)
    classes = probabilities.argmax(1).float()  # (1, X + 4, ...)
    highest, lowest = F.max_pool3d(classes, 2, 1), -F.max_pool3d(-classes, 2, 1)
    cells = torch.where(highest == lowest, highest, -1)[0].to(torch.int16).numpy()  # (X + 3, ...)
    matrix = np.linalg.inv(source.affine) @ grid.affine
    axes = np.abs(matrix[:3, :3]).argmax(0)  # of the network's grid, by axis of `grid`
    positions = [
        matrix[axis, own] * np.arange(count) + matrix[axis, 3] + around
        for own, (axis, count) in enumerate(zip(axes, grid.shape, strict=True))
    ]
    index = [
        np.clip(np.floor(line), 0, cells.shape[axis] - 1).astype(int)
        for axis, line in zip(axes, positions, strict=True)
    ]
    found = cells.transpose(axes)[np.ix_(*index)]
    mixed = np.nonzero(found < 0)
    points = torch.empty(1, len(mixed[0]), 3)
    for axis, line, voxels in zip(axes, positions, mixed, strict=True):
        points[0, :, axis] = torch.from_numpy(2 * line[voxels] / cells.shape[axis] - 1)
    found[mixed] = sample_trilinear([probabilities], points)[0].argmax(-1).numpy()
    return np.array([0, *values], dtype=np.int16)[found]


def preview(path: Path, surfaces: Surfaces, labels: Volume | None, data: DataConfig) -> Figure:
    """Slices with contours on the network's grid, the label filled, and the meshes; PNG."""
    grid = surfaces.sample.grid
    masks = own_parts([mesh_to_mask(vertices, surfaces.faces, grid) for vertices in surfaces.vertices], data.members)
    reference = None
    if labels is not None:
        reference = resample_labels(canonical(labels), grid, list(data.structures.values()))
    structures = [
        Structure(
            name,
            mask,
            None if reference is None else reference == index,
            vertices,
            surfaces.faces,
            encloses=name in data.encloses,
        )
        for index, (name, mask, vertices) in enumerate(zip(surfaces.names, masks, surfaces.vertices, strict=True), 1)
    ]
    return case_preview(path, surfaces.sample.image.numpy(), grid.affine, structures)


def has_value(labels, values: list[int]) -> np.ndarray:
    """np.isin for a few values, 20 times as fast."""
    found = labels == values[0]
    for value in values[1:]:
        found |= labels == value
    return found
