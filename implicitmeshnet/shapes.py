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

    Each is a sphere about the centre, or a bent ellipsoid anywhere; then come a sinusoidal radial displacement by
    control points, a coarse random displacement grid, an affine map and noise of each vertex.
    """
    def uniform(*size, low=-1.0, high=1.0):
        return low + (high - low) * torch.rand(size, generator=generator)

    wide = torch.rand(count, 1, 1, generator=generator) < config.ellipsoids
    radius = uniform(count, 1, 1, low=config.radius[0], high=config.radius[1]).expand(-1, -1, 3)
    logarithms = [math.log(axis) for axis in config.semi_axis]
    axes = uniform(count, 1, 3, low=logarithms[0], high=logarithms[1]).exp()
    points = sphere * _radial_factor(sphere, count, config, generator)  # (count, V, 3)
    bent = torch.cat([config.bend * uniform(count, 1, 2) * sphere[:, 2:].square(), torch.zeros(count, len(sphere), 1)],
                     -1)
    points = torch.where(wide, axes * points + axes.amin(-1, keepdim=True) * bent, radius * points)
    grid = config.grid * torch.randn(count, 3, 4, 4, 4, generator=generator)
    points = points + sample_trilinear(grid, points.contiguous())
    points = points @ _matrices(wide, config, generator).mT
    points = points + config.noise * torch.randn(points.shape, generator=generator)
    shift = torch.where(wide, 1.0, config.translation) * uniform(count, 1, 3)
    return _into_the_cube(points + shift)


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
        2 * torch.rand(count, 3, generator=generator) - 1)
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
