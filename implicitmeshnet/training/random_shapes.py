"""Random deformations of a sphere, to pretrain the DeepRepresentationNetwork on: drawn in batches, all from one
generator.

The order of the draws is part of the result: another order gives other shapes for the same seed.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from implicitmeshnet.config import ShapesConfig
from implicitmeshnet.ops import sample_trilinear

LIMIT = 0.97
"""Shapes are shrunk and shifted into the cube of this half side."""


def random_shapes(sphere: torch.Tensor, count: int, config: ShapesConfig, generator: torch.Generator) -> torch.Tensor:
    """Deformed copies (count, V, 3) of the unit sphere's vertices (V, 3), in normalised coordinates.

    Each is a sphere about the centre, or a bent ellipsoid, a tube or a cup anywhere. Its radius is changed by a sum of
    sines around random control points (not of cups). Then come a displacement by a coarse random grid, an affine map
    and noise of each vertex.
    """
    kind = torch.rand(count, 1, 1, generator=generator)
    factor = _radial_factor(sphere, count, config, generator)  # (count, V, 1)
    points, special = _base_shapes(sphere, factor, kind, config, generator)
    grid = config.grid * torch.randn(count, 3, 4, 4, 4, generator=generator)
    points = points + sample_trilinear(grid, points.contiguous())
    points = points @ _matrices(special, config, generator).mT
    points = points + config.noise * torch.randn(points.shape, generator=generator)
    # Spheres stay about the centre, the other shapes may lie anywhere.
    reach = torch.where(special, 1.0, config.translation)
    shift = reach * _uniform((count, 1, 3), generator)
    return _into_the_cube(points + shift)


def _base_shapes(
    sphere: torch.Tensor, factor: torch.Tensor, kind: torch.Tensor, config: ShapesConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The shapes (count, V, 3) before the later steps, and which of them are no spheres, bool (count, 1, 1).

    `kind` (count, 1, 1) in [0, 1) chooses: the config's shares of ellipsoids, tubes and cups follow each other from 0,
    spheres take the rest. Every kind is drawn for all shapes, so that the draws do not depend on the choice.
    """
    count = len(kind)
    bumpy = factor * sphere
    shares = (config.ellipsoids, config.tubes, config.cups)
    bases = (
        _random_ellipsoids(bumpy, config, generator),
        _random_tubes(bumpy, config, generator),
        _random_cups(sphere, count, config, generator),
    )
    radius = _within(config.radius, count, generator)
    points = factor * radius[..., None] * sphere
    start = 0.0
    for share, base in zip(shares, bases, strict=True):
        chosen = (start <= kind) & (kind < start + share)
        points = torch.where(chosen, base, points)
        start += share
    return points, kind < start


def _random_ellipsoids(points: torch.Tensor, config: ShapesConfig, generator: torch.Generator) -> torch.Tensor:
    count = len(points)
    low, high = torch.log(torch.tensor(config.semi_axis)).tolist()  # small and large axes alike are likely
    axes = _uniform((count, 1, 3), generator, low, high).exp()
    bend = config.bend * _uniform((count, 1, 2), generator)
    return _bent_ellipsoids(points, axes, bend)


def _random_tubes(points: torch.Tensor, config: ShapesConfig, generator: torch.Generator) -> torch.Tensor:
    count = len(points)
    radius = _within(config.tube_radius, count, generator)
    length = _within(config.tube_length, count, generator)
    angle = config.tube_angle_rad * _uniform((count, 1), generator)
    return _tubes(points, radius, length, angle)


def _random_cups(sphere: torch.Tensor, count: int, config: ShapesConfig, generator: torch.Generator) -> torch.Tensor:
    radius = _within(config.cup_radius, count, generator)
    wall = _within(config.cup_wall, count, generator)
    rim = _within(config.cup_rim_rad, count, generator)
    return _cups(sphere, radius, wall, rim)


def _bent_ellipsoids(points: torch.Tensor, axes: torch.Tensor, bend: torch.Tensor) -> torch.Tensor:
    """Points (count, V, 3) about the unit sphere, semi-axes (count, 1, 3), bend (count, 1, 2): (count, V, 3).

    The farther a point lies from the centre along z, the farther it moves across, so that the axis becomes a parabola.
    """
    shortest = axes.amin(-1, keepdim=True)
    across = shortest * bend * points[..., 2:].square()  # (count, V, 2)
    still = torch.zeros_like(across[..., :1])
    return axes * points + torch.cat([across, still], -1)


