"""The training losses: occupancy through the SDF, surface, Laplacian and segmentation, all against voxel labels."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.config import LossConfig
from implicitmeshnet.mesh import Neighbours, neighbours, vertex_areas
from implicitmeshnet.models.mesh_net import Prediction
from implicitmeshnet.ops import mesh2sdf, splat_trilinear
from implicitmeshnet.structures import Structures
from implicitmeshnet.training.cosine import cosine


def structure_masks(classes: torch.Tensor, structures: Structures) -> torch.Tensor:
    """A class map (B, X, Y, Z) -> what each structure's mesh holds, (B, S, X, Y, Z) float32."""
    masks = [structures.held(classes, structure) for structure in range(len(structures))]
    return torch.stack(masks, 1).float()


def occupancy_loss(vertices, distance, masks, temperature: float):
    """Cross-entropy of sigmoid(-T * SDF) against the masks, on logits so that saturated voxels keep their gradient.

    vertices (B, S, V, 3) normalised, masks (B, S, X, Y, Z) -> scalar, mean over all voxels. The route is `distance`:
    vertices (B * S, V, 3) and a shape -> SDF (B * S, X, Y, Z).
    """
    sdf = distance(vertices.flatten(0, 1), list(masks.shape[2:]))
    return F.binary_cross_entropy_with_logits(-temperature * sdf, masks.flatten(0, 1))


def surface_loss(vertices, faces, border):
    """1 - overlap of the mesh's surface density with the label's border density, in [0, 1].

    Each vertex splats the area of its faces, in voxel faces, by trilinear weights into cells of 2 x 2 x 2 voxels;
    `border` is `border_density` of the label on the same cells. A blur by three cells sets how far the loss pulls.
    vertices (B, S, V, 3) normalised, faces (F, 3), border (B, S, X / 2, Y / 2, Z / 2) -> scalar, differentiable.
    """
    points, cells = vertices.flatten(0, 1), border.shape[2:]
    voxels = torch.tensor(cells, dtype=points.dtype, device=points.device) * 2
    half = (voxels - 1) / 2  # voxels per normalised unit
    positions = ((points + 1) * half - 0.5) / (voxels / 2 - 1) - 1  # cell c has its centre at voxel 2 c + 0.5
    density = splat_trilinear(positions, vertex_areas(points * half, faces)[..., None], list(cells))
    density, border = F.avg_pool3d(density, 3, 1, 1)[:, 0], border.flatten(0, 1)
    overlap = 2 * (density * border).sum((1, 2, 3))
    return 1 - (overlap / (density.square() + border.square()).sum((1, 2, 3)).clamp(min=1e-6)).mean()


def border_density(masks):
    """Area of the masks' borders (B, S, X, Y, Z) in each 2 x 2 x 2 cell, blurred by three cells; X, Y, Z even.

    Half the gradient magnitude by central differences sums to the border's area in voxel faces.
    """
    padded = F.pad(masks, (1, 1, 1, 1, 1, 1), mode="replicate")
    squared = 0
    for axis in (2, 3, 4):
        inner = [slice(None)] * 2 + [slice(1, -1)] * 3
        inner[axis] = slice(2, None)
        above = padded[tuple(inner)]
        inner[axis] = slice(None, -2)
        squared = squared + (above - padded[tuple(inner)]).square()
    return F.avg_pool3d(8 * F.avg_pool3d(squared.sqrt() / 2, 2), 3, 1, 1)


def laplacian_loss(vertices, around: Neighbours):
    """Mean squared distance of each vertex (..., V, 3) from the mean of its neighbours, normalised units."""
    mean = (vertices[..., around.index, :] * around.weight[..., None]).sum(-2) / around.degree
    return (mean - vertices).square().sum(-1).mean()


def laplacian_weight(config: LossConfig, epoch: float) -> float:
    """Cosine annealing from laplacian_start to laplacian_end over laplacian_epochs, constant afterwards."""
    return cosine(config.laplacian_start, config.laplacian_end, epoch / config.laplacian_epochs)


@dataclass(frozen=True)
class Losses:
    """Unweighted terms, scalars; occupancy is of the last stage, surface and Laplacian are means over the stages."""

    occupancy: torch.Tensor
    surface: torch.Tensor
    laplacian: torch.Tensor
    segmentation: torch.Tensor


class MeshLoss(nn.Module):
    """The weighted sum of all losses for one template triangulation, faces (F, 3).

    `structures` say which labels each mesh holds, see `structure_masks`. `distance` is the route from meshes
    to their SDF, see `occupancy_loss`; by default Mesh2SDF.
    """

    def __init__(
        self, faces: torch.Tensor, vertex_count: int, config: LossConfig, structures: Structures, distance=None
    ):
        super().__init__()
        self.config = config
        self.structures = structures
        self.distance = distance or (lambda vertices, shape: mesh2sdf(vertices, self.faces, shape))
        self.register_buffer("faces", faces)
        around = neighbours(faces.cpu(), vertex_count)
        self.register_buffer("index", around.index)
        self.register_buffer("weight", around.weight)

    def forward(self, prediction: Prediction, label: torch.Tensor, epoch: float):
        """label (B, X, Y, Z), a class map -> the total (scalar) and its Losses."""
        config, around = self.config, Neighbours(self.index, self.weight)
        masks = structure_masks(label, self.structures)
        stages, border = prediction.stages, border_density(masks)
        losses = Losses(
            occupancy=occupancy_loss(prediction.vertices, self.distance, masks, config.temperature),
            surface=torch.stack([surface_loss(stage, self.faces, border) for stage in stages]).mean(),
            laplacian=torch.stack([laplacian_loss(stage, around) for stage in stages]).mean(),
            segmentation=F.cross_entropy(prediction.segmentation, label.long()),
        )
        total = (
            config.occupancy * losses.occupancy
            + config.surface * losses.surface
            + laplacian_weight(config, epoch) * losses.laplacian
            + config.segmentation * losses.segmentation
        )
        return total, losses
