"""DeepRepresentationNetwork: the deep signed distance transform of a mesh, and what it is trained and judged by."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.config import DrnNetworkConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.mesh import face_normals, icosphere, neighbours, vertex_normals
from implicitmeshnet.models.graph import GCNConv, GraphResidualBlock
from implicitmeshnet.models.unet import InstanceNorm3d, bfloat16_is_fast
from implicitmeshnet.ops import mesh2sdf, splat_trilinear

DIAGONAL = math.sqrt(12)
"""Of the normalised cube: no distance is longer."""
NEAR_VOXELS = 3.0
"""How far from the surface `sdf_quality` looks at errors."""
NEAR_WEIGHT = 30.0
"""Of the loss within about two voxels of the surface: without it, far voxels, which no mesh loss reads, rule."""
THIN = 0.05
"""Surface area in a cell, in faces of a cell, below which the plane that stands for it fades."""


def group_norm(groups: int, channels: int) -> nn.Module:
    """Group norm; with a group for each channel it is instance norm, whose kernel goes back 20 times faster on CPUs."""
    return InstanceNorm3d(channels) if channels == groups else nn.GroupNorm(groups, channels)


class VoxelBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))) with group norm and SiLU; (B, C, X, Y, Z) -> same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.body = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (group_norm(groups, channels), nn.SiLU(), nn.Conv3d(channels, channels, 3, padding=1))
            )
        )
        nn.init.zeros_(self.body[-1].weight)

    def forward(self, volume):
        return volume + self.body(volume)


class DeepRepresentationNetwork(nn.Module):
    """A mesh of the template's triangulation -> its signed distance on a voxel grid, negative inside (Laves 2025).

    A residual GCN reads each vertex; its features, interpolated to three points of each face and weighted by their
    share of the surface, are splatted into grids from coarse to fine, so that a grid holds an integral over the
    surface, whatever the triangulation. A convolutional stage per grid corrects the upsampled distance of the stage
    before. A stage's cells are blocks of voxels, each stage's half as wide as those of the stage before; the last
    stage yields a value for each voxel of its cells (sub-voxel convolution, Shi et al. 2016).
    """

    def __init__(self, config: DrnNetworkConfig):
        super().__init__()
        vertices, faces = icosphere(config.template_subdivisions)
        self.register_buffer("faces", faces, persistent=False)
        self.shape = config.shape
        self.values = [1] * (len(config.channels) - 1) + [config.subvoxels]
        """That each stage yields along a side of its cells."""
        around, width = neighbours(faces, len(vertices)), config.graph_channels
        self.input = GCNConv(1, 8, width, around)
        self.graph = nn.ModuleList(
            GraphResidualBlock(1, width, around, GCNConv, config.dropout) for _ in range(config.graph_blocks)
        )
        self.project = nn.ModuleList(nn.Linear(8 + width, channels) for channels in config.channels)
        self.planes = nn.ModuleList(nn.Linear(6, channels) for channels in config.channels)
        self.carry = nn.ModuleList(nn.Conv3d(before, after, 1) for before, after in pairwise(config.channels))
        self.stages = nn.ModuleList(
            nn.Sequential(*(VoxelBlock(channels, config.groups) for _ in range(blocks)))
            for channels, blocks in zip(config.channels, config.blocks, strict=True)
        )
        self.heads = nn.ModuleList(
            nn.Linear(channels, values**3 + 1)  # the last: how far to trust the plane, a logit
            for channels, values in zip(config.channels, self.values, strict=True)
        )
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.stages.to(memory_format=torch.channels_last_3d)

    @property
    def cells(self) -> list[int]:
        """Voxels along a side of a cell in each stage, coarse to fine."""
        return [self.values[-1] << level for level in reversed(range(len(self.values)))]

    def forward(self, vertices) -> list[torch.Tensor]:
        """vertices (B, V, 3) normalised -> signed distances in normalised units, coarse to fine.

        The last is (B, X, Y, Z) at the voxels of `shape`; those before hold a mean over each cell.
        """
        device = vertices.device.type
        sdf, volume, results = None, None, []
        with torch.autocast(device, enabled=False):
            surface = sample_faces(vertices.float(), self.faces)
            features = self._encode(vertices.float(), surface.side)
        for stage, (cell, values) in enumerate(zip(self.cells, self.values, strict=True)):
            with torch.autocast(device, enabled=False):
                projected = interpolate_faces(self.project[stage](features), self.faces)
                mixed, planes, guess = self._splat(cell, values, surface, projected)
                before = torch.zeros_like(guess) if sdf is None else _fold(_upsample(sdf, 2 * values), values)
                length = cell * voxel_length(self.shape)
                read = torch.cat([planes, (before.mean(-1, keepdim=True) / length).clamp(-4, 4)], -1)
                mixed = mixed + self.planes[stage](read).movedim(-1, 1)
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
                if volume is not None:
                    mixed = mixed + _upsample(self.carry[stage - 1](volume), 2)
                volume = self.stages[stage](mixed)
            with torch.autocast(device, enabled=False):  # from here on (B, X, Y, Z, values of a cell)
                head = self.heads[stage](volume.movedim(1, -1).float())
                trust = planes[..., -1:] * head[..., -1:].sigmoid()
                sdf = _unfold(before + trust * (guess - before) + length * head[..., :-1], values)
            results.append(sdf)
        return results

    def distance(self, vertices, shape):
        """vertices (B, V, 3) -> SDF (B, X, Y, Z) on a grid of any shape over the same cube."""
        sdf = self(vertices)[-1]
        if tuple(shape) == tuple(self.shape):
            return sdf
        return F.interpolate(sdf[:, None], tuple(shape), mode="trilinear", align_corners=True)[:, 0]

    def _encode(self, vertices, side):
        """Each vertex's features (B, V, C): its place, normal and plane, and what the GCN makes of them."""
        normals = side * F.normalize(vertex_normals(vertices, self.faces), dim=-1)
        plane = (normals * vertices).sum(-1, keepdim=True)
        geometry = torch.cat([vertices, normals, plane, torch.ones_like(plane)], -1)
        hidden = self.input(geometry[None])
        for block in self.graph:
            hidden = block(hidden)
        return torch.cat([geometry, hidden[0]], -1)

    def _splat(self, cell: int, values: int, surface, features):
        """What the cells of one stage hold of the surface: features (B, C, X, Y, Z), an integral; the plane that stands
        for it, (B, X, Y, Z, 5): height over it in cells, normal, share; and the distances from that plane at each of
        values^3 points of a cell, (B, X, Y, Z, values^3).

        The plane is the area-weighted mean of the tangent planes around: a first guess that no stage has to learn.
        """
        shape, length = [n // cell for n in self.shape], cell * voxel_length(self.shape)
        from_cells = _normalised_from_cells(self.shape, cell)
        places = transform(np.linalg.inv(from_cells), surface.points)
        areas = surface.areas / length**2  # in faces of a cell
        offset = (surface.normals * surface.points).sum(-1, keepdim=True)
        tangent = areas * torch.cat([surface.normals, offset, torch.ones_like(areas)], -1)
        mixed = splat_trilinear(places, areas * features, shape, channels_last=True)
        normal, offset, area = (
            splat_trilinear(places, tangent, shape, channels_last=True).movedim(1, -1).split([3, 1, 1], -1)
        )
        normal, offset = normal / area.clamp(min=THIN), offset / area.clamp(min=THIN)
        axes = [torch.linspace(-1, 1, n, device=areas.device) for n in shape]
        centres = transform(from_cells, torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))  # (X, Y, Z, 3)
        height = (normal * centres).sum(-1, keepdim=True) - offset
        steps = torch.arange(values, device=areas.device) - (values - 1) / 2  # in voxels
        points = 2 * torch.cartesian_prod(steps, steps, steps).view(-1, 3) / (torch.tensor(self.shape).to(steps) - 1)
        planes = torch.cat([height / length, normal, area / (area + THIN)], -1)
        return mixed, planes, height + normal @ points.T


