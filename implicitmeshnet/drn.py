"""DeepRepresentationNetwork: the deep signed distance transform of a mesh, and what it is trained and judged by."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.config import DrnNetworkConfig
from implicitmeshnet.graph import GCNConv, GraphResidualBlock
from implicitmeshnet.mesh import icosphere, neighbours, vertex_normals
from implicitmeshnet.network import bfloat16_is_fast
from implicitmeshnet.ops import mesh2sdf, splat_trilinear
from implicitmeshnet.unet import InstanceNorm3d

GROUPS = 16
"""Of the group norms."""
DIAGONAL = math.sqrt(12)
"""Of the normalised cube: no distance is longer."""
NEAR_VOXELS = 3.0
"""How far from the surface `sdf_quality` looks at errors."""
NEAR_WEIGHT = 30.0
"""Of the loss within about two voxels of the surface: without it, far voxels, which no mesh loss reads, rule."""


def group_norm(channels: int) -> nn.Module:
    """Group norm in 16 groups; of 16 channels it is instance norm, whose kernel goes back 20 times faster on a CPU."""
    return InstanceNorm3d(channels) if channels == GROUPS else nn.GroupNorm(GROUPS, channels)


class VoxelBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))) with group norm and SiLU; (B, C, X, Y, Z) -> same."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(*(
            layer for _ in range(2)
            for layer in (group_norm(channels), nn.SiLU(), nn.Conv3d(channels, channels, 3, padding=1))))
        nn.init.zeros_(self.body[-1].weight)

    def forward(self, volume):
        return volume + self.body(volume)


class DeepRepresentationNetwork(nn.Module):
    """A mesh of the template's triangulation -> its signed distance on a voxel grid, negative inside (Laves 2025).

    A residual GCN reads each vertex; its features, weighted by the vertex's share of the surface, are splatted into
    grids from coarse to fine, so that a grid holds an integral over the surface, whatever the triangulation. A
    convolutional stage per grid adds to the upsampled distance of the stage before.
    """

    def __init__(self, config: DrnNetworkConfig):
        super().__init__()
        vertices, faces = icosphere(config.template_subdivisions)
        self.register_buffer("faces", faces, persistent=False)
        self.shape = config.shape
        around, width = neighbours(faces, len(vertices)), config.graph_channels
        self.input = GCNConv(1, 8, width, around)
        self.graph = nn.ModuleList(GraphResidualBlock(1, width, around, GCNConv, config.dropout)
                                   for _ in range(config.graph_blocks))
        self.project = nn.ModuleList(nn.Linear(8 + width, channels) for channels in config.channels)
        self.carry = nn.ModuleList(nn.Conv3d(before, after, 1) for before, after in pairwise(config.channels))
        self.stages = nn.ModuleList(nn.Sequential(*(VoxelBlock(channels) for _ in range(config.blocks)))
                                    for channels in config.channels)
        self.heads = nn.ModuleList(nn.Linear(channels, 1) for channels in config.channels)
        for head in self.heads[1:]:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.stages.to(memory_format=torch.channels_last_3d)

    @property
    def shapes(self):
        """The grids of the stages, coarse to fine."""
        return [tuple(n >> level for n in self.shape) for level in reversed(range(len(self.stages)))]

    def forward(self, vertices) -> list[torch.Tensor]:
        """vertices (B, V, 3) normalised -> signed distances (B, X, Y, Z) in normalised units, coarse to fine."""
        device = vertices.device.type
        with torch.autocast(device, enabled=False):
            areas, features = self._encode(vertices.float())
        sdf, volume, results = None, None, []
        for stage, shape in enumerate(self.shapes):
            voxels = voxel_length(shape) ** -2  # voxel faces in a unit of normalised area
            splatted = splat_trilinear(vertices, voxels * areas * self.project[stage](features), shape,
                                       channels_last=True)
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
                if volume is not None:
                    splatted = splatted + _resize(self.carry[stage - 1](volume), shape)
                volume = self.stages[stage](splatted)
            with torch.autocast(device, enabled=False):
                step = self.heads[stage](volume.movedim(1, -1).float())[..., 0]
                sdf = step if sdf is None else _resize(sdf[:, None], shape)[:, 0] + step
            results.append(sdf)
        return results

    def distance(self, vertices, shape):
        """vertices (B, V, 3) -> SDF (B, X, Y, Z) on a grid of any shape over the same cube."""
        return _resize(self(vertices)[-1][:, None], tuple(shape))[:, 0]

    def _encode(self, vertices):
        """Each vertex's area (B, V, 1) and features (B, V, C): its place, normal and plane, and what the GCN makes."""
        weighted = vertex_normals(vertices, self.faces)
        areas = torch.linalg.vector_norm(weighted, dim=-1, keepdim=True).clamp(min=1e-12)
        normals = weighted / areas
        plane = (normals * vertices).sum(-1, keepdim=True)
        geometry = torch.cat([vertices, normals, plane, torch.ones_like(plane)], -1)
        hidden = self.input(geometry[None])
        for block in self.graph:
            hidden = block(hidden)
        return areas, torch.cat([geometry, hidden[0]], -1)


def _resize(volume, shape):
    return F.interpolate(volume, shape, mode="trilinear", align_corners=True)


def drn_loss(drn: DeepRepresentationNetwork, vertices) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Deep supervision by the exact distance: the loss, the predictions of all stages and the finest's target.

    vertices (B, V, 3). Squared errors weighted by ((sqrt(12) - |sdf|) / sqrt(12))^2, as the paper's, and by a bell of
    two voxels about the surface, ours: mean over voxels and stages.
    """
    predictions, losses = drn(vertices), []
    for prediction in predictions:
        target = mesh2sdf(vertices.detach(), drn.faces, list(prediction.shape[1:]))
        weight = ((DIAGONAL - target.abs()) / DIAGONAL).square()
        near = torch.exp(-(target / (2 * voxel_length(target.shape[1:]))).square())
        weight = weight + NEAR_WEIGHT * near
        losses.append((weight * (prediction - target).square()).mean())
    return torch.stack(losses).mean(), predictions, target


def voxel_length(shape) -> float:
    """The mean spacing of a grid in normalised units."""
    return 2 / math.prod(n - 1 for n in shape) ** (1 / 3)


def sdf_quality(prediction, target) -> dict[str, float]:
    """How well a signed distance (B, X, Y, Z) fits the true one, means over the shapes of a batch.

    error_voxels: mean |error| within 3 voxels of the surface, in voxels of the mean spacing; sign: share of all voxels
    on the right side; dice: of the two negative sides.
    """
    voxel = voxel_length(target.shape[1:])
    axes = (1, 2, 3)
    near = target.abs() < NEAR_VOXELS * voxel
    error = ((prediction - target).abs() * near).sum(axes) / near.sum(axes).clamp(min=1) / voxel
    inside, truth = prediction < 0, target < 0
    overlap = 2 * (inside & truth).sum(axes) / (inside.sum(axes) + truth.sum(axes)).clamp(min=1)
    return {"error_voxels": error.mean().item(), "sign": (inside == truth).float().mean().item(),
            "dice": overlap.mean().item()}
