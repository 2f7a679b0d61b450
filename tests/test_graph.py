import pytest
import torch

from implicitmeshnet.mesh import edges, icosphere, neighbours, vertex_areas
from implicitmeshnet.models.graph import ChebyshevConv, GCNConv, GraphDecoderStage, linear_map
from implicitmeshnet.ops import compiled, layer_norm_leaky_relu, neighbour_sum, reference


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


def graph_and_features(sphere, channels, dtype):
    vertices, faces = sphere
    around = neighbours(faces, len(vertices))
    generator = torch.Generator().manual_seed(channels)
    return around, torch.randn(2, 3, len(vertices), channels, dtype=dtype, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [2, 34, 96, 102, 130])
@pytest.mark.parametrize("own", [False, True])
def test_neighbour_sum_matches_its_reference(sphere, channels, dtype, own):
    around, features = graph_and_features(sphere, channels, dtype)
    weight = torch.rand(around.weight.shape, generator=torch.Generator().manual_seed(0))
    wanted = reference.neighbour_sum(features, around.index, weight, own)
    torch.testing.assert_close(neighbour_sum(features, around.index, weight, own), wanted)
    grad = features[..., : wanted.shape[-1]]  # not contiguous
    torch.testing.assert_close(
        torch.ops.implicitmeshnet.neighbour_sum_backward(grad, around.index, weight, own),
        reference.neighbour_sum_backward(grad, around.index, weight, own),
    )


@pytest.mark.parametrize("own", [False, True])
def test_neighbour_sum_has_the_right_gradient(sphere, own):
    around, features = graph_and_features(sphere, 4, torch.float64)
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: neighbour_sum(x, around.index, around.weight, own), features)
    torch.library.opcheck(torch.ops.implicitmeshnet.neighbour_sum.default, (features, around.index, around.weight, own))


def test_neighbour_sum_refuses_another_graph(sphere):
    around, features = graph_and_features(sphere, 3, torch.float32)
    with pytest.raises(ValueError, match=r"weight: wanted shape \(42, 6\), as index has, found \(42, 5\)"):
        neighbour_sum(features, around.index, around.weight[:, 1:])
    if compiled():
        with pytest.raises(IndexError, match="index: wanted vertices from 0 to 41, found 42"):
            neighbour_sum(features, around.index + 1, around.weight)
    with pytest.raises(ValueError, match=r"features: wanted shape \(\.\.\., 42, 2 C\), found \(2, 3, 42, 3\)"):
        neighbour_sum(features, around.index, around.weight, own=True)
    with pytest.raises(ValueError, match=r"features: wanted shape \(\.\.\., 42, C\), found \(2, 3, 41, 3\)"):
        neighbour_sum(features[:, :, 1:], around.index, around.weight)


@pytest.mark.parametrize("slope", [0.01, 1.0])
@pytest.mark.parametrize("channels", [1, 5, 96])
def test_layer_norm_leaky_relu_is_torchs(slope, channels):
    features = torch.randn(2, 7, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.leaky_relu(torch.nn.functional.layer_norm(features, (channels,)), slope)
    torch.testing.assert_close(layer_norm_leaky_relu(features, slope), wanted)
    torch.testing.assert_close(layer_norm_leaky_relu(features.float(), slope), wanted.float())
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer_norm_leaky_relu(x, slope), features)
    torch.library.opcheck(torch.ops.implicitmeshnet.layer_norm_leaky_relu.default, (features, slope))
    arguments = torch.randn_like(features), features.detach(), slope
    torch.testing.assert_close(
        torch.ops.implicitmeshnet.layer_norm_leaky_relu_backward(*arguments),
        reference.layer_norm_leaky_relu_backward(*arguments),
    )


def test_ops_have_the_same_bits_on_any_number_of_threads(sphere):
    around, features = graph_and_features(sphere, 34, torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            normed = layer_norm_leaky_relu(features)
            results.append(neighbour_sum(normed, around.index, around.weight, own=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


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


@pytest.mark.parametrize("channels", [3, 64, 127, 128, 200])
def test_linear_maps_of_any_width_are_products(channels):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 7, channels, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    wanted = torch.einsum("snvc,sck->snvk", features, weight)
    torch.testing.assert_close(linear_map(features, weight), wanted)
    found = linear_map(features, weight, bias)
    wanted = wanted + bias[:, None, None]
    torch.testing.assert_close(found, wanted)
    own, plain = (torch.autograd.grad(each.sin().sum(), [features, weight]) for each in (found, wanted))
    torch.testing.assert_close(own, plain)
