"""The training losses: occupancy through the SDF, surface and segmentation against voxel labels; overlap, Laplacian and
triangles of the meshes by themselves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from implicitmeshnet.config import LossConfig
from implicitmeshnet.mesh import Neighbours, face_normals, neighbours, vertex_areas
from implicitmeshnet.models.mesh_net import Prediction
from implicitmeshnet.ops import mesh2sdf, splat_trilinear
from implicitmeshnet.structures import Structures
from implicitmeshnet.training.cosine import cosine
from implicitmeshnet.training.processes import total

SMALLEST_SQUARES = 3e-6
"""Of a triangle's three sides together, in squared normalised units: sides of a thousandth. A measure that no size
changes pulls the harder the smaller a triangle is, without bound; at smaller ones than these it no longer grows."""

SHARPER = 4.0
"""By which the logits of the meshes' Dice exceed those of their cross-entropy, so that it nears the Dice of voxelized
meshes. At create_config.py's temperature it is largest where a ball of 5 voxels' radius is 0.005 voxels too small; with
a border as wide as the cross-entropy's it would be 0.08."""

MESH_TERMS = ("occupancy", "occupancy_dice", "surface", "laplacian", "overlap", "triangles")
"""Of `Losses`, those that no network without meshes has."""

Distance = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""A route from meshes to their SDF: vertices (N, V, 3) normalised and a shape -> SDF (N, X, Y, Z), differentiable."""


def structure_masks(classes: torch.Tensor, structures: Structures) -> torch.Tensor:
    """A class map (B, X, Y, Z) -> what each structure's mesh holds, (B, S, X, Y, Z) float32."""
    masks = [structures.held(classes, structure) for structure in range(len(structures))]
    return torch.stack(masks, 1).float()


def kept_voxels(classes: torch.Tensor, structures: Structures) -> torch.Tensor | None:
    """Which voxels of a class map (B, X, Y, Z) are not ignored, float32 (B, 1, X, Y, Z); None where none can be."""
    if not structures.ignores:
        return None
    return (~structures.ignored(classes)).float()[:, None]