@dataclass(frozen=True)
class SurfacePoints:
    """A batch of meshes' surfaces as points that stand for equal shares of their faces."""

    points: torch.Tensor  # (B, P, 3)
    normals: torch.Tensor  # (B, P, 3), of unit length, outward even where a mesh is inside out
    areas: torch.Tensor  # (B, P, 1)
    side: torch.Tensor  # (B, 1, 1): -1 where a mesh is inside out, else 1


def sample_faces(vertices, faces) -> SurfacePoints:
    """Three points of each face, which integrate quadratic functions exactly: P = 3 F.

    A mesh that training has turned inside out (its signed volume is negative) gets its normals turned, as Mesh2SDF
    has an inside there too: a distance read from inward normals lets it settle in that state.
    """
    normals = face_normals(vertices, faces).repeat_interleave(3, 1)  # twice as long as the faces' areas
    lengths = torch.linalg.vector_norm(normals, dim=-1, keepdim=True).clamp(min=1e-12)
    points = interpolate_faces(vertices, faces)
    side = torch.where((points * normals).sum((1, 2), keepdim=True) < 0, -1.0, 1.0).to(points.dtype)
    return SurfacePoints(points, side * normals / lengths, lengths / 6, side)


def interpolate_faces(values, faces):
    """Values of the vertices (B, V, C) at the points of `sample_faces`: (B, 3 F, C)."""
    corners = values.index_select(1, faces.flatten()).unflatten(1, (-1, 3))
    return (corners / 2 + corners.sum(2, keepdim=True) / 6).flatten(1, 2)


