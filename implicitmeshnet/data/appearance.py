"""Images of any scanner from tissue parts: contrast, resolution, view, orientation and faults, all drawn at random.

After SynthSeg (Billot et al., Medical Image Analysis 86, 2023): a network that has seen every contrast needs none in
particular. Here the tissues come with their shares of a voxel, slices lie along any axis of the grid, and the view may
end anywhere in the heart. As in `augment`, the host draws a few hundred numbers, what is large is made of them on the
device that holds the tissues, and the order of the draws is part of the result.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from implicitmeshnet.data.augment import (
    SHEAR,
    TRANSLATION,
    between_control_points,
    control_points,
    random_field,
    rotation,
    warp_label,
)
from implicitmeshnet.data.tissue_maps import PARTS, WHOLE, Anatomy
from implicitmeshnet.data.volume import nearest_axes
from implicitmeshnet.tissues import Tissue

LEFT_BLOOD = (Tissue.LV, Tissue.LA, Tissue.AO, Tissue.LEFT_VESSEL)
RIGHT_BLOOD = (Tissue.RV, Tissue.RA, Tissue.PA, Tissue.RIGHT_VESSEL)
HEART_MUSCLE = (Tissue.MYOCARDIUM, Tissue.WALL)
OTHER_MUSCLE = (Tissue.MUSCLE, Tissue.DIAPHRAGM, Tissue.AIRWAY_WALL, Tissue.SKIN)
AIR = (Tissue.AIR, Tissue.AIRWAY, Tissue.TABLE_FOAM)
ALONE = (
    Tissue.LUNG,
    Tissue.LUNG_VESSEL,
    Tissue.FAT,
    Tissue.BONE,
    Tissue.MARROW,
    Tissue.STOMACH,
    Tissue.SPLEEN,
    Tissue.LIVER,
    Tissue.TABLE_SHELL,
)
SHORT_AXIS = 0.25  # share of draws whose slices lie across the left ventricle's long axis
LEFT_ATRIUM_VIEW = 0.4  # share of the views of one structure that are of this one, as before ablations
BRIGHT_BLOOD = 0.7  # share of contrasts whose blood is brighter than muscle, beside those in which it is by chance
BRIGHT_BLOOD_SHORT_AXIS = 0.9  # the same of short-axis stacks, which are mostly cine
TURNED_STACKS = 0.4  # share of stacks without a direction that are stored with other axes than most
MIRRORED = 0.2  # share of the others whose axes are flipped, as by a header that is wrong
LAYER_VOXELS = 3  # along each axis around a voxel: the more of them are myocardium, the likelier it is a trabecula
TURN_DEG = 15.0
FAR_TURN_DEG = 30.0
SCALE = 0.2
FULL_WIDTH = 2.355  # of a Gaussian at half its height, in standard deviations
NOISE = 0.12  # standard deviation at the most, in voxels of NOISE_MM or less
NOISE_MM = 2.6
PERCENTILES = (0.005, 0.995)
MEASURED = 50_000  # voxels of a view, at the most, that its percentiles are taken of
LEAST_VOXELS = 3  # along each axis of a view that an overview is cut to


class Drawn(NamedTuple):
    """An image that was drawn."""

    image: torch.Tensor  # (1, X, Y, Z) float32 in [-1, 1], -1 outside the view
    label: torch.Tensor  # (X, Y, Z) int64
    view: tuple[slice, slice, slice]  # the voxels that the image shows


class Draws:
    """Random numbers from a host's generator, and which kinds of randomness are left out."""

    def __init__(self, generator: torch.Generator, without: Collection[str] = ()):
        self.generator = generator
        self.without = without

    def has(self, kind: str, chance: float = 1.0) -> bool:
        """Whether a kind of randomness happens that does in so many draws of 1, or is left out."""
        return self.between(0, 1) < chance and kind not in self.without

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def three(self, low: float, high: float) -> np.ndarray:
        """Three numbers from low to high: (3,) float64."""
        return low + (high - low) * torch.rand(3, generator=self.generator).double().numpy()

    def choice(self, count: int) -> int:
        """A number from 0 to count - 1."""
        return int(torch.randint(count, (), generator=self.generator))

    def device_generator(self, device: torch.device) -> torch.Generator:
        """A generator of the device's own, for what is large."""
        return torch.Generator(device).manual_seed(int(torch.randint(2**32, (), generator=self.generator)))