def known_neighbourhoods(kept: torch.Tensor) -> torch.Tensor:
    """Which voxels are kept along with their neighbours along each axis: float32 (B, 1, X, Y, Z), of as large `kept`.

    Only there a border can be told by central differences.
    """
    known = kept
    for axis in (2, 3, 4):
        window = [1, 1, 1]
        window[axis - 2] = 3
        ignored_beside = F.max_pool3d(1 - kept, window, 1, [size // 2 for size in window])
        known = known * (1 - ignored_beside)
    return known


def class_loss(logits: torch.Tensor, classes: torch.Tensor, ignored: int) -> torch.Tensor:
    """Cross-entropy of logits (B, C, X, Y, Z) against a class map (B, X, Y, Z): a scalar.

    It is the mean over the voxels, of all processes, that are not of the class `ignored`, 0 where all are.
    """
    classes = classes.long()
    summed = F.cross_entropy(logits, classes, ignore_index=ignored, reduction="sum")
    voxels = (classes != ignored).sum()
    return total(summed) / total(voxels).clamp(min=1)


def soft_dice_loss(logits: torch.Tensor, classes: torch.Tensor, ignored: int) -> torch.Tensor:
    """1 - the mean Dice of the structures' probabilities and a class map, over the batch: a scalar in [0, 1].

    logits (B, S + 1, X, Y, Z) with the background first, classes (B, X, Y, Z); voxels of the class `ignored` are left
    out. Unlike the cross-entropy it weighs a structure by itself, whatever its size (Milletari et al., 3DV 2016; the
    batch, of all processes, is taken together as in nnU-Net). A structure without any voxel in it counts nothing.
    """
    kept = (classes != ignored)[:, None]
    probabilities = logits.softmax(1)[:, 1:] * kept
    numbers = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, 1, 1, 1)
    return _dice_loss(probabilities, classes[:, None] == numbers)


def _dice_loss(probabilities: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 - the mean Dice, over the structures that are there, of two (B, S, X, Y, Z): a scalar, see `soft_dice_loss`."""
    common = total((probabilities * wanted).sum((0, 2, 3, 4)))
    sizes = total(wanted.sum((0, 2, 3, 4)))
    overlap = 2 * common / (total(probabilities.sum((0, 2, 3, 4))) + sizes).clamp(min=1)
    present = sizes > 0
    return ((1 - overlap) * present).sum() / present.sum().clamp(min=1)


def level_mean(
    loss: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    levels: Sequence[torch.Tensor],
    classes: torch.Tensor,
    ignored: int,
) -> torch.Tensor:
    """`class_loss` or `soft_dice_loss` of each level's logits, the finest first, as a mean: a scalar.

    A level (B, C, X / n, Y / m, Z / k) is held against every n-th, m-th and k-th voxel of the class map (B, X, Y, Z),
    where the encoder's strides have its centres. Level i weighs 2^-i, as in nnU-Net (Isensee et al., Nature Methods
    2021).
    """
    weights = [0.5**level for level in range(len(levels))]
    summed = classes.new_zeros((), dtype=torch.float32)
    for logits, weight in zip(levels, weights, strict=True):
        x, y, z = (fine // coarse for fine, coarse in zip(classes.shape[1:], logits.shape[2:], strict=True))
        summed = summed + weight * loss(logits, classes[:, ::x, ::y, ::z], ignored)
    return summed / sum(weights)


def occupancy_logits(vertices: torch.Tensor, distance: Distance, shape: list[int], temperature: float) -> torch.Tensor:
    """Logits -T * SDF of the meshes' occupancy: vertices (B, S, V, 3) normalised -> (B, S, X, Y, Z), of T per unit."""
    sdf = distance(vertices.flatten(0, 1), shape)
    return (-temperature * sdf).unflatten(0, vertices.shape[:2])


def occupancy_loss(logits: torch.Tensor, masks: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of `occupancy_logits` against the masks, both (B, S, X, Y, Z): a scalar, the mean over the `kept`
    voxels (B, 1, X, Y, Z) or over all.

    It is computed from the logits, so that voxels whose sigmoid is 0 or 1 to float32's precision keep their gradient.
    """
    if kept is None:
        return F.binary_cross_entropy_with_logits(logits, masks)
    weight = kept.expand_as(masks)
    summed = F.binary_cross_entropy_with_logits(logits, masks, weight, reduction="sum")
    return total(summed) / total(weight.sum()).clamp(min=1)


def occupancy_dice_loss(logits: torch.Tensor, masks: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """1 - the mean Dice of what each mesh holds and its mask, as `soft_dice_loss` takes it: a scalar in [0, 1].

    Unlike the cross-entropy it weighs a structure by itself, whatever its size beside the grid's. `occupancy_logits`
    and masks (B, S, X, Y, Z), `kept` as in `occupancy_loss`.
    """
    held = (SHARPER * logits).sigmoid()
    if kept is not None:
        held = held * kept
    return _dice_loss(held, masks)


def overlap_loss(
    logits: torch.Tensor, masks: torch.Tensor, encloses: Sequence[Sequence[int]], kept: torch.Tensor | None = None
) -> torch.Tensor:
    """What two meshes both claim, and what of an enclosed one sticks out of its encloser: a scalar.

    Of any two structures a and b it is the product o_a o_b of their occupancies, and where b encloses a, o_a (1 - o_b)
    instead: summed over the pairs, the mean over structures and `kept` voxels as in `occupancy_loss`, so that the
    weights of the two compare. A structure that a case's masks lack claims nothing, for its mesh must push no other.
    `occupancy_logits` and masks (B, S, X, Y, Z), `encloses` as in `Structures`.
    """
    present = masks.flatten(2).any(2)[:, :, None, None, None]
    occupancy = logits.sigmoid() * present
    # The sum of a product over all pairs is half of what the square of the sum has more than the sum of squares.
    shared = (occupancy.sum(1).square() - occupancy.square().sum(1)) / 2
    for outer, inner in enumerate(encloses):
        for one in inner:
            shared = shared + occupancy[:, one] * (1 - 2 * occupancy[:, outer])
    if kept is not None:
        voxels = total(kept.sum())
        return total((shared * kept[:, 0]).sum()) / (voxels * len(encloses)).clamp(min=1)
    return shared.mean() / len(encloses)


def surface_loss(
    vertices: torch.Tensor, faces: torch.Tensor, border: torch.Tensor, known: torch.Tensor | None = None
) -> torch.Tensor:
    """1 - overlap of the mesh's surface density with the label's border density, in [0, 1].

    Each vertex splats the area of its faces, in voxel faces, by trilinear weights into cells of 2 x 2 x 2 voxels;
    `border` is `border_density` of the label on the same cells. Both are blurred by three cells, because the loss can
    only pull a vertex towards a border within reach of the blur.
    vertices (B, S, V, 3) normalised, faces (F, 3), border (B, S, X / 2, Y / 2, Z / 2) -> scalar, differentiable. With
    `known` (B, 1, X, Y, Z), as `border_density` takes it, the mesh's surface counts by the known share of each cell.
    """
    points = vertices.flatten(0, 1)
    cells = list(border.shape[2:])
    voxels = torch.tensor(cells, dtype=points.dtype, device=points.device) * 2
    half = (voxels - 1) / 2  # voxels per normalised unit
    areas = vertex_areas(points * half, faces)  # in voxel faces

    # From normalised coordinates of the voxels to those of the cells: cell c has its centre at voxel 2 c + 0.5.
    in_voxels = (points + 1) * half
    positions = (in_voxels - 0.5) / (voxels / 2 - 1) - 1
    density = splat_trilinear(positions, areas[..., None], cells)  # (B * S, 1, X / 2, Y / 2, Z / 2)
    if known is not None:
        density = density * F.avg_pool3d(known, 2).repeat_interleave(border.shape[1], 0)
    density = _blurred(density)[:, 0]

    wanted = border.flatten(0, 1)
    common = (density * wanted).sum((1, 2, 3))
    squares = (density.square() + wanted.square()).sum((1, 2, 3))
    overlap = 2 * common / squares.clamp(min=1e-6)
    return 1 - overlap.mean()


def border_density(masks: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
    """Area of the masks' borders (B, S, X, Y, Z) in each cell of 2 x 2 x 2 voxels, blurred by three cells.

    X, Y and Z are even; the result is (B, S, X / 2, Y / 2, Z / 2) in voxel faces. Half the gradient magnitude by
    central differences sums to the border's area. With `known` (B, 1, X, Y, Z) only where that is 1, see
    `known_neighbourhoods`: what borders on ignored voxels is no border.
    """
    padded = F.pad(masks, (1, 1, 1, 1, 1, 1), mode="replicate")
    squared = torch.zeros_like(masks)
    for axis in (2, 3, 4):
        size = masks.shape[axis]
        inner = _without_border(padded, axis)
        below = inner.narrow(axis, 0, size)
        above = inner.narrow(axis, 2, size)
        squared = squared + (above - below).square()
    density = squared.sqrt() / 2
    if known is not None:
        density = density * known
    area = 8 * F.avg_pool3d(density, 2)  # the sum over a cell's voxels
    return _blurred(area)


def _without_border(padded: torch.Tensor, kept: int) -> torch.Tensor:
    """A volume (B, S, X + 2, Y + 2, Z + 2) without the outermost voxels along each axis but `kept`."""
    for axis in {2, 3, 4} - {kept}:
        padded = padded.narrow(axis, 1, padded.shape[axis] - 2)
    return padded


def _blurred(density: torch.Tensor) -> torch.Tensor:
    """The mean over the 3 x 3 x 3 cells around each cell, with zeros outside the volume."""
    return F.avg_pool3d(density, 3, stride=1, padding=1)


def laplacian_loss(vertices: torch.Tensor, around: Neighbours) -> torch.Tensor:
    """Mean squared distance of each vertex (..., V, 3) from the mean of its neighbours, in squared normalised units."""
    weighted = vertices[..., around.index, :] * around.weight[..., None]
    mean = weighted.sum(-2) / around.degree
    return (mean - vertices).square().sum(-1).mean()


def triangle_loss(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """1 - the mean ratio of the triangles, in [0, 1]: 0 for equilateral ones, 1 for ones without area; a scalar.

    A triangle's mean ratio is 4 sqrt(3) * area / (sum of the squared sides), whatever its size (Knupp, Algebraic Mesh
    Quality Metrics, SIAM Journal on Scientific Computing 23(1), 2001, section 4; for the formula Bank and Smith, SIAM
    Journal on Numerical Analysis 34(3), 1997). So it neither shrinks meshes nor forbids large triangles beside small
    ones. vertices (..., V, 3) in units of about half the grid's sides, the same along each axis, faces (F, 3).
    """
    a, b, c = (vertices[..., faces[:, corner], :] for corner in range(3))
    squares = ((b - a).square() + (c - b).square() + (a - c).square()).sum(-1)  # (..., F)
    double = torch.linalg.vector_norm(face_normals(vertices, faces), dim=-1)  # (..., F) twice the areas
    ratios = 2 * math.sqrt(3) * double / squares.clamp(min=SMALLEST_SQUARES)
    return 1 - ratios.mean()


def laplacian_weight(config: LossConfig, epoch: float) -> float:
    """The weight of the Laplacian loss in an epoch: from laplacian_start down a cosine to laplacian_end.

    It gets there after laplacian_epochs and stays constant from then on.
    """
    return cosine(config.laplacian_start, config.laplacian_end, epoch / config.laplacian_epochs)


def overlap_weight(config: LossConfig, epoch: float) -> float:
    """The weight of the overlap loss in an epoch: from 0 to its own as the Laplacian's falls.

    Meshes begin as ellipsoids that lie in each other; what parts them at first is the label.
    """
    return cosine(0.0, config.overlap, epoch / config.laplacian_epochs)


@dataclass(frozen=True)
class Losses:
    """The terms of the loss before they are weighted, scalars.

    Occupancy, its Dice and overlap are of the last stage's meshes; surface, Laplacian and triangles are means over the
    stages, and the segmentation's are `level_mean` over the levels that segment.
    The terms after the segmentation's are 0 where their weight is, and all of the meshes' where there are no stages.
    """

    occupancy: torch.Tensor
    occupancy_dice: torch.Tensor
    surface: torch.Tensor
    laplacian: torch.Tensor
    segmentation: torch.Tensor
    segmentation_dice: torch.Tensor
    overlap: torch.Tensor
    triangles: torch.Tensor


class MeshLoss(nn.Module):
    """The weighted sum of all losses for one template triangulation, faces (F, 3).

    `structures` say which labels each mesh holds, see `structure_masks`. `distance` is the route from meshes
    to their SDF, by default Mesh2SDF. `half_sides_mm` are a normalised unit along each axis in mm.
    """

    faces: torch.Tensor  # (F, 3)
    index: torch.Tensor  # see `Neighbours`
    weight: torch.Tensor  # see `Neighbours`
    proportions: torch.Tensor  # (3,) of the half sides, their mean 1

    def __init__(
        self,
        faces: torch.Tensor,
        vertex_count: int,
        config: LossConfig,
        structures: Structures,
        distance: Distance | None = None,
        half_sides_mm: Sequence[float] = (1.0, 1.0, 1.0),
    ):
        super().__init__()
        self.config = config
        self.structures = structures
        self.distance = distance or self._exact_distance
        self.register_buffer("faces", faces)
        around = neighbours(faces.cpu(), vertex_count)
        self.register_buffer("index", around.index)
        self.register_buffer("weight", around.weight)
        sides = torch.tensor(half_sides_mm)
        self.register_buffer("proportions", sides / sides.mean())

    def forward(self, prediction: Prediction, label: torch.Tensor, epoch: float) -> tuple[torch.Tensor, Losses]:
        """label (B, X, Y, Z), a class map -> the total (scalar) and its Losses."""
        losses = Losses(**self._of_meshes(prediction, label), **self._of_segmentation(prediction, label))
        weighted = self.config.occupancy * losses.occupancy
        weighted = weighted + self.config.occupancy_dice * losses.occupancy_dice
        weighted = weighted + self.config.surface * losses.surface
        weighted = weighted + laplacian_weight(self.config, epoch) * losses.laplacian
        weighted = weighted + self.config.segmentation * losses.segmentation
        weighted = weighted + self.config.segmentation_dice * losses.segmentation_dice
        weighted = weighted + overlap_weight(self.config, epoch) * losses.overlap
        weighted = weighted + self.config.triangles * losses.triangles
        return weighted, losses

    def _of_meshes(self, prediction: Prediction, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of the meshes, by the names of `Losses`."""
        nothing = torch.zeros((), device=label.device)
        if not prediction.stages:
            return dict.fromkeys(MESH_TERMS, nothing)
        masks = structure_masks(label, self.structures)
        kept = kept_voxels(label, self.structures)
        known = None if kept is None else known_neighbourhoods(kept)
        border = border_density(masks, known)
        around = Neighbours(self.index, self.weight)
        logits = occupancy_logits(prediction.vertices, self.distance, list(masks.shape[2:]), self.config.temperature)
        occupancy = occupancy_loss(logits, masks, kept)
        occupancy_dice = nothing
        if self.config.occupancy_dice > 0:
            occupancy_dice = occupancy_dice_loss(logits, masks, kept)
        surfaces = [surface_loss(stage, self.faces, border, known) for stage in prediction.stages]
        laplacians = [laplacian_loss(stage, around) for stage in prediction.stages]
        overlap = nothing
        if self.config.overlap > 0:
            overlap = overlap_loss(logits, masks, self.structures.encloses, kept)
        triangles = nothing
        if self.config.triangles > 0:
            triangles = triangle_loss(torch.stack(prediction.stages) * self.proportions, self.faces)
        return {
            "occupancy": occupancy,
            "occupancy_dice": occupancy_dice,
            "surface": torch.stack(surfaces).mean(),
            "laplacian": torch.stack(laplacians).mean(),
            "overlap": overlap,
            "triangles": triangles,
        }

    def _of_segmentation(self, prediction: Prediction, label: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms of the UNet's segmentation, by the names of `Losses`."""
        levels = [prediction.segmentation, *prediction.coarser]
        segmentation = level_mean(class_loss, levels, label, self.structures.ignored_class)
        dice = torch.zeros_like(segmentation)
        if self.config.segmentation_dice > 0:
            dice = level_mean(soft_dice_loss, levels, label, self.structures.ignored_class)
        return {"segmentation": segmentation, "segmentation_dice": dice}

    def _exact_distance(self, vertices: torch.Tensor, shape: list[int]) -> torch.Tensor:
        return mesh2sdf(vertices, self.faces, shape)