def _normalised_from_cells(shape, cell: int) -> np.ndarray:
    """The (4, 4) matrix from normalised coordinates of the grid of cells to those of the grid of voxels.

    Cell c holds the voxels from cell * c on, `cell` of them along each axis.
    """
    shape = np.asarray(shape)
    voxel_from_cell = np.diag([cell, cell, cell, 1.0])
    voxel_from_cell[:3, 3] = (cell - 1) / 2
    return np.linalg.inv(voxel_from_normalised(shape)) @ voxel_from_cell @ voxel_from_normalised(shape // cell)


def _upsample(volume, factor: int):
    """(B, C, X, Y, Z) or (B, X, Y, Z), `factor` times as many cells along each axis, over the same voxels."""
    if volume.ndim == 4:
        return _upsample(volume[:, None], factor)[:, 0]
    return F.interpolate(volume, scale_factor=factor, mode="trilinear")


def _fold(volume, side: int):
    """Voxels (B, s X, s Y, s Z) -> the s^3 values of each cell (B, X, Y, Z, s^3)."""
    x, y, z = (n // side for n in volume.shape[1:])
    return volume.view(-1, x, side, y, side, z, side).permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, x, y, z, side**3)


def _unfold(values, side: int):
    """The s^3 values of each cell (B, X, Y, Z, s^3) -> voxels (B, s X, s Y, s Z)."""
    batch, x, y, z, _ = values.shape
    return (
        values.view(batch, x, y, z, side, side, side)
        .permute(0, 1, 4, 2, 5, 3, 6)
        .reshape(batch, side * x, side * y, side * z)
    )


def drn_loss(drn: DeepRepresentationNetwork, vertices) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Deep supervision by the exact distance: the loss, the predictions of all stages and the finest's target.

    vertices (B, V, 3). A stage before the last is held to the mean over each of its cells. Squared errors weighted by
    ((sqrt(12) - |sdf|) / sqrt(12))^2, as the paper's, and by a bell of two cells about the surface, ours: mean over
    cells and stages.
    """
    predictions, losses = drn(vertices), []
    target = mesh2sdf(vertices.detach(), drn.faces, list(drn.shape))
    for prediction in predictions:
        cell = drn.shape[0] // prediction.shape[1]
        truth = F.avg_pool3d(target[:, None], cell)[:, 0]
        near = torch.exp(-(truth / (2 * cell * voxel_length(drn.shape))).square())
        weight = ((DIAGONAL - truth.abs()) / DIAGONAL).square() + NEAR_WEIGHT * near
        losses.append((weight * (prediction - truth).square()).mean())
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
    return {
        "error_voxels": error.mean().item(),
        "sign": (inside == truth).float().mean().item(),
        "dice": overlap.mean().item(),
    }
