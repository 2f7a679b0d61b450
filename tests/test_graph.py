import pytest
import torch

from implicitmeshnet.graph import ChebyshevConv, GCNConv, GraphDecoderStage, NeighbourSum
from implicitmeshnet.mesh import edges, icosphere, neighbours, vertex_areas


@pytest.fixture(scope="module")
def sphere():
    return icosphere(1)


def dense_adjacency(faces, count):
    adjacency = torch.zeros(count, count)
    for a, b in edges(faces).tolist():
        adjacency[a, b] = adjacency[b, a] = 1
    return adjacency


@pytest.mark.parametrize("subdivisions", [0, 1, 2])
def test_the_icosphere_is_closed_round_and_faces_outward(subdivisions):
    vertices, faces = icosphere(subdivisions)
    assert len(vertices) == 10 * 4**subdivisions + 2
    assert len(faces) == 20 * 4**subdivisions
    assert len(vertices) - len(edges(faces)) + len(faces) == 2
    torch.testing.assert_close(vertices.norm(dim=1), torch.ones(len(vertices)))
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    assert (torch.linalg.cross(b - a, c - a) * a).sum(1).min() > 0


def test_neighbours_are_the_adjacency_matrix(sphere):
    vertices, faces = sphere
    around = neighbours(faces, len(vertices))
    dense = torch.zeros(len(vertices), len(vertices)).scatter_add(1, around.index, around.weight)
    torch.testing.assert_close(dense, dense_adjacency(faces, len(vertices)))


def test_vertex_areas_sum_to_the_surface_and_scale_by_the_square():
    vertices, faces = icosphere(4)
    areas = vertex_areas(2 * vertices, faces)
    assert areas.sum().item() == pytest.approx(4 * torch.pi * 4, rel=5e-3)


def test_chebyshev_convolution_is_its_equation(sphere):
    vertices, faces = sphere
    count = len(vertices)
    convolution = ChebyshevConv(2, 5, 4, neighbours(faces, count))
    torch.nn.init.normal_(convolution.bias)
    features = torch.randn(2, 3, count, 5, generator=torch.Generator().manual_seed(0))
    adjacency = dense_adjacency(faces, count)
    root = adjacency.sum(1).rsqrt()
    laplacian = -(root[:, None] * adjacency * root)
    own, around = convolution.weight.chunk(2, -1)  # (S, C, C')
    wanted = features @ own[:, None] + laplacian @ features @ around[:, None] + convolution.bias
    torch.testing.assert_close(convolution(features), wanted)


def test_gcn_convolution_is_its_equation(sphere):
    vertices, faces = sphere
    count = len(vertices)
    torch.manual_seed(0)
    convolution = GCNConv(2, 5, 4, neighbours(faces, count)).double()
    torch.nn.init.normal_(convolution.bias)
    features = torch.randn(2, 3, count, 5, dtype=torch.float64, requires_grad=True)
    looped = (dense_adjacency(faces, count) + torch.eye(count)).double()
    root = looped.sum(1).rsqrt()
    wanted = (root[:, None] * looped * root) @ features @ convolution.weight[:, None] + convolution.bias
    found = convolution(features)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)  # the buffers' numbers are of float32
    leaves = features, convolution.weight
    gradients = [torch.autograd.grad(result.square().sum(), leaves) for result in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_neighbour_sum_has_the_right_gradient(sphere):
    vertices, faces = sphere
    around = neighbours(faces, len(vertices))
    features = torch.randn(2, len(vertices), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: NeighbourSum.apply(x, around.index, around.weight), features)


def test_structures_do_not_mix_and_an_untrained_stage_stands_still(sphere):
    vertices, faces = sphere
    stage = GraphDecoderStage(2, 6, 8, 0.1, neighbours(faces, len(vertices)))
    features = torch.randn(2, 1, len(vertices), 6)
    hidden, displacement = stage(features)
    assert torch.equal(displacement, torch.zeros(2, 1, len(vertices), 3))
    features[1] += 1
    changed, _ = stage(features)
    assert torch.equal(changed[0], hidden[0])
    assert not torch.allclose(changed[1], hidden[1])
