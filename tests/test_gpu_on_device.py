"""The GPU kernels on a device, where one is present; tests/test_gpu.py runs the same kernels on the host."""

import pytest
import torch
from meshes import bumpy_sphere

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import (
    _kernels,
    instance_norm_leaky_relu,
    mesh2sdf,
    neighbour_sum,
    reference,
    sample_trilinear,
    splat_trilinear,
    voxelize,
)

PRESENT = [
    name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if there
]
CASES = [
    (name, dtype)
    for name in PRESENT
    for dtype in ((torch.float32, torch.float64) if name == "cuda" else (torch.float32,))
]
needs_device = pytest.mark.skipif(not PRESENT, reason="neither a CUDA nor an MPS device is present")
needs_cuda = pytest.mark.skipif("cuda" not in PRESENT, reason="no CUDA device is present")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices are present")


def bumpy(subdivisions, dtype, batch=2):
    return bumpy_sphere(subdivisions, torch.arange(batch)[:, None, None], dtype)


def seeded():
    return torch.Generator().manual_seed(0)


def distances(vertices, faces, grad):
    """The distance and its gradient, on the CPU."""
    leaf = vertices.clone().requires_grad_()
    sdf = mesh2sdf(leaf, faces, grad.shape[1:])
    (gradient,) = torch.autograd.grad(sdf, leaf, grad)
    return sdf.detach().cpu(), gradient.cpu()


def assert_close_gradients(found, expected):
    """But where another of two equally close faces decides."""
    close = (found - expected).abs() <= 1e-3
    assert close.float().mean() > 0.95


@needs_cuda
def test_the_compiled_kernels_run():
    """Without them all other tests pass by the references."""
    assert _kernels.cuda_kernels is not None
    assert _kernels.cuda_kernels.usable(torch.device("cuda", 0))


@needs_device
@pytest.mark.parametrize(("device", "dtype"), CASES)
def test_distances_and_gradients_are_the_cpus(device, dtype):
    vertices, faces = bumpy(4, dtype)
    grad = torch.randn(2, 33, 20, 18, generator=seeded()).to(dtype)
    expected = distances(vertices, faces, grad)
    found = distances(vertices.to(device), faces.to(device), grad.to(device))
    torch.testing.assert_close(found[0], expected[0], atol=6 * torch.finfo(dtype).eps, rtol=0)
    assert_close_gradients(found[1], expected[1])


@needs_device
@pytest.mark.parametrize(("device", "dtype"), CASES)
def test_crowded_tiles_and_lists_that_overflow_are_the_references(device, dtype):
    """More faces are as close to the middle as a tile's, a box's and a block's lists hold."""
    vertices, faces = icosphere(5)
    vertices = 0.9 * vertices.to(dtype)[None]
    expected, _ = reference.mesh2sdf(vertices, faces, (3, 5, 4))
    found = mesh2sdf(vertices.to(device), faces.to(device), (3, 5, 4)).cpu()
    torch.testing.assert_close(found, expected, atol=16 * torch.finfo(dtype).eps, rtol=0)


@needs_cuda
def test_distances_have_the_same_bits_each_time():
    """Whichever order the lists are in, and whether a tile beside the medial axis is crowded in that order or not."""
    vertices, faces = icosphere(4)
    given = (0.9 * vertices[None].cuda(), faces.cuda(), 48)
    first = mesh2sdf(*given)
    assert all(torch.equal(mesh2sdf(*given), first) for _ in range(5))


@needs_device
@pytest.mark.parametrize("device", PRESENT)
def test_what_is_not_contiguous_is_read_in_its_order(device):
    vertices, faces = bumpy(3, torch.float32)
    spread = vertices.to(device).repeat_interleave(2, 1)[:, ::2]
    turned = faces.to(device).T.contiguous().T
    grad = torch.randn(18, 2, 20, 33, generator=seeded())
    expected = distances(vertices, faces, grad.permute(1, 3, 2, 0).contiguous())
    found = distances(spread, turned, grad.to(device).permute(1, 3, 2, 0))
    torch.testing.assert_close(found[0], expected[0], atol=6e-7, rtol=0)
    assert_close_gradients(found[1], expected[1])


@needs_device
@pytest.mark.parametrize("device", PRESENT)
def test_a_batch_of_nothing_gives_nothing(device):
    vertices, faces = bumpy(1, torch.float32)
    leaf = vertices[:0].to(device).requires_grad_()
    sdf = mesh2sdf(leaf, faces.to(device), 5)
    assert sdf.shape == (0, 5, 5, 5)
    sdf.sum().backward()
    assert splat_trilinear(leaf, leaf, 4).shape == (0, 3, 4, 4, 4)


