"""Signed distances of points from a closed mesh: against the reference, a sphere, a box, and a fine search."""

import numpy as np
import pytest
import torch

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import distance_to_mesh, reference_distance
from tests.meshes import box, bumpy_sphere, tensors


def points_of(count: int, spread: float) -> torch.Tensor:
    return spread * torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_closest_points_match_a_fine_search():
    rng = np.random.default_rng(0)
    triangles = rng.normal(0, 1, (300, 3, 3))
    points = rng.normal(0, 2, (300, 3))
    closest, weights = reference_distance.closest_points(torch.from_numpy(points), torch.from_numpy(triangles))
    grid = np.array([(i, j, 60 - i - j) for i in range(61) for j in range(61 - i)]) / 60
    samples = np.einsum("lk,nkc->nlc", grid, triangles)
    best = np.linalg.norm(samples - points[:, None], axis=2).min(1)
    found = np.linalg.norm(closest.numpy() - points, axis=1)
    assert (found <= best + 1e-12).all()
    assert (found > best - 0.06).all()
    assert weights.min() >= 0
    assert weights.sum(1).numpy() == pytest.approx(1)


def test_a_sphere_tells_how_far_and_which_way_out():
    vertices, faces = icosphere(4)
    direction = torch.nn.functional.normalize(points_of(200, 1.0), dim=1)
    radius = torch.linspace(6, 14, 200, dtype=torch.float64)
    distance, outward = distance_to_mesh(radius[:, None] * direction, 10 * vertices.double(), faces)
    assert distance.numpy() == pytest.approx(radius.numpy() - 10, abs=0.03)
    assert (outward * direction).sum(1).min() > 0.98


def test_a_box_is_measured_from_its_faces_edges_and_corners():
    mesh = tensors(box((0, 0, 0), (2, 2, 2)))
    points = torch.tensor([[1, 1, 0.5], [1, 1, 3.0], [3, 3, 1.0], [3, 3, 3.0], [2, 1, 1.0]])
    distance, outward = distance_to_mesh(points, *mesh)
    half = 0.5**0.5
    third = 3**-0.5
    assert distance.tolist() == pytest.approx([-0.5, 1, 2**0.5, 3**0.5, 0])
    wanted = [[0, 0, -1], [0, 0, 1], [half, half, 0], [third, third, third], [1, 0, 0]]
    assert outward.numpy() == pytest.approx(np.array(wanted))


@pytest.mark.parametrize("subdivisions", [0, 1, 3])
def test_the_kernel_measures_what_the_reference_measures(subdivisions):
    vertices, faces = bumpy_sphere(subdivisions, torch.tensor(0.3))
    points = torch.cat([points_of(500, 0.5), vertices, vertices[faces].mean(1), vertices[faces[:, :2]].mean(1)])
    found = distance_to_mesh(points, vertices, faces)
    wanted = reference_distance.distance_to_mesh(points, vertices, faces)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-12)
    near = wanted[0].abs() < 1e-3  # elsewhere two faces may be equally close, on either side of the middle
    torch.testing.assert_close(found[1][near], wanted[1][near], rtol=0, atol=1e-6)


def test_no_points_have_no_distances_and_float32_is_taken():
    vertices, faces = icosphere(1)
    assert [tuple(each.shape) for each in distance_to_mesh(torch.zeros(0, 3), vertices, faces)] == [(0,), (0, 3)]
    assert distance_to_mesh(torch.zeros(1, 3), vertices, faces)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"points": torch.zeros(3)}, r"points: wanted shape \(N, 3\), found \(3,\)"),
        ({"points": torch.zeros(1, 3).long()}, "points: wanted float32 or float64, found torch.int64"),
        ({"vertices": torch.zeros(1, 3, 3)}, r"vertices: wanted shape \(N, 3\), found \(1, 3, 3\)"),
        ({"faces": torch.tensor([[0, 1, 3]])}, "faces: wanted vertex indices from 0 to 2, found 3"),
        ({"faces": torch.zeros(0, 3).long()}, "faces: wanted at least one face, found none"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, text):
    fitting = {"points": torch.zeros(1, 3), "vertices": torch.zeros(3, 3), "faces": torch.tensor([[0, 1, 2]])}
    with pytest.raises((TypeError, ValueError), match=text):
        distance_to_mesh(**fitting | change)
