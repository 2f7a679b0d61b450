"""The training losses: occupancy through the SDF, surface, Laplacian and segmentation, all against voxel labels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.config import LossConfig
from implicitmeshnet.coordinates import voxel_from_normalised
from implicitmeshnet.mesh import Neighbours, neighbours, vertex_areas
from implicitmeshnet.network import Prediction
from implicitmeshnet.ops import mesh2sdf, splat_trilinear


def structure_masks(label: torch.Tensor, structures: int) -> torch.Tensor:
    """Label indices (B, X, Y, Z), 0 background -> masks (B, S, X, Y, Z) float32."""
    index = torch.arange(1, structures + 1, device=label.device)
    return (label[:, None] == index.view(1, -1, 1, 1, 1)).float()


def occupancy_loss(vertices, faces, masks, temperature: float):
    """Cross-entropy of sigmoid(-T * SDF) against the masks, on logits so that saturated voxels keep their gradient.

    vertices (B, S, V, 3) normalised, faces (F, 3), masks (B, S, X, Y, Z) -> scalar, mean over all voxels.
    """
    shape = masks.shape[2:]
    sdf = mesh2sdf(vertices.flatten(0, 1), faces, list(shape))  # (B * S, X, Y, Z)
    return F.binary_cross_entropy_with_logits(-temperature * sdf, masks.flatten(0, 1))


def surface_loss(vertices, faces, masks):
    """1 - overlap of the mesh's surface density with the label's border density, in [0, 1].

    Each vertex splats the area of its faces, in voxel faces, into the grid by trilinear weights; the label's border
    density is the gradient magnitude of its mask. Both are blurred by two 3-voxel boxes, which is also how far the
    loss pulls. Differentiable in the vertices. Shapes as in `occupancy_loss`.
    """
    shape = masks.shape[2:]
    points = vertices.flatten(0, 1)  # (B * S, V, 3)
    half = points.new_tensor(voxel_from_normalised(shape).diagonal()[:3])
    density = splat_trilinear(points, vertex_areas(points * half, faces)[..., None], list(shape))  # (B * S, 1, X, Y, Z)
    density, border = _blur(density), _blur(_border(masks.flatten(0, 1)[:, None]))
    overlap = 2 * (density * border).sum((1, 2, 3, 4))
    return 1 - (overlap / (density.square() + border.square()).sum((1, 2, 3, 4)).clamp(min=1e-6)).mean()


def _border(masks):
    """Gradient magnitude of masks (N, 1, X, Y, Z) by central differences; sums to about the border's area."""
    padded = F.pad(masks, (1, 1, 1, 1, 1, 1), mode="replicate")
    inner = slice(1, -1)
    return torch.sqrt(
        (padded[:, :, 2:, inner, inner] - padded[:, :, :-2, inner, inner]).square()
        + (padded[:, :, inner, 2:, inner] - padded[:, :, inner, :-2, inner]).square()
        + (padded[:, :, inner, inner, 2:] - padded[:, :, inner, inner, :-2]).square()
    ) / 2


def _blur(volume):
    for _ in range(2):
        volume = F.avg_pool3d(volume, 3, 1, 1)
    return volume


def laplacian_loss(vertices, around: Neighbours):
    """Mean squared distance of each vertex (..., V, 3) from the mean of its neighbours, normalised units."""
    mean = (vertices[..., around.index, :] * around.weight[..., None]).sum(-2) / around.degree
    return (mean - vertices).square().sum(-1).mean()


def laplacian_weight(config: LossConfig, epoch: float) -> float:
    """Cosine annealing from laplacian_start to laplacian_end over laplacian_epochs, constant afterwards."""
    progress = min(epoch / config.laplacian_epochs, 1.0)
    span = config.laplacian_start - config.laplacian_end
    return config.laplacian_end + span * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Losses:
    """Unweighted terms, scalars; occupancy is of the last stage, surface and Laplacian are means over the stages."""

    occupancy: torch.Tensor
    surface: torch.Tensor
    laplacian: torch.Tensor
    segmentation: torch.Tensor


class MeshLoss(nn.Module):
    """The weighted sum of all losses for one template triangulation, faces (F, 3)."""

    def __init__(self, faces: torch.Tensor, vertex_count: int, config: LossConfig):
        super().__init__()
        self.config = config
        self.register_buffer("faces", faces)
        around = neighbours(faces.cpu(), vertex_count)
        self.register_buffer("index", around.index)
        self.register_buffer("weight", around.weight)

    def forward(self, prediction: Prediction, label: torch.Tensor, epoch: float):
        """label (B, X, Y, Z) structure indices -> the total (scalar) and its Losses."""
        config, around = self.config, Neighbours(self.index, self.weight)
        masks = structure_masks(label, prediction.vertices.shape[1])
        stages = prediction.stages
        losses = Losses(
            occupancy=occupancy_loss(prediction.vertices, self.faces, masks, config.temperature),
            surface=torch.stack([surface_loss(stage, self.faces, masks) for stage in stages]).mean(),
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
