"""Random deformations of a sphere, to pretrain the DeepRepresentationNetwork on: drawn in batches, all from one
generator."""

import math

import torch
import torch.nn.functional as F

from implicitmeshnet.config import ShapesConfig
from implicitmeshnet.ops import sample_trilinear

LIMIT = 0.97
"""Shapes are shrunk and shifted into the cube of this half side."""


def random_shapes(sphere: torch.Tensor, count: int, config: ShapesConfig, generator) -> torch.Tensor:
    """Deformed copies (count, V, 3) of the unit sphere's vertices (V, 3), in normalised coordinates.

    Each is a sphere about the centre, or a bent ellipsoid, a tube or a cup anywhere; then come a sinusoidal radial
    displacement by control points (not of cups), a coarse random displacement grid, an affine map and noise of each
    vertex.
    """

    def uniform(*size, low=-1.0, high=1.0):
        return low + (high - low) * torch.rand(size, generator=generator)

    def within(limits):
        return uniform(count, 1, low=limits[0], high=limits[1])

    kind = torch.rand(count, 1, 1, generator=generator)
    factor = _radial_factor(sphere, count, config, generator)  # (count, V, 1)
    axes = torch.log(torch.tensor(config.semi_axis)).tolist()
    axes = uniform(count, 1, 3, low=axes[0], high=axes[1]).exp()
    bases = [
        (config.ellipsoids, _bent_ellipsoids(factor * sphere, axes, config.bend * uniform(count, 1, 2))),
        (
            config.tubes,
            _tubes(
                factor * sphere,
                within(config.tube_radius),
                within(config.tube_length),
                config.tube_angle_rad * uniform(count, 1),
            ),
        ),
        (config.cups, _cups(sphere, within(config.cup_radius), within(config.cup_wall), within(config.cup_rim_rad))),
    ]
    points, share = factor * within(config.radius)[..., None] * sphere, 0.0
    for part, base in bases:
        points = torch.where((share <= kind) & (kind < share + part), base, points)
        share += part
    wide = kind < share
    grid = config.grid * torch.randn(count, 3, 4, 4, 4, generator=generator)
    points = points + sample_trilinear(grid, points.contiguous())
    points = points @ _matrices(wide, config, generator).mT
    points = points + config.noise * torch.randn(points.shape, generator=generator)
    shift = torch.where(wide, 1.0, config.translation) * uniform(count, 1, 3)
    return _into_the_cube(points + shift)


def _bent_ellipsoids(points, axes, bend):
    """Points (count, V, 3) about the unit sphere, semi-axes (count, 1, 3), bend (count, 1, 2): (count, V, 3)."""
    across = axes.amin(-1, keepdim=True) * bend * points[..., 2:].square()
    return axes * points + torch.cat([across, torch.zeros_like(across[..., :1])], -1)


def _tubes(points, radius, length, angle):
    """Tubes of a radius whose centreline, an arc of a length, turns by an angle, all (count, 1): (count, V, 3)."""
    x, y, z = points.unbind(-1)
    wide = radius * (x.square() + y.square()).clamp(min=1e-8) ** -0.25  # blunt ends
    x, y, z = wide * x, wide * y, length / 2 * z
    curvature = angle / length
    curvature = curvature.clamp(-1 / (1.3 * radius), 1 / (1.3 * radius))  # the inner side does not fold
    curvature = torch.where(curvature.abs() < 1e-3, torch.full_like(curvature, 1e-3), curvature)
    turned = curvature * z
    return torch.stack([(1 / curvature + x) * turned.cos() - 1 / curvature, y, (1 / curvature + x) * turned.sin()], -1)


def _cups(sphere, radius, wall, rim):
    """Bowls of an outer radius, a wall relative to it and a rim at a latitude, all (count, 1): (count, V, 3).

    The sphere's meridians run from the outer bottom over the rim to the inner bottom.
    """
    inner, opening = 1 - wall, rim + math.pi / 2
    lengths = torch.cat([opening, math.pi * wall / 2, inner * opening], 1)  # outside, rim, inside
    along = sphere[:, 2].clamp(-1, 1).acos() / math.pi * lengths.sum(1, keepdim=True)  # (count, V)
    outer, over = along / opening, (along - opening) / (lengths[:, 1:2])
    back = ((along - opening - lengths[:, 1:2]) / lengths[:, 2:]).clamp(0, 1)
    latitude = torch.where(along < opening, outer.clamp(max=1), 1 - back) * opening - math.pi / 2
    turn = math.pi * over.clamp(0, 1)
    distance = 1 - wall / 2 + wall / 2 * turn.cos()
    across, height = distance * latitude.cos(), distance * latitude.sin()
    across, height = across - wall / 2 * turn.sin() * rim.sin(), height + wall / 2 * turn.sin() * rim.cos()
    meridian = F.normalize(sphere[:, :2], dim=-1)
    return radius[..., None] * torch.stack([across * meridian[:, 0], -across * meridian[:, 1], height], -1)


def _radial_factor(sphere, count, config, generator):
    """1 + a sum of sines of the angle from each control point, random in amplitude, frequency and phase."""
    points = config.control_points
    directions = F.normalize(torch.randn(count, points, 3, generator=generator), dim=-1)
    amplitude = config.radial / math.sqrt(points / 2) * torch.randn(count, 1, points, generator=generator)
    frequency = 1 + 3 * torch.rand(count, 1, points, generator=generator)
    phase = 2 * math.pi * torch.rand(count, 1, points, generator=generator)
    angle = (sphere @ directions.mT).clamp(-1, 1).acos()  # (count, V, points)
    return (1 + (amplitude * (frequency * angle + phase).sin()).sum(-1, keepdim=True)).clamp(min=0.2)


def _matrices(wide, config, generator):
    """Rotation, scale and shear (count, 3, 3); the wide shapes turn by any angle."""
    count = len(wide)
    vector = torch.where(wide[..., 0], math.pi, config.rotation_rad) * (
        2 * torch.rand(count, 3, generator=generator) - 1
    )
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(count, 3, 3)
    stretch = torch.eye(3) * (1 + config.scale * (2 * torch.rand(count, 1, 3, generator=generator) - 1))
    shear = config.shear * (2 * torch.rand(count, 3, 3, generator=generator) - 1) * (1 - torch.eye(3))
    return torch.linalg.matrix_exp(skew) @ (stretch + shear)


def _into_the_cube(points):
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    scale = (LIMIT / half.amax(-1, keepdim=True)).clamp(max=1)
    room = LIMIT - scale * half
    return scale * (points - middle) + middle.clamp(-room, room)
