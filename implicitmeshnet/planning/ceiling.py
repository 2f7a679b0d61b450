"""The Dice that a grid and a mesh leave possible: a label taken there and back, without any network.

The first ceiling is the label resampled to the network's grid and back. The second is a mesh of the template's
vertices, fitted to the label on that grid by the training's own losses, repaired and voxelized as in the evaluation.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from implicitmeshnet.config import Config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import Case, Sample, on_network_grid, read_case, standardise
from implicitmeshnet.data.ellipsoids import ellipsoid_of
from implicitmeshnet.data.overview import label_centre_mm
from implicitmeshnet.data.volume import Volume, canonical, network_grid, slices_along, turned_by
from implicitmeshnet.mesh import icosphere
from implicitmeshnet.models.mesh_net import Prediction
from implicitmeshnet.predict import segmentation_on_grid
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.labelmap import meshes_to_labelmap
from implicitmeshnet.surfaces.metrics import dice_by_structure
from implicitmeshnet.surfaces.separation import separate
from implicitmeshnet.training.losses import MeshLoss

STEPS = 150  # of the fit
LEARNING_RATE = 0.01  # of Adam at the start, in normalised units a step
NOTHING = 1e-3  # semi-axis of the mesh of a structure that is not there, in normalised units
CERTAIN = 20.0  # logit of a class that is known


@dataclass(frozen=True, eq=False)
class CeilingCase:
    """A labelled case on the network's grid, and what its structures' meshes could reach; `dice` by structure."""

    sample: Sample
    image: Volume  # as the file has it
    labels: Volume  # the same
    vertices_mm: np.ndarray  # (S, V, 3) of the fitted meshes
    faces: np.ndarray  # (F, 3)
    grid_dice: dict[str, float]
    mesh_dice: dict[str, float]


def ceiling_of(case: Case, config: Config) -> CeilingCase:
    """Measure one labelled case; InputError as `read_case`. A structure that it does not have is left out."""
    structures = Structures.of(config.data)
    sample, image, labels = _sample_of(case, config)
    assert sample.label is not None
    known = F.one_hot(sample.label.long(), structures.class_count + 1)  # with what is ignored, which is no class
    logits = CERTAIN * known[..., : structures.class_count].movedim(-1, 0).float()
    by_grid = segmentation_on_grid(logits, sample.grid, structures, labels.grid)
    vertices, faces = fitted_meshes(sample, config)
    sphere = icosphere(config.network.template_subdivisions)[0].double().numpy()
    in_mm = transform(sample.grid.world_from_normalised, vertices)
    vertices_mm = separate(in_mm, faces, sphere, structures.encloses)
    by_mesh = meshes_to_labelmap([(mesh, faces) for mesh in vertices_mm], structures, labels.grid)
    grid_dice = dice_by_structure(by_grid, labels.data, structures)
    mesh_dice = dice_by_structure(by_mesh, labels.data, structures)
    return CeilingCase(sample, image, labels, vertices_mm, faces, grid_dice, mesh_dice)


def _sample_of(case: Case, config: Config) -> tuple[Sample, Volume, Volume]:
    """A case on the grid that its label places, its image and its label map, in a world turned by `slices_along`."""
    image, labels = read_case(case)
    assert labels is not None, "find_cases was asked for labelled cases"
    data = config.data
    turn = slices_along(image.grid, data.spacing_mm)
    image, labels = turned_by(image, turn), turned_by(labels, turn)
    turned = canonical(labels)
    centre_mm = label_centre_mm(turned, data) if data.region == "found" else None
    seen = standardise(image, data)
    grid = network_grid(seen.grid, data.shape, data.spacing_mm, centre_mm)
    return on_network_grid(seen, turned, grid, Structures.of(data)), image, labels


def fitted_meshes(sample: Sample, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Template ellipsoids of a labelled sample pulled onto its label: (S, V, 3) float64 normalised, and faces (F, 3).

    They go down the training's own loss, its Laplacian weight along the same curve. A structure without a label stays
    a speck at the grid's centre.
    """
    assert sample.label is not None
    structures = Structures.of(config.data)
    sphere, faces = icosphere(config.network.template_subdivisions)
    vertices = _start(sample, structures, sphere).requires_grad_()
    fit = replace(config.loss, segmentation=0.0, segmentation_dice=0.0)  # no network segments
    criterion = MeshLoss(faces, len(sphere), fit, structures, half_sides_mm=config.data.half_sides_mm)
    optimizer = torch.optim.Adam([vertices], LEARNING_RATE)
    label = sample.label[None]
    logits = torch.zeros(1, structures.class_count, *sample.label.shape)
    for step in range(STEPS):
        share = step / STEPS
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - share)
        total, _ = criterion(Prediction([vertices], logits), label, share * config.loss.laplacian_epochs * 1.25)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return vertices.detach()[0].double().numpy(), faces.numpy()


def _start(sample: Sample, structures: Structures, sphere: torch.Tensor) -> torch.Tensor:
    """The unit sphere's vertices (V, 3) as the ellipsoid of what each structure's mesh holds: (1, S, V, 3)."""
    assert sample.label is not None
    classes = sample.label.numpy()
    starts = []
    for structure in range(len(structures)):
        mask = structures.held(classes, structure)
        centre, semi_axes = ellipsoid_of(mask) if mask.any() else (np.zeros(3), np.full(3, NOTHING))
        starts.append(centre + semi_axes * sphere.double().numpy())
    return torch.from_numpy(np.stack(starts)[None]).float()
