"""The DeepRepresentationNetwork: its shapes, its gradient, its pretraining, and the deep route of the training."""

import pytest
import torch

from implicitmeshnet.config import DrnNetworkConfig, ShapesConfig
from implicitmeshnet.drn import DeepRepresentationNetwork, drn_loss, sdf_quality
from implicitmeshnet.mesh import icosphere, vertex_areas, vertex_normals
from implicitmeshnet.ops import mesh2sdf
from implicitmeshnet.shapes import LIMIT, random_shapes
from implicitmeshnet.training import DeepRoute

SMALL = DrnNetworkConfig(shape=(16, 24, 16), channels=(32, 16, 16), graph_channels=8, graph_blocks=1, dropout=0.0,
                         template_subdivisions=2)


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
    config = ShapesConfig(ellipsoids=0, translation=0, rotation_rad=0, scale=0, shear=0, radial=0, grid=0, noise=0)
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


def test_every_stage_is_a_volume_of_its_grid_and_the_distance_of_any():
    drn, (shapes, _) = DeepRepresentationNetwork(SMALL), draw(2)
    assert [tuple(sdf.shape) for sdf in drn(shapes)] == [(2, 4, 6, 4), (2, 8, 12, 8), (2, 16, 24, 16)]
    assert all(sdf.dtype == torch.float32 for sdf in drn(shapes))
    assert drn.distance(shapes, (10, 11, 12)).shape == (2, 10, 11, 12)
    torch.testing.assert_close(drn.distance(shapes, SMALL.shape), drn(shapes)[-1])


def test_a_few_steps_learn_distances_and_their_gradient_reaches_the_vertices():
    torch.manual_seed(0)
    drn, (shapes, faces) = DeepRepresentationNetwork(SMALL), draw(4)
    optimizer = torch.optim.AdamW(drn.parameters(), 5e-3)
    losses = []
    for _ in range(100):
        loss, _, target = drn_loss(drn, shapes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    quality = sdf_quality(drn(shapes)[-1], target)
    assert quality["sign"] > 0.9
    torch.testing.assert_close(target, mesh2sdf(shapes, faces, list(SMALL.shape)))
    vertices = shapes[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(drn(vertices)[-1].mean(), vertices)
    outward = vertex_normals(shapes[:1], faces)
    assert (gradient * outward).sum() < 0  # a larger mesh has smaller distances


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
    losses = [route.step(shapes, 0).item() for _ in range(10)]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(value, before[name]) for name, value in route.drn.state_dict().items())