def random_appearance(
    parts: torch.Tensor,
    label: torch.Tensor,
    anatomy: Anatomy,
    shape: Sequence[int],
    spacing_mm: Sequence[float] | np.ndarray,
    generator: torch.Generator,
    ignored: int | None = None,
    without: Collection[str] = (),
) -> Drawn:
    """Draw what the network sees of a padded case: a grid of `shape` around the part of the heart that is in view.

    parts (2 * PARTS, X', Y', Z') uint8, see `tissue_parts`, and label (X', Y', Z') uint8, on one device, of voxels of
    so many mm; `anatomy` is seen from their middle. What lies outside the view is -1, as the reader pads, and
    `ignored`, or background where that is None. `without` names kinds of randomness that are left out. The same state
    of the host's `generator` gives the same result on the same device.
    """
    draws = Draws(generator, without)
    spacing = np.asarray(spacing_mm, np.float64)
    pose = _pose(draws, anatomy)
    view = _view(draws, pose, anatomy)
    seen_mm = view.centre_of(pose, anatomy) + TRANSLATION * draws.three(-1, 1) * (np.array(shape) * spacing).min() / 2
    reach_mm = (np.array(parts.shape[1:]) - shape) / 2 * spacing  # beyond it the case's voxels end
    shift_mm = np.clip(pose.matrix @ seen_mm, -1.2 * reach_mm, 1.2 * reach_mm)
    drawn = _draw(draws, parts, label, pose, shift_mm, view, shape, spacing, ignored)
    inside = torch.zeros(drawn.label.shape, dtype=torch.bool, device=label.device)
    inside[drawn.view] = True
    image = torch.where(inside, drawn.image, -1.0)
    return Drawn(image, torch.where(inside, drawn.label, ignored or 0), drawn.view)


def random_overview(
    parts: torch.Tensor,
    label: torch.Tensor,
    anatomy: Anatomy,
    spacing_mm: Sequence[float] | np.ndarray,
    generator: torch.Generator,
    ignored: int,
    without: Collection[str] = (),
) -> Drawn:
    """As `random_appearance` for the coarse pass: the whole view of an overview and nothing beyond, of any size.

    The heart turns about its middle. parts (2 * PARTS, X, Y, Z) and label (X, Y, Z) have no margin.
    """
    draws = Draws(generator, without)
    spacing = np.asarray(spacing_mm, np.float64)
    pose = _pose(draws, anatomy)
    view = _view(draws, pose, anatomy)
    middle_mm = np.nanmean(anatomy.centres_mm, 0)
    shift_mm = middle_mm - pose.matrix @ middle_mm
    drawn = _draw(draws, parts, label, pose, shift_mm, view, parts.shape[1:], spacing, ignored)
    # A copy, as a view's memory would hold the whole volume.
    image = drawn.image[(slice(None), *drawn.view)].contiguous()
    label = drawn.label[drawn.view].contiguous()
    x, y, z = label.shape
    return Drawn(image, label, (slice(0, x), slice(0, y), slice(0, z)))


def _draw(
    draws: Draws,
    parts: torch.Tensor,
    label: torch.Tensor,
    pose: "Pose",
    shift_mm: np.ndarray,
    view: "View",
    shape: Sequence[int],
    spacing: np.ndarray,
    ignored: int | None,
) -> Drawn:
    """An image of a pose, moved by a shift, through a view: warp, contrast, scan and normalisation."""
    of_device = draws.device_generator(parts.device)
    view = view.moved(-np.linalg.solve(pose.matrix, shift_mm))
    lines = _scan(draws, view, shape, spacing)
    grid = _warp(draws, parts, pose, shift_mm, shape, spacing)
    table = contrasts(draws, BRIGHT_BLOOD_SHORT_AXIS if view.short_axis else BRIGHT_BLOOD)
    painted = _paint(parts, table.to(parts.device))
    if draws.has("trabeculae", 0.7):
        _add_trabeculae(draws, painted[0], parts[0], float(table[0, Tissue.MYOCARDIUM]), of_device)
    if draws.has("scars", 0.25):
        _add_scars(draws, painted[0], parts[0], of_device)
    points = grid.movedim(0, -1)[None]
    mean, grain, mixing = F.grid_sample(painted[None], points, padding_mode="border", align_corners=True)[0]
    image = _textured(draws, mean, grain, mixing, of_device)
    image = _acquired(draws, image, lines, float(spacing.mean()), of_device)
    inside = (lines[0].inside, lines[1].inside, lines[2].inside)
    image = _normalised(draws, image, inside)
    moved = warp_label(label, grid)
    if ignored is not None:
        moved = torch.where((grid.abs() > 1).any(0), ignored, moved)  # beyond what is known
    return Drawn(image[None], moved, inside)


