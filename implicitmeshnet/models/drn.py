"""DeepRepresentationNetwork: the deep signed distance transform of a mesh, and what it is trained and judged by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import convert_conv3d_weight_memory_format

from implicitmeshnet.config import DrnNetworkConfig
from implicitmeshnet.coordinates import transform, voxel_from_normalised
from implicitmeshnet.mesh import face_normals, icosphere, neighbours, signed_volumes, vertex_normals
from implicitmeshnet.models.graph import GCNConv, GraphResidualBlock
from implicitmeshnet.models.unet import InstanceNorm3d, bfloat16_is_fast
from implicitmeshnet.ops import mesh2sdf, splat_trilinear

DIAGONAL = math.sqrt(12)
"""Length of the normalised cube's diagonal: no distance within the cube is longer."""
NEAR_VOXELS = 3.0
"""`sdf_quality` measures the error of the voxels that lie within this many voxels of the surface."""
NEAR_WEIGHT = 30.0
"""Additional weight of the loss within about two voxels of the surface. Without it the many voxels far from the surface
would dominate the loss, although the losses of the meshes hardly depend on their distances."""
THIN = 0.05
"""Surface area in a cell, in faces of a cell, below which the mean plane of the cell fades to nothing."""
FARTHEST_CELLS = 4.0
"""Distances that a stage receives as a feature are clamped to this many of its cells."""


def group_norm(groups: int, channels: int) -> nn.Module:
    """Group norm over `groups` groups of channels.

    With one group for each channel this is instance norm, and `InstanceNorm3d` computes it: on CPUs its backward pass
    is 20 times faster than that of torch's group norm.
    """
    return InstanceNorm3d(channels) if channels == groups else nn.GroupNorm(groups, channels)


class VoxelBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))) with group norm and SiLU; (B, C, X, Y, Z) -> same.

    The last convolution starts at zero, so that an untrained block returns its input.
    """

    def __init__(self, channels: int, groups: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            convolution = nn.Conv3d(channels, channels, 3, padding=1)
            layers += [group_norm(groups, channels), nn.SiLU(), convolution]
        nn.init.zeros_(convolution.weight)  # of the last one
        self.body = nn.Sequential(*layers)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return volume + self.body(volume)


@dataclass(frozen=True)
class SurfacePoints:
    """The surfaces of a batch of meshes as P points, each of which stands for an equal share of its face."""

    points: torch.Tensor  # (B, P, 3) normalised
    normals: torch.Tensor  # (B, P, 3), of unit length, outward even where a mesh is inside out
    areas: torch.Tensor  # (B, P, 1) normalised
    side: torch.Tensor  # (B, 1, 1): -1 where a mesh is inside out, else 1


@dataclass(frozen=True)
class CellContents:
    """What the cells (X, Y, Z) of one stage hold of the surface.

    Each cell has a plane that stands for the surface in and around it: the area-weighted mean of the tangent planes.
    The distance from that plane is a first guess that no stage has to learn.
    """

    features: torch.Tensor  # (B, C, X, Y, Z), integrals over the surface
    plane: torch.Tensor  # (B, X, Y, Z, 5): height of the cell's centre over it in cells, normal (3), confidence 0 to 1
    distances: torch.Tensor  # (B, X, Y, Z, values^3) normalised, from the plane, at each of a cell's points


class DeepRepresentationNetwork(nn.Module):
    """A mesh of the template's triangulation -> its signed distance on a voxel grid, negative inside (Laves 2025).

    A residual GCN computes features for each vertex; these, interpolated to three points of each face and weighted by
    their share of the surface, are splatted into grids from coarse to fine, so that a grid holds an integral over the
    surface, whatever the triangulation. A convolutional stage per grid corrects the upsampled distance of the stage
    before. A stage's cells are blocks of voxels, each stage's half as wide as those of the stage before; the last
    stage yields a value for each voxel of its cells (sub-voxel convolution, Shi et al. 2016).
    """

    faces: torch.Tensor  # (F, 3)

    def __init__(self, config: DrnNetworkConfig):
        super().__init__()
        vertices, faces = icosphere(config.template_subdivisions)
        around = neighbours(faces, len(vertices))
        self.register_buffer("faces", faces, persistent=False)
        self.shape = config.shape
        self.values = [1] * (len(config.channels) - 1) + [config.subvoxels]
        """How many values each stage yields along a side of its cells."""

        width = config.graph_channels
        self.input = GCNConv(1, 8, width, around)
        self.graph = nn.ModuleList(
            GraphResidualBlock(1, width, around, GCNConv, config.dropout) for _ in range(config.graph_blocks)
        )

        widths = config.channels
        self.project = nn.ModuleList(nn.Linear(8 + width, channels) for channels in widths)
        self.planes = nn.ModuleList(nn.Linear(6, channels) for channels in widths)
        self.carry = nn.ModuleList(nn.Conv3d(before, after, 1) for before, after in pairwise(widths))
        stages = []
        for channels, blocks in zip(widths, config.blocks, strict=True):
            stages.append(nn.Sequential(*(VoxelBlock(channels, config.groups) for _ in range(blocks))))
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(map(_zero_head, widths, self.values))
        convert_conv3d_weight_memory_format(self.stages, torch.channels_last_3d)

    @property
    def cells(self) -> list[int]:
        """Voxels along a side of a cell in each stage, coarse to fine."""
        return [self.values[-1] << level for level in reversed(range(len(self.values)))]

    def forward(self, vertices: torch.Tensor) -> list[torch.Tensor]:
        """vertices (B, V, 3) normalised -> signed distances in normalised units, coarse to fine.

        The last is (B, X, Y, Z) at the voxels of `shape`; those before hold a mean over each cell.
        """
        device = vertices.device.type
        results: list[torch.Tensor] = []
        volume = None
        # Meshes and distances need float32; the convolutions alone may run in bfloat16.
        with torch.autocast(device, enabled=False):
            vertices = vertices.float()
            surface = sample_faces(vertices, self.faces)
            features = self._encode(vertices, surface.side)
        for stage in range(len(self.stages)):
            coarser = results[-1] if results else None
            with torch.autocast(device, enabled=False):
                contents = self._contents(stage, surface, features)
                before = self._distance_before(stage, coarser, contents)
                mixed = self._mixed(stage, contents, before)
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16_is_fast(device)):
                volume = self._convolved(stage, mixed, volume)
            with torch.autocast(device, enabled=False):
                results.append(self._corrected(stage, volume, contents, before))
        return results

    def distance(self, vertices: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """vertices (B, V, 3) -> SDF (B, X, Y, Z) on a grid of any shape over the same cube."""
        sdf = self(vertices)[-1]
        if tuple(shape) == tuple(self.shape):
            return sdf
        return F.interpolate(sdf[:, None], tuple(shape), mode="trilinear", align_corners=True)[:, 0]

    def _encode(self, vertices: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        """Each vertex's features (B, V, C): its position, normal and plane, and what the GCN makes of them."""
        normals = side * F.normalize(vertex_normals(vertices, self.faces), dim=-1)
        plane = (normals * vertices).sum(-1, keepdim=True)
        geometry = torch.cat([vertices, normals, plane, torch.ones_like(plane)], -1)
        hidden = self.input(geometry[None])  # graph layers take an axis of structures, here a single one
        for block in self.graph:
            hidden = block(hidden)
        return torch.cat([geometry, hidden[0]], -1)

    def _contents(self, stage: int, surface: SurfacePoints, features: torch.Tensor) -> CellContents:
        """What the cells of a stage hold of the surface; features (B, V, C) of the vertices."""
        projected = self.project[stage](features)
        at_points = interpolate_faces(projected, self.faces)
        return self._splat(self.cells[stage], self.values[stage], surface, at_points)

    def _splat(self, cell: int, values: int, surface: SurfacePoints, features: torch.Tensor) -> CellContents:
        """What cells of `cell` voxels along each side hold of the surface; features (B, P, C) of its points.

        Distances from a cell's plane are computed at `values` points along each side of the cell.
        """
        shape = [n // cell for n in self.shape]
        length = self._cell_length(cell)
        from_cells = _normalised_from_cells(self.shape, cell)
        places = transform(np.linalg.inv(from_cells), surface.points)
        areas = surface.areas / length**2  # in faces of a cell
        normal, offset, area = _mean_planes(surface, places, areas, shape)
        mixed = splat_trilinear(places, areas * features, shape, channels_last=True)

        centres = transform(from_cells, _cell_centres(shape, areas.device))  # (X, Y, Z, 3)
        height = (normal * centres).sum(-1, keepdim=True) - offset
        confidence = area / (area + THIN)
        plane = torch.cat([height / length, normal, confidence], -1)
        points = self._points_of_a_cell(values, areas.device)
        return CellContents(mixed, plane, height + normal @ points.T)

    def _points_of_a_cell(self, values: int, device: torch.device) -> torch.Tensor:
        """The points (values^3, 3) at which a cell has values, from its centre, in normalised units."""
        steps = torch.arange(values, device=device) - (values - 1) / 2  # in voxels
        voxels = torch.cartesian_prod(steps, steps, steps).view(-1, 3)
        return 2 * voxels / (torch.tensor(self.shape).to(steps) - 1)

    def _cell_length(self, cell: int) -> float:
        """The mean side of a cell of `cell` voxels in normalised units."""
        return cell * voxel_length(self.shape)

    def _distance_before(self, stage: int, coarser: torch.Tensor | None, contents: CellContents) -> torch.Tensor:
        """The distance of the stage before at a stage's points, (B, X, Y, Z, values^3); zero before the first stage."""
        if coarser is None:
            return torch.zeros_like(contents.distances)
        values = self.values[stage]
        return _fold(_upsample(coarser[:, None], 2 * values)[:, 0], values)

    def _mixed(self, stage: int, contents: CellContents, before: torch.Tensor) -> torch.Tensor:
        """The input of a stage's convolutions (B, C, X, Y, Z): surface features plus plane and distance so far."""
        cells = before.mean(-1, keepdim=True) / self._cell_length(self.cells[stage])
        known = torch.cat([contents.plane, cells.clamp(-FARTHEST_CELLS, FARTHEST_CELLS)], -1)
        return contents.features + self.planes[stage](known).movedim(-1, 1)

    def _convolved(self, stage: int, mixed: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """The volume (B, C, X, Y, Z) of a stage's convolutions, into which that of the stage before is carried."""
        if coarser is not None:
            mixed = mixed + _upsample(self.carry[stage - 1](coarser), 2)
        return self.stages[stage](mixed)

    def _corrected(
        self, stage: int, volume: torch.Tensor, contents: CellContents, before: torch.Tensor
    ) -> torch.Tensor:
        """A stage's distance (B, X, Y, Z), of each value of its cells.

        It moves from the distance of the stage before towards the distance from the cell's plane, as far as the plane
        deserves trust, and then by a learnt correction in lengths of a cell.
        """
        head = self.heads[stage](volume.movedim(1, -1).float())
        correction = head[..., :-1]
        confidence = contents.plane[..., -1:]
        trust = confidence * head[..., -1:].sigmoid()
        towards_plane = before + trust * (contents.distances - before)
        length = self._cell_length(self.cells[stage])
        return _unfold(towards_plane + length * correction, self.values[stage])


def _zero_head(channels: int, values: int) -> nn.Linear:
    """A layer of zeros that yields a cell's values^3 corrections and, last, the logit of the trust in its plane."""
    head = nn.Linear(channels, values**3 + 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def sample_faces(vertices: torch.Tensor, faces: torch.Tensor) -> SurfacePoints:
    """Three points of each face, which integrate quadratic functions exactly: P = 3 F.

    vertices (B, V, 3), faces (F, 3). A mesh that training has turned inside out (its signed volume is negative) gets
    its normals turned, because Mesh2SDF counts its interior as inside too; with inward normals the training could
    settle in that state.
    """
    normals = face_normals(vertices, faces).repeat_interleave(3, 1)  # twice as long as the faces' areas
    lengths = torch.linalg.vector_norm(normals, dim=-1, keepdim=True).clamp(min=1e-12)
    points = interpolate_faces(vertices, faces)
    inside_out = signed_volumes(vertices.detach(), faces) < 0
    side = torch.where(inside_out, -1.0, 1.0).to(points.dtype)[:, None, None]
    return SurfacePoints(points, side * normals / lengths, lengths / 6, side)


def interpolate_faces(values: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Values of the vertices (B, V, C) at the points of `sample_faces`: (B, 3 F, C).

    A point's weights are 2/3 for one corner of its face and 1/6 for each of the other two.
    """
    corners = values.index_select(1, faces.flatten()).unflatten(1, (-1, 3))
    return (corners / 2 + corners.sum(2, keepdim=True) / 6).flatten(1, 2)


def _mean_planes(
    surface: SurfacePoints, places: torch.Tensor, areas: torch.Tensor, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean of the tangent planes around each cell: normals (B, X, Y, Z, 3) and offsets from the origin
    (B, X, Y, Z, 1), with the area (B, X, Y, Z, 1) that is there.

    The points of the surface lie at `places` (B, P, 3), in normalised coordinates of the grid of cells, with `areas`
    (B, P, 1) in faces of a cell.
    """
    offsets = (surface.normals * surface.points).sum(-1, keepdim=True)
    tangents = areas * torch.cat([surface.normals, offsets, torch.ones_like(areas)], -1)
    sums = splat_trilinear(places, tangents, shape, channels_last=True).movedim(1, -1)
    normal, offset, area = sums.split([3, 1, 1], -1)
    # Divided by at least THIN, so that the plane fades where there is next to no surface.
    return normal / area.clamp(min=THIN), offset / area.clamp(min=THIN), area


def _cell_centres(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """The centres (X, Y, Z, 3) of the cells of a grid, in its own normalised coordinates."""
    axes = [torch.linspace(-1, 1, n, device=device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _normalised_from_cells(shape: Sequence[int], cell: int) -> np.ndarray:
    """The (4, 4) matrix from normalised coordinates of the grid of cells to those of the grid of voxels.

    Cell c holds the voxels from cell * c on, `cell` of them along each axis.
    """
    voxels = np.asarray(shape)
    voxel_from_cell = np.diag([cell, cell, cell, 1.0])
    voxel_from_cell[:3, 3] = (cell - 1) / 2
    cell_from_normalised = voxel_from_normalised(voxels // cell)
    return np.linalg.inv(voxel_from_normalised(voxels)) @ voxel_from_cell @ cell_from_normalised


def _upsample(volume: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, C, X, Y, Z) on `factor` times as many cells along each axis, over the same voxels."""
    return F.interpolate(volume, scale_factor=factor, mode="trilinear")


def _fold(volume: torch.Tensor, side: int) -> torch.Tensor:
    """Voxels (B, s X, s Y, s Z) -> the s^3 values of each cell (B, X, Y, Z, s^3)."""
    x, y, z = (n // side for n in volume.shape[1:])
    split = volume.view(-1, x, side, y, side, z, side)
    cells_first = split.permute(0, 1, 3, 5, 2, 4, 6)
    return cells_first.reshape(-1, x, y, z, side**3)


def _unfold(values: torch.Tensor, side: int) -> torch.Tensor:
    """The s^3 values of each cell (B, X, Y, Z, s^3) -> voxels (B, s X, s Y, s Z)."""
    batch, x, y, z, _ = values.shape
    split = values.view(batch, x, y, z, side, side, side)
    interleaved = split.permute(0, 1, 4, 2, 5, 3, 6)
    return interleaved.reshape(batch, side * x, side * y, side * z)


def drn_loss(
    drn: DeepRepresentationNetwork, predictions: Sequence[torch.Tensor], vertices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Deep supervision by the exact distance of vertices (B, V, 3): the loss, and the target of the finest stage.

    `predictions` are what the network says of the vertices, by stage. The loss is the mean of `_stage_loss` over the
    stages; a stage before the last is compared with the mean of the exact distance over each of its cells.
    """
    target = mesh2sdf(vertices.detach(), drn.faces, list(drn.shape))
    losses = []
    for prediction in predictions:
        cell = drn.shape[0] // prediction.shape[1]
        truth = F.avg_pool3d(target[:, None], cell)[:, 0]
        losses.append(_stage_loss(prediction, truth, cell * voxel_length(drn.shape)))
    return torch.stack(losses).mean(), target


def _stage_loss(prediction: torch.Tensor, truth: torch.Tensor, length: float) -> torch.Tensor:
    """The weighted mean squared error of a stage's distance (B, X, Y, Z), whose cells have sides of `length`.

    The weight is ((sqrt(12) - |sdf|) / sqrt(12))^2, as in the paper, plus our own bell of two cells' width about the
    surface.
    """
    near = torch.exp(-(truth / (2 * length)).square())
    closeness = (DIAGONAL - truth.abs()) / DIAGONAL
    weight = closeness.square() + NEAR_WEIGHT * near
    return (weight * (prediction - truth).square()).mean()


def voxel_length(shape: Sequence[int]) -> float:
    """The mean spacing of a grid in normalised units: the side of the cube with a voxel's volume."""
    return 2 / math.prod(n - 1 for n in shape) ** (1 / 3)


def sdf_quality(prediction: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """How well a signed distance (B, X, Y, Z) fits the true one, means over the shapes of a batch.

    error_voxels: mean |error| within 3 voxels of the surface, in voxels of the mean spacing; sign: share of all voxels
    on the right side; dice: of the two negative sides.
    """
    axes = (1, 2, 3)
    voxel = voxel_length(target.shape[1:])
    near = target.abs() < NEAR_VOXELS * voxel
    near_errors = (prediction - target).abs() * near
    error = near_errors.sum(axes) / near.sum(axes).clamp(min=1)

    inside = prediction < 0
    truth = target < 0
    both = (inside & truth).sum(axes)
    sizes = inside.sum(axes) + truth.sum(axes)
    overlap = 2 * both / sizes.clamp(min=1)
    return {
        "error_voxels": (error / voxel).mean().item(),
        "sign": (inside == truth).float().mean().item(),
        "dice": overlap.mean().item(),
    }