def _tubes(points: torch.Tensor, radius: torch.Tensor, length: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Tubes of a radius whose centreline, an arc of a length, turns by an angle, all (count, 1): (count, V, 3)."""
    x, y, z = points.unbind(-1)
    # A straight tube along z: pushed outward the more, the nearer a point lies to the axis, which makes the ends blunt.
    widening = radius * (x.square() + y.square()).clamp(min=1e-8) ** -0.25
    x = widening * x
    y = widening * y
    z = length / 2 * z
    # Curved less than the radius would allow, so that the inner side does not fold; never quite straight, as 1 / 0.
    tightest = 1 / (1.3 * radius)
    curvature = (angle / length).clamp(-tightest, tightest)
    nearly_straight = torch.full_like(curvature, 1e-3)
    curvature = torch.where(curvature.abs() < 1e-3, nearly_straight, curvature)
    # Wound around the arc's centre, which lies at x = -1 / curvature.
    turned = curvature * z
    from_centre = 1 / curvature + x
    bent_x = from_centre * turned.cos() - 1 / curvature
    bent_z = from_centre * turned.sin()
    return torch.stack([bent_x, y, bent_z], -1)


def _cups(sphere: torch.Tensor, radius: torch.Tensor, wall: torch.Tensor, rim: torch.Tensor) -> torch.Tensor:
    """Bowls of an outer radius, a wall relative to it and a rim at a latitude, all (count, 1): (count, V, 3).

    Each meridian of the sphere, from its top on, is laid along a bowl's profile: from the bottom up the outer arc of
    radius 1, over the rim in a half circle as wide as the wall, and down the inner arc of radius 1 - wall. A part of
    the profile gets as much of the meridian as it is long.
    """
    opening = rim + math.pi / 2  # angle from the bottom to the rim
    outer_length = opening
    rim_length = math.pi * wall / 2
    inner_length = (1 - wall) * opening
    total = torch.cat([outer_length, rim_length, inner_length], 1).sum(1, keepdim=True)
    # How far along the profile each vertex lies, by its angle from the sphere's upper pole.
    polar_angle = sphere[:, 2].clamp(-1, 1).acos()  # (V,)
    along = polar_angle / math.pi * total  # (count, V)
    beyond_outer = along - opening
    up = (along / outer_length).clamp(max=1)  # 0 at the outer bottom, 1 at the rim
    over = (beyond_outer / rim_length).clamp(0, 1)  # 0 outside, 1 inside
    down = ((beyond_outer - rim_length) / inner_length).clamp(0, 1)  # 0 at the rim, 1 at the inner bottom
    risen = torch.where(along < opening, up, 1 - down)
    latitude = risen * opening - math.pi / 2
    # On the half circle over the rim, the distance from the centre goes from 1 to 1 - wall ...
    turn = math.pi * over
    distance = 1 - wall / 2 + wall / 2 * turn.cos()
    # ... and the point rises above the rim, perpendicular to the wall there.
    rise = wall / 2 * turn.sin()
    across = distance * latitude.cos() - rise * rim.sin()
    height = distance * latitude.sin() + rise * rim.cos()
    # The profile starts at the bottom where the sphere has its top: y is mirrored, or the faces would be inside out.
    meridian = F.normalize(sphere[:, :2], dim=-1)  # (V, 2)
    x = across * meridian[:, 0]
    y = -across * meridian[:, 1]
    return radius[..., None] * torch.stack([x, y, height], -1)


def _radial_factor(sphere: torch.Tensor, count: int, config: ShapesConfig, generator: torch.Generator) -> torch.Tensor:
    """1 + a sum of sines of the angle from each control point, random in amplitude, frequency and phase."""
    points = config.control_points
    directions = F.normalize(torch.randn(count, points, 3, generator=generator), dim=-1)
    # Divided so that the sum's standard deviation is config.radial, however many points there are.
    scale = config.radial / math.sqrt(points / 2)
    amplitude = scale * torch.randn(count, 1, points, generator=generator)
    frequency = 1 + 3 * torch.rand(count, 1, points, generator=generator)
    phase = 2 * math.pi * torch.rand(count, 1, points, generator=generator)
    angle = (sphere @ directions.mT).clamp(-1, 1).acos()  # (count, V, points)
    waves = amplitude * (frequency * angle + phase).sin()
    return (1 + waves.sum(-1, keepdim=True)).clamp(min=0.2)


def _matrices(special: torch.Tensor, config: ShapesConfig, generator: torch.Generator) -> torch.Tensor:
    """Rotation, scale and shear (count, 3, 3); shapes that are no spheres, bool (count, 1, 1), turn by any angle."""
    count = len(special)
    largest = torch.where(special[..., 0], math.pi, config.rotation_rad)
    vector = largest * _uniform((count, 3), generator)
    stretch = torch.eye(3) * (1 + config.scale * _uniform((count, 1, 3), generator))
    off_diagonal = 1 - torch.eye(3)
    shear = config.shear * _uniform((count, 3, 3), generator) * off_diagonal
    return torch.linalg.matrix_exp(_skew(vector)) @ (stretch + shear)


def _skew(vector: torch.Tensor) -> torch.Tensor:
    """The matrices (count, 3, 3) whose exponentials rotate about the vectors (count, 3), by their lengths in rad."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.stack(rows, -1).view(len(vector), 3, 3)


def _into_the_cube(points: torch.Tensor) -> torch.Tensor:
    """Shapes (count, V, 3) shrunk where they are larger than the cube of half side LIMIT, and moved into it."""
    low = points.amin(1, keepdim=True)
    high = points.amax(1, keepdim=True)
    middle = (low + high) / 2
    half = (high - low) / 2
    scale = (LIMIT / half.amax(-1, keepdim=True)).clamp(max=1)
    room = LIMIT - scale * half  # how far the middle may lie from the cube's
    return scale * (points - middle) + middle.clamp(-room, room)


def _uniform(size: tuple[int, ...], generator: torch.Generator, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def _within(limits: Sequence[float], count: int, generator: torch.Generator) -> torch.Tensor:
    """A number between two limits for each shape: (count, 1)."""
    return _uniform((count, 1), generator, limits[0], limits[1])