@needs_device
@pytest.mark.parametrize(("device", "dtype"), CASES)
def test_what_is_not_valid_gives_nan_for_its_item_only(device, dtype):
    vertices, faces = bumpy(1, dtype, batch=4)
    vertices[1, 4, 2], vertices[2, 0, 0] = torch.nan, torch.inf
    sdf = mesh2sdf(vertices.to(device), faces.to(device), (5, 6, 18)).cpu()
    assert sdf[[0, 3]].isfinite().all()
    assert sdf[1:3].isnan().all()
    wrong = torch.cat([faces, torch.tensor([[0, 1, vertices.shape[1]]])])
    assert mesh2sdf(vertices.to(device), wrong.to(device), (5, 6, 18)).isnan().all()
    assert not voxelize(vertices[0].to(device), wrong.to(device), (5, 6, 18)).any()


@needs_device
@pytest.mark.parametrize(("device", "dtype"), CASES)
def test_inside_is_the_cpus(device, dtype):
    vertices, faces = bumpy(3, dtype)
    voxels = 20 * vertices[0] + 20
    for shape in ((40, 41, 70), (13, 50, 7)):
        assert torch.equal(voxelize(voxels.to(device), faces.to(device), shape).cpu(), voxelize(voxels, faces, shape))


@needs_device
@pytest.mark.parametrize(("device", "dtype"), CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_splat_gather_and_their_gradients_are_the_cpus(device, dtype, channels_last):
    positions = 0.7 * torch.randn(2, 50, 3, generator=seeded(), dtype=dtype)
    features = torch.randn(2, 50, 37, generator=seeded(), dtype=dtype)
    results = []
    for where in ("cpu", device):
        leaves = [positions.to(where).requires_grad_(), features.to(where).requires_grad_()]
        volume = splat_trilinear(*leaves, (5, 6, 7), channels_last)
        again = sample_trilinear(volume, leaves[0])
        results.append([each.cpu() for each in (volume, again, *torch.autograd.grad(again.square().sum(), leaves))])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3 if dtype == torch.float32 else 1e-10, rtol=1e-4)


@needs_device
@pytest.mark.parametrize("device", PRESENT)
def test_bfloat16_volumes_with_channels_last_are_read(device):
    positions = 0.7 * torch.randn(2, 50, 3, generator=seeded())
    volume = torch.randn(2, 37, 5, 6, 7, generator=seeded()).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    results = []
    for where in ("cpu", device):
        leaf, source = positions.to(where).requires_grad_(), volume.to(where).requires_grad_()
        found = sample_trilinear(source, leaf)
        gradients = torch.autograd.grad(found.sum(), [leaf, source])
        assert gradients[1].is_contiguous(memory_format=torch.channels_last_3d)
        results.append([each.float().cpu() for each in (found, *gradients)])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