# Pose and view


@dataclass(frozen=True)
class Pose:
    """How the heart is turned and scaled: a place p in mm of the image shows the place matrix @ p of the case."""

    matrix: np.ndarray  # (3, 3)
    slices: int | None  # the axis of slices that lie across the left ventricle, where they do

    @property
    def short_axis(self) -> bool:
        """Whether slices lie across the left ventricle."""
        return self.slices is not None

    def places(self, points: np.ndarray) -> np.ndarray:
        """Where the image has points (..., 3) of the case."""
        return points @ np.linalg.inv(self.matrix).T

    def boxes(self, anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
        """The lowest and the highest place of each structure that is there: both (S', 3)."""
        middle = self.places(anatomy.centres_mm[anatomy.known])
        half = np.sqrt(anatomy.semi_axes_mm[anatomy.known] ** 2 @ (np.linalg.inv(self.matrix) ** 2).T)
        return middle - half, middle + half


@dataclass(frozen=True)
class View:
    """The box that an image shows, in mm of the image, and the axis along which its slices lie."""

    low: np.ndarray  # (3,)
    high: np.ndarray  # (3,)
    axis: int
    short_axis: bool

    def moved(self, step: np.ndarray) -> "View":
        return View(self.low + step, self.high + step, self.axis, self.short_axis)

    def centre_of(self, pose: Pose, anatomy: Anatomy) -> np.ndarray:
        """The centroid (3,) of what the view shows of the structures, around which the coarse pass puts the grid."""
        low, high = pose.boxes(anatomy)
        first = np.maximum(low, self.low)
        last = np.minimum(high, self.high)
        volumes = np.maximum(last - first, 0).prod(1)
        if not volumes.sum():
            return (low.min(0) + high.max(0)) / 2
        return np.average((first + last) / 2, 0, volumes)


def _pose(draws: Draws, anatomy: Anatomy) -> Pose:
    """The volume's axes as they are, or some of them flipped, or those of a stack of short-axis slices; then turned.

    Stacks are often stored without their direction, so that either end may be the apex and handedness means nothing.
    Where they have it, the reader turns their axes to the patient's nearest ones.
    """
    matrix = np.eye(3)
    signs = np.where(draws.three(-1, 1) < 0, -1.0, 1.0)
    in_plane = draws.between(-math.pi / 4, math.pi / 4)
    known = bool(np.isfinite(anatomy.lv_mm).all())
    slices = None
    if draws.has("orientation", SHORT_AXIS) and known:
        has_direction = draws.has("orientation", 0.4)
        if draws.has("orientation", TURNED_STACKS):
            in_plane += math.pi / 2 * draws.choice(4)
        else:
            signs[0] = 1
        matrix = anatomy.axes * signs @ rotation(2, in_plane).double().numpy()
        slices = 2
        if has_direction:
            matrix, slices = _nearest_to_patient(matrix)
    elif draws.has("orientation", MIRRORED):
        matrix = np.diag(signs)
    limit = FAR_TURN_DEG if draws.has("orientation", 0.3) else TURN_DEG
    for axis, angle in enumerate(draws.three(-math.radians(limit), math.radians(limit))):
        matrix = matrix @ rotation(axis, angle).double().numpy()
    shear = SHEAR * np.stack([draws.three(-1, 1) for _ in range(3)])
    scale = 1 + draws.between(-SCALE, SCALE)
    return Pose(matrix @ (np.eye(3) + shear) * scale, slices)


def _nearest_to_patient(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """The axes of a stack, columns (3, 3), as `canonical` turns them to the case's; where its last is then."""
    places, signs = nearest_axes(matrix)
    turned = np.empty((3, 3))
    turned[:, places] = matrix * signs
    return turned, int(places[2])


def _view(draws: Draws, pose: Pose, anatomy: Anatomy) -> View:
    """Everything, a box around the heart or one structure that may cut it, or slices over some of its length."""
    low, high = pose.boxes(anatomy)
    heart_low = low.min(0)
    heart_high = high.max(0)
    axis = (2, 2, 0, 1)[draws.choice(4)] if pose.slices is None else pose.slices
    chosen = draws.choice(len(low))
    left_atrium = np.flatnonzero(anatomy.left_atrium[anatomy.known])
    if draws.has("view", LEFT_ATRIUM_VIEW) and left_atrium.size:
        chosen = int(left_atrium[0])
    kind = draws.choice(3)
    before, after = draws.three(0, 1), draws.three(0, 1)
    ends = draws.has("view", 0.85 if pose.short_axis else 0.6)
    if not ends:
        return View(np.full(3, -np.inf), np.full(3, np.inf), axis, pose.short_axis)
    if pose.short_axis:
        # Along the ventricle, from about its valves to beyond its apex or less.
        middle = pose.places(anatomy.lv_mm[:3])[axis]
        half = anatomy.lv_mm[3] / np.linalg.norm(pose.matrix[:, axis])
        first, last = heart_low - 20 - 130 * before, heart_high + 20 + 130 * after
        first[axis] = middle - half * (0.8 + 0.6 * before[axis])
        last[axis] = middle + half * (0.8 + 0.6 * after[axis])
    elif kind == 0:
        first, last = heart_low + 15 - 60 * before, heart_high - 15 + 60 * after
    elif kind == 1:
        first, last = low[chosen] - 30 * before, high[chosen] + 30 * after
    else:
        first, last = heart_low - 80 * before, heart_high + 80 * after
        first[axis] = low[chosen][axis] - 20 * before[axis]
        last[axis] = high[chosen][axis] + 20 * after[axis]
    return View(first, last, axis, pose.short_axis)


def _warp(
    draws: Draws, parts: torch.Tensor, pose: Pose, shift_mm: np.ndarray, shape: Sequence[int], spacing: np.ndarray
) -> torch.Tensor:
    """Where each voxel of `shape` is read in the case, with a random smooth field: (3, X, Y, Z) for grid_sample."""
    half_mm = ((np.array(shape) - 1) * spacing).max() / 2
    matrix = torch.from_numpy(pose.matrix).float()
    shift = torch.from_numpy(shift_mm / half_mm).float()
    field = random_field(draws.generator)
    control = control_points(parts.shape[1:], shape, spacing, matrix, shift, field)
    return between_control_points(control.to(parts.device), shape)


# Contrast


def contrasts(draws: Draws, bright_blood: float = BRIGHT_BLOOD) -> torch.Tensor:
    """A brightness of each tissue, about 0 to 1, its grain and how much it mixes: (3, K).

    Tissues of one kind are nearly alike, kinds are free, but for what is often so: both hearts' blood alike, muscles
    alike, air dark, blood brighter than muscle, in a share of `bright_blood`. Blood mixes most. Left out, the contrast
    is that of a contrast-enhanced CT's arterial phase.
    """
    kinds = [LEFT_BLOOD, RIGHT_BLOOD, HEART_MUSCLE, OTHER_MUSCLE, AIR, *((tissue,) for tissue in ALONE)]
    level = [draws.between(0, 1) for _ in kinds]
    left, right, heart, other, air, lung, lung_vessel, _, bone = range(9)
    if draws.has("contrast", bright_blood):
        level[left] = 0.5 + 0.5 * level[left]
        level[heart] = (1 - draws.between(0.3, 0.9)) * level[left]
    _tie(draws, level, right, left, 0.55, 0.04)
    _tie(draws, level, other, heart, 0.6, 0.08)
    _tie(draws, level, lung_vessel, right, 0.8, 0.05)
    if draws.has("contrast", 0.9):
        level[air] = draws.between(0, 0.08)
        _tie(draws, level, bone, air, 0.5, 0.1)
    if draws.has("contrast", 0.9):
        level[lung] = level[air] + draws.between(0, 0.2)
    for _ in range(2):  # neighbours that cannot be told apart
        _tie(draws, level, draws.choice(len(kinds)), draws.choice(len(kinds)), 0.2, 0.02)
    if "contrast" in draws.without:
        level = [0.95, 0.6, 0.5, 0.47, 0.0, 0.1, 0.6, 0.4, 1.0, 0.7, 0.42, 0.5, 0.5, 0.4]
    table = torch.zeros(3, len(Tissue))
    for kind, brightness in zip(kinds, level, strict=True):
        spread = 0.15 if draws.has("contrast", 0.15) else 0.03
        offsets = torch.randn(len(kind), generator=draws.generator) * spread
        table[0, list(kind)] = brightness + offsets * ("contrast" not in draws.without)
    if draws.has("texture"):
        table[1] = draws.between(0, 0.06) * torch.rand(len(Tissue), generator=draws.generator)
    if draws.has("mixing"):
        chance = torch.full((len(Tissue),), 0.3)
        chance[list(LEFT_BLOOD + RIGHT_BLOOD)] = 0.7
        some = torch.rand(len(Tissue), generator=draws.generator) < chance
        table[2] = 0.12 * torch.randn(len(Tissue), generator=draws.generator) * some
    return table


def _tie(draws: Draws, level: list[float], one: int, other: int, chance: float, spread: float) -> None:
    """Let one kind's level be about another's in so many draws of 1, in place."""
    if draws.has("contrast", chance):
        level[one] = level[other] + draws.between(-2, 2) * spread


def _paint(parts: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Brightness, grain and mixing of each voxel of parts (2 * PARTS, X, Y, Z): (3, X, Y, Z) float32.

    Brightness is the mean over a voxel's tissues by their shares, the others are its main tissue's.
    """
    tissue = parts[:PARTS].flatten(1).int()
    share = parts[PARTS:].flatten(1)
    painted = torch.empty(3, tissue.shape[1], device=parts.device)
    for row in range(3):
        torch.index_select(table[row], 0, tissue[0], out=painted[row])
    painted[0].mul_(share[0]).div_(WHOLE)
    for rank in range(1, PARTS):
        painted[0].addcmul_(table[0].index_select(0, tissue[rank]), share[rank].float(), value=1 / WHOLE)
    return painted.view(3, *parts.shape[1:])


def _add_scars(draws: Draws, bright: torch.Tensor, tissue: torch.Tensor, of_device: torch.Generator) -> None:
    """Late-enhanced patches of 10 mm and more in the myocardium and the walls of a brightness (X, Y, Z), in place.

    At times most of it is, as the wall of an atrium may be after an ablation.
    """
    field = _smooth_fields(1, 12, bright.shape, of_device)[0]
    muscle = (tissue == Tissue.MYOCARDIUM) | (tissue == Tissue.WALL)
    threshold = draws.between(-0.5, 1.2)
    bright.copy_(torch.where(muscle & (field > threshold), draws.between(0, 1.2), bright))


def _add_trabeculae(
    draws: Draws, bright: torch.Tensor, tissue: torch.Tensor, muscle: float, of_device: torch.Generator
) -> None:
    """Trabeculae and papillary muscles, of about 10 mm, in the ventricles' blood of a brightness (X, Y, Z), in place.

    They are as bright as `muscle`, or less distinct, and often form a layer on the wall: experts' labels, and the
    phantoms', count them to the blood.
    """
    field = _smooth_fields(1, 24, bright.shape, of_device)[0]
    blood = (tissue == Tissue.LV) | (tissue == Tissue.RV)
    myocardium = (tissue == Tissue.MYOCARDIUM).float()
    coarse = F.avg_pool3d(myocardium[None, None], LAYER_VOXELS, ceil_mode=True)
    near_wall = F.interpolate(coarse, size=list(tissue.shape), mode="trilinear")[0, 0]
    field.add_(near_wall, alpha=draws.between(0, 5))
    threshold = draws.between(0.6, 1.4)
    toward_muscle = torch.lerp(bright, torch.full_like(bright, muscle), draws.between(0.3, 1))
    bright.copy_(torch.where(blood & (field > threshold), toward_muscle, bright))


def _smooth_fields(count: int, nodes: int, shape: Sequence[int], of_device: torch.Generator) -> torch.Tensor:
    """Random fields that are smooth between so many nodes along each axis, normal at these: (count, X, Y, Z)."""
    control = torch.randn(count, nodes, nodes, nodes, generator=of_device, device=of_device.device)
    return between_control_points(control, shape)


def _textured(
    draws: Draws, mean: torch.Tensor, grain: torch.Tensor, mixing: torch.Tensor, of_device: torch.Generator
) -> torch.Tensor:
    """Brightness (X, Y, Z) with its grain, with slow changes where a tissue mixes, and under a bias field."""
    bias = draws.between(0, 0.4) if draws.has("bias", 0.7) else 0.0
    slow, shade = _smooth_fields(2, 3 + draws.choice(4), mean.shape, of_device)
    fine = _smooth_fields(1, 20 + draws.choice(30), mean.shape, of_device)[0]
    image = mean.addcmul(grain, fine).addcmul_(mixing, slow)
    return image.mul_(shade.mul_(bias).exp_()) if bias else image


# The scan


@dataclass(frozen=True)
class Line:
    """How an image is sampled along an axis of N voxels."""

    inside: slice  # the voxels in view
    down: torch.Tensor | None  # (M, N): the slices' weights of voxels; None where slices are voxels
    up: torch.Tensor | None  # (N, M): linear interpolation back
    is_thick: bool  # whether slices may move against each other


def _scan(draws: Draws, view: View, shape: Sequence[int], spacing: np.ndarray) -> list[Line]:
    """How a scanner samples each axis: in plane 0.6 to 3 mm, seldom to 5 mm, and in one axis slices of 10 at most."""
    in_plane = math.exp(draws.between(math.log(0.6), math.log(3)))
    if draws.has("resolution", 0.15):
        in_plane = draws.between(2, 5)
    thickness = in_plane
    gap = draws.between(1, 1.3) if draws.has("resolution", 0.5) else 1.0
    if draws.has("resolution", 0.9 if view.short_axis else 0.5):
        thickness = draws.between(4 if view.short_axis else 2, 10)
    if "resolution" in draws.without:
        in_plane = thickness = 1.0
    lines = []
    for axis, (count, step_mm) in enumerate(zip(shape, spacing, strict=True)):
        is_thick = axis == view.axis and thickness > in_plane
        of_axis = thickness if is_thick else in_plane
        apart = of_axis * (gap if is_thick else 1)
        lines.append(_line(count, step_mm, of_axis, apart, view.low[axis], view.high[axis], draws, is_thick))
    return lines


def _line(
    count: int,
    step_mm: float,
    thickness: float,
    apart: float,
    low: float,
    high: float,
    draws: Draws,
    is_thick: bool,
) -> Line:
    """Slices of a Gaussian profile of that full width, so far apart, from low to high, on `count` voxels."""
    places = (np.arange(count) - (count - 1) / 2) * step_mm
    start = draws.between(0, 1) * apart
    # Where the view does not end within the grid, slices go on beyond it.
    low = max(low, places[0] - step_mm / 2 - start)
    high = min(max(high, low + 2 * apart), places[-1] + step_mm / 2 + apart)
    slices = max(2, round((high - low) / apart))
    middles = low + apart * (np.arange(slices) + 0.5)
    edge = middles[-1] + apart / 2
    first = int(np.searchsorted(places, low - 1e-6))
    last = int(np.searchsorted(places, edge + 1e-6))
    first = min(first, count - LEAST_VOXELS)
    inside = slice(first, max(last, first + LEAST_VOXELS))
    if apart <= step_mm and thickness <= 1.2 * step_mm:
        return Line(inside, None, None, is_thick)
    # The voxels have a width of their own.
    sd = max(math.sqrt(max(thickness**2 - step_mm**2, 0)) / FULL_WIDTH, 0.35 * step_mm)
    nearest = middles.clip(places[0], places[-1])
    down = np.exp(-0.5 * ((places - nearest[:, None]) / sd) ** 2)
    down /= down.sum(1, keepdims=True)
    position = ((places - middles[0]) / apart).clip(0, slices - 1)
    up = np.maximum(1 - np.abs(position[:, None] - np.arange(slices)), 0)
    return Line(inside, torch.from_numpy(down).float(), torch.from_numpy(up).float(), is_thick)


def _acquired(
    draws: Draws, image: torch.Tensor, lines: Sequence[Line], step_mm: float, of_device: torch.Generator
) -> torch.Tensor:
    """An image (X, Y, Z) as a scanner samples it, with its faults, and as it is read from there."""
    for axis, line in enumerate(lines):
        image = _along(line.down, image, axis)
    thick = [axis for axis, line in enumerate(lines) if line.is_thick and line.down is not None]
    moves = draws.has("motion", 0.4)
    lacks = draws.has("missing", 0.1)
    if thick and moves:
        image = _slices_moved(draws, image, thick[0])
    image = _with_noise(draws, image, step_mm, of_device)
    if thick and lacks:
        _lose_slice(draws, image, thick[0])
    for axis, line in enumerate(lines):
        image = _along(line.up, image, axis)
    return image


def _along(matrix: torch.Tensor | None, image: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix (M, N) times an axis of an image; None leaves it as it is."""
    if matrix is None:
        return image
    turned = image.movedim(axis, 0)
    product = matrix.to(image.device) @ turned.flatten(1)
    return product.view(-1, *turned.shape[1:]).movedim(0, axis)


def _slices_moved(draws: Draws, image: torch.Tensor, axis: int) -> torch.Tensor:
    """Each slice across an axis shifted in its plane by some thousandths of its side, as by breaths between them, and
    of a brightness of its own."""
    gains = 1 + draws.between(0, 0.1) * torch.randn(image.shape[axis], 1, 1, 1, generator=draws.generator)
    slices = image.movedim(axis, 0)[:, None]  # (M, 1, A, B)
    shifts = 2 * draws.between(0, 0.02) * torch.randn(len(slices), 2, generator=draws.generator)
    moves = torch.eye(2, 3).repeat(len(slices), 1, 1)
    moves[:, :, 2] = shifts
    grid = F.affine_grid(moves.to(image.device), list(slices.shape), align_corners=True)
    moved = F.grid_sample(slices, grid, padding_mode="border", align_corners=True)
    return (moved * gains.to(image.device))[:, 0].movedim(0, axis)


def _with_noise(draws: Draws, image: torch.Tensor, step_mm: float, of_device: torch.Generator) -> torch.Tensor:
    """Gaussian noise, or Rician, as the magnitude of complex noise is, in an image of voxels of so many mm."""
    strength = draws.between(0, 1) ** 2 * NOISE
    is_rician = draws.has("noise", 0.4)
    if not draws.has("noise"):
        return image
    strength *= min(1.0, (NOISE_MM / step_mm) ** 1.5)  # a mean over more voxels of the scanner has less of it
    image = image + strength * torch.randn(image.shape, generator=of_device, device=image.device)
    if is_rician:
        image = torch.hypot(image, strength * torch.randn(image.shape, generator=of_device, device=image.device))
    return image


def _lose_slice(draws: Draws, image: torch.Tensor, axis: int) -> None:
    """One slice across an axis dark or its neighbour's copy, in place."""
    number = 1 + draws.choice(image.shape[axis] - 1)
    lost = image.select(axis, number)
    if draws.has("missing", 0.5):
        lost.zero_()
    else:
        lost.copy_(image.select(axis, number - 1))


def _normalised(draws: Draws, image: torch.Tensor, inside: tuple[slice, ...]) -> torch.Tensor:
    """An image (X, Y, Z) in [-1, 1] by the percentiles of its view, as images of patients are.

    These have more in view than the grid holds, or the scanner's window was narrower: the range is drawn around it. At
    times the image is inverted; last comes a random gamma.
    """
    if draws.has("levels", 0.05):
        image = 1 - image
    values = image[inside].flatten()
    values = values[:: max(1, len(values) // MEASURED)]
    low, high = (values.kthvalue(1 + int(share * (len(values) - 1))).values for share in PERCENTILES)
    width = high - low
    if draws.has("levels", 0.6):
        low = low - width * draws.between(-0.05, 0.3)
    if draws.has("levels", 0.75):
        high = high + width * draws.between(-0.2, 0.5)
    unit = ((image - low) / (high - low).clamp(min=1e-6)).clamp_(0, 1)
    if draws.has("gamma"):
        unit.pow_(math.exp(draws.between(-0.5, 0.5)))
    return unit.mul_(2).sub_(1)
