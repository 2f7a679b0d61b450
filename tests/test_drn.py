"""The DeepRepresentationNetwork: its shapes, its gradient, its pretraining, and the deep route of the training."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from implicitmeshnet.config import DrnNetworkConfig, ShapesConfig
from implicitmeshnet.mesh import icosphere, vertex_areas, vertex_normals
from implicitmeshnet.models.drn import (
    DeepRepresentationNetwork,
    _fold,
    drn_loss,
    sample_faces,
    sdf_quality,
    voxel_length,
)
from implicitmeshnet.ops import mesh2sdf
from implicitmeshnet.surfaces.soundness import self_intersecting_faces
from implicitmeshnet.training.deep_route import DeepRoute
from implicitmeshnet.training.random_shapes import LIMIT, random_shapes

SMALL = DrnNetworkConfig(
    shape=(16, 24, 16),
    channels=(32, 16, 16),
    blocks=(2, 1, 1),
    graph_channels=8,
    graph_blocks=1,
    dropout=0.0,
    template_subdivisions=2,
)
NO_BASES = {"ellipsoids": 0, "tubes": 0, "cups": 0}
STILL = {"translation": 0, "rotation_rad": 0, "scale": 0, "shear": 0, "radial": 0, "grid": 0, "noise": 0}
HALF = replace(SMALL, channels=(16, 16), blocks=(1, 1), subvoxels=2)


def draw(count, seed=0, config=None, subdivisions=2):
    sphere, faces = icosphere(subdivisions)
    generator = torch.Generator().manual_seed(seed)
    return random_shapes(sphere, count, config or ShapesConfig(), generator), faces


def test_random_shapes_are_seeded_varied_and_in_the_cube():
    shapes, faces = draw(64)
    assert torch.equal(shapes, draw(64)[0])
    assert not torch.equal(shapes, draw(64, seed=1)[0])
    assert shapes.dtype == torch.float32
    assert torch.isfinite(shapes).all()
    assert shapes.abs().max() <= LIMIT + 1e-6
    volumes = (vertex_normals(shapes, faces) * shapes).sum((1, 2)) / 3
    assert volumes.min() > 0  # faces look outward
    assert volumes.max() / volumes.min() > 20


def test_spheres_alone_stay_about_the_centre():
    config = ShapesConfig(**NO_BASES | STILL)
    shapes, _ = draw(20, config=config)
    radii = shapes.norm(dim=-1)
    torch.testing.assert_close(radii, radii.mean(1, keepdim=True).expand_as(radii))
    assert radii.min() >= 0.2
    assert radii.max() <= 0.8


def test_vertex_normals_point_outward_with_the_vertices_areas():
    vertices, faces = icosphere(3)
    normals = vertex_normals(2 * vertices, faces)
    lengths = normals.norm(dim=-1)
    torch.testing.assert_close(normals / lengths[:, None], vertices, atol=2e-2, rtol=0)
    torch.testing.assert_close(lengths, vertex_areas(2 * vertices, faces), rtol=2e-2, atol=0)


@pytest.mark.parametrize("kind", ["tubes", "cups"])
def test_tubes_and_cups_are_closed_around_their_volume(kind):
    config = ShapesConfig(**NO_BASES | STILL | {kind: 1.0})
    shapes, faces = draw(8, config=config, subdivisions=4)
    assert not any(self_intersecting_faces(shape.numpy(), faces.numpy()).any() for shape in shapes)
    sdf = mesh2sdf(shapes, faces, 64)
    inside = (sdf < 0).sum((1, 2, 3)) * (2 / 63) ** 3
    volumes = (vertex_normals(shapes, faces) * shapes).sum((1, 2)) / 3
    torch.testing.assert_close(inside, volumes, rtol=0.05, atol=0.002)
    extent = (shapes.amax(1) - shapes.amin(1)).prod(-1)
    assert (volumes / extent).max() < 0.52  # no ball: that has pi / 6
    assert -sdf.amin((1, 2, 3)).min() < 0.25  # half of the wall or of the tube's width


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (SMALL, [(2, 4, 6, 4), (2, 8, 12, 8), (2, 16, 24, 16)]),
        (HALF, [(2, 4, 6, 4), (2, 16, 24, 16)]),
    ],
)
def test_every_stage_is_a_volume_of_its_grid_and_the_distance_of_any(config, shapes):
    drn, (vertices, _) = DeepRepresentationNetwork(config), draw(2)
    assert [tuple(sdf.shape) for sdf in drn(vertices)] == shapes
    assert all(sdf.dtype == torch.float32 for sdf in drn(vertices))
    assert drn.distance(vertices, (10, 11, 12)).shape == (2, 10, 11, 12)
    torch.testing.assert_close(drn.distance(vertices, config.shape), drn(vertices)[-1])


@pytest.mark.parametrize("config", [SMALL, HALF])
def test_the_plane_in_a_cell_is_the_distance_of_a_flat_surface(config):
    drn, (vertices, faces) = DeepRepresentationNetwork(config), icosphere(5)
    sphere = 0.7 * vertices[None]
    drn.faces = faces
    for cell, values in zip(drn.cells, drn.values, strict=True):
        features = torch.ones(1, 3 * len(faces), 1)
        contents = drn._splat(cell, values, sample_faces(sphere, faces), features)
        area = contents.features.sum().item() * (cell * voxel_length(config.shape)) ** 2
        assert area == pytest.approx(4 * math.pi * 0.49, rel=0.01)
        exact = mesh2sdf(sphere, faces, list(config.shape))
        exact = _fold(F.avg_pool3d(exact[:, None], cell // values)[:, 0] if cell > values else exact, values)
        full = contents.plane[..., 4] > 0.9  # where the surface runs through the cell
        assert full.sum() > 20
        error = (contents.distances - exact)[full].abs().max() / (cell * voxel_length(config.shape))
        assert error < 0.25


@torch.no_grad()
def test_a_mesh_turned_inside_out_has_the_same_distances():
    torch.manual_seed(0)
    drn, (vertices, faces) = DeepRepresentationNetwork(HALF), draw(2)
    for head in drn.heads:
        torch.nn.init.normal_(head.weight, std=0.1)
    before = drn(vertices)
    drn.faces = faces.flip(1)
    for sdf, other in zip(before, drn(vertices), strict=True):
        torch.testing.assert_close(sdf, other, atol=1e-2, rtol=0)  # bfloat16, sums in another order
    torch.testing.assert_close(mesh2sdf(vertices, faces, 16), mesh2sdf(vertices, faces.flip(1), 16))


def test_faces_are_sampled_with_their_areas_and_integrate_quadratics_exactly():
    vertices, faces = icosphere(1)
    points = sample_faces(vertices[None].double(), faces)
    corners = vertices.double()[faces]  # (F, 3, 3)
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2
    torch.testing.assert_close(points.areas.sum(), area.sum())
    pairs = sum(corners[:, i] * corners[:, j] * (2 if i == j else 1) for i in range(3) for j in range(3)) / 12
    torch.testing.assert_close((points.areas * points.points.square()).sum(1)[0], (area[:, None] * pairs).sum(0))
    assert (points.normals * points.points).sum(-1).min() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, HALF])
def test_a_few_steps_learn_distances_and_their_gradient_reaches_the_vertices(config):
    torch.manual_seed(0)
    drn, (shapes, faces) = DeepRepresentationNetwork(config), draw(4)
    optimizer = torch.optim.AdamW(drn.parameters(), 5e-3)
    losses = []
    for _ in range(100):
        loss, target = drn_loss(drn, drn(shapes), shapes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    quality = sdf_quality(drn(shapes)[-1].detach(), target)
    assert quality["sign"] > 0.98
    torch.testing.assert_close(target, mesh2sdf(shapes, faces, list(SMALL.shape)))
    vertices = shapes[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(drn(vertices)[-1].mean(), vertices)
    outward = vertex_normals(shapes[:1], faces)
    assert (gradient * outward).sum() < 0  # a larger mesh has smaller distances


def test_the_loss_weighs_errors_as_the_paper_does_and_more_about_the_surface(monkeypatch):
    """An error of 0.1 everywhere costs 0.01 times the mean weight, which is written out here once more."""
    shapes, faces = draw(2)
    truth = mesh2sdf(shapes, faces, list(SMALL.shape))
    network = DeepRepresentationNetwork(SMALL)
    monkeypatch.setattr(DeepRepresentationNetwork, "forward", lambda self, vertices: [truth + 0.1])
    loss, _ = drn_loss(network, network(shapes), shapes)
    diagonal = 12**0.5
    paper = ((diagonal - truth.abs()) / diagonal) ** 2
    bell = 30 * torch.exp(-((truth / (2 * voxel_length(SMALL.shape))) ** 2))
    assert loss.item() == pytest.approx(0.01 * (paper + bell).mean().item(), rel=1e-4)


def test_quality_knows_what_it_measures():
    shapes, faces = draw(3)
    target = mesh2sdf(shapes, faces, 20)
    assert sdf_quality(target, target) == {"error_voxels": 0.0, "sign": 1.0, "dice": 1.0}
    off = sdf_quality(target + 0.25 * 2 / 19, target)
    assert off["error_voxels"] == pytest.approx(0.25, rel=1e-4)
    assert 0.5 < off["dice"] < 1
    assert sdf_quality(-target, target)["sign"] < 0.01


def test_the_deep_route_alternates():
    torch.manual_seed(0)
    route, (shapes, _) = DeepRoute(DeepRepresentationNetwork(SMALL), 1e-3, 0.0), draw(2)
    before = {name: value.clone() for name, value in route.drn.state_dict().items()}
    vertices = shapes.clone().requires_grad_()
    route.distance(vertices, SMALL.shape).square().mean().backward()
    assert vertices.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in route.drn.parameters())
    assert all(torch.equal(value, before[name]) for name, value in route.drn.state_dict().items())
    losses = [route.step(shapes)[0].item() for _ in range(10)]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(value, before[name]) for name, value in route.drn.state_dict().items())