# An odd count of channels, one, more than a group has threads, and parts that end within a thread's batch of loads.
@needs_cuda
@pytest.mark.parametrize("shape", [(2, 17, 21, 9, 13), (2, 1, 7, 3, 4), (1, 300, 2, 3, 2), (3, 16, 40, 40, 41)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_norm_and_its_gradients_are_the_cpus(dtype, shape):
    whole = torch.float64 if dtype == torch.float64 else torch.float32
    volume, residual, grad = torch.randn(3, *shape, generator=seeded()).to(dtype)
    weight, bias = torch.randn(2, shape[1], generator=seeded()).to(whole)
    results = []
    for where in ("cpu", "cuda"):
        leaves = [each.to(where).requires_grad_() for each in (3 * volume + 10, weight, bias, residual)]
        found = instance_norm_leaky_relu(*leaves)
        gradients = torch.autograd.grad(found, leaves, grad.to(where))
        results.append([each.to(whole).cpu() for each in (found, *gradients)])
    tolerance = {torch.float32: 1e-3, torch.float64: 1e-9, torch.bfloat16: 0.1}[dtype]
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@needs_cuda
def test_neighbour_sums_are_the_cpus():
    index = torch.randint(0, 40, (40, 6), generator=seeded())
    weight = torch.randn(40, 6, generator=seeded())
    features = torch.randn(3, 40, 70, generator=seeded())
    for own in (False, True):
        found = neighbour_sum(features.cuda(), index.cuda(), weight.cuda(), own).cpu()
        torch.testing.assert_close(found, neighbour_sum(features, index, weight, own))


@needs_cuda
def test_deterministic_sums_have_the_same_bits_each_time():
    vertices, faces = bumpy(4, torch.float32)
    grad = torch.randn(2, 40, 33, 20, generator=seeded())
    features = torch.randn(2, vertices.shape[1], 8, generator=seeded())
    expected = distances(vertices, faces, grad)[1]
    torch.use_deterministic_algorithms(True)
    try:
        found = [distances(vertices.cuda(), faces.cuda(), grad.cuda())[1] for _ in range(3)]
        volumes = [splat_trilinear(vertices.cuda(), features.cuda(), 9).cpu() for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close_gradients(found[0], expected)
    torch.testing.assert_close(volumes[0], splat_trilinear(vertices, features, 9), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(each, found[0]) for each in found)
    assert all(torch.equal(each, volumes[0]) for each in volumes)


@needs_cuda
def test_ops_keep_their_types_under_autocast():
    vertices, faces = bumpy(2, torch.float32)
    volume = torch.randn(1, 8, 5, 6, 7, generator=seeded()).bfloat16().cuda()
    weight, bias = torch.ones(8, device="cuda"), torch.zeros(8, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert mesh2sdf(vertices.cuda(), faces.cuda(), 6).dtype == torch.float32
        assert instance_norm_leaky_relu(volume, weight, bias).dtype == torch.bfloat16
        assert sample_trilinear(volume, vertices[:1].cuda()).dtype == torch.float32


@needs_cuda
def test_a_second_stream_is_used_and_not_waited_for():
    """Kernels that ran on the first stream would find the mesh before it is moved."""
    vertices, faces = bumpy(4, torch.float32)
    expected = mesh2sdf(vertices, faces, 32)
    stream = torch.cuda.Stream()
    moved, faces = torch.zeros_like(vertices).cuda(), faces.cuda()
    given = vertices.cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        moved.copy_(given)
        found = mesh2sdf(moved, faces, 32)
    assert not stream.query()
    stream.synchronize()
    torch.testing.assert_close(found.cpu(), expected, atol=6e-7, rtol=0)


@needs_two
def test_a_second_device_is_used():
    vertices, faces = bumpy(3, torch.float32)
    found = mesh2sdf(vertices.to("cuda:1"), faces.to("cuda:1"), 20)
    assert found.device.index == 1
    torch.testing.assert_close(found.cpu(), mesh2sdf(vertices, faces, 20), atol=6e-7, rtol=0)


@needs_cuda
def test_a_graph_of_all_ops_can_be_captured_and_replayed():
    """Nothing waits for the device, voxelize neither, and the replay reads what its inputs hold by then."""
    vertices, faces = bumpy(3, torch.float32)
    held, faces_there = torch.zeros_like(vertices).cuda(), faces.cuda()
    features = torch.randn(2, vertices.shape[1], 5, generator=seeded()).cuda()
    grad = torch.randn(2, 24, 20, 18, generator=seeded()).cuda()
    weight, bias = torch.ones(5, device="cuda"), torch.zeros(5, device="cuda")
    index = torch.randint(0, vertices.shape[1], (vertices.shape[1], 6), generator=seeded()).cuda()

    def run():
        leaf = held.detach().requires_grad_()
        sdf = mesh2sdf(leaf, faces_there, (24, 20, 18))
        (gradient,) = torch.autograd.grad(sdf, leaf, grad)
        inside = voxelize(10 * held[0] + 10, faces_there, (20, 21, 22))
        volume = splat_trilinear(held, features, 9, channels_last=True)
        normed = instance_norm_leaky_relu(volume, weight, bias)
        around = neighbour_sum(held, index, torch.ones(index.shape, device="cuda"))
        return sdf, gradient, inside, volume, sample_trilinear(volume, held), normed, around

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    held.copy_(vertices)
    graph.replay()
    found = [each.detach().cpu() for each in results]
    expected_sdf, expected_gradient = distances(vertices, faces, grad.cpu())
    torch.testing.assert_close(found[0], expected_sdf, atol=6e-7, rtol=0)
    assert_close_gradients(found[1], expected_gradient)
    assert torch.equal(found[2], voxelize(10 * vertices[0] + 10, faces, (20, 21, 22)))
    torch.testing.assert_close(found[4], sample_trilinear(found[3], vertices), atol=1e-4, rtol=1e-4)
    expected_norm = instance_norm_leaky_relu(found[3], weight.cpu(), bias.cpu())
    torch.testing.assert_close(found[5], expected_norm, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[6], vertices[:, index.cpu()].sum(2), atol=1e-4, rtol=1e-4)
