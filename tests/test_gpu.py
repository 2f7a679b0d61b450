"""The GPU kernels: compiled by nvcc, and run on the host, where the threads of a group are fibers (tests/gpu_shim)."""

import contextlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import _gpu, _kernels, mesh2sdf, reference, voxelize

ROOT = Path(__file__).resolve().parents[1]
CSRC, SHIM = ROOT / "csrc", ROOT / "tests" / "gpu_shim"
HOST_COMPILER = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-Wno-attributes", f"-I{SHIM}", f"-I{CSRC}"]
PRESENT = [name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
           if there]
CUDA_SOURCES = sorted([*CSRC.glob("*.cu"), *(ROOT / "benchmarks").glob("*.cu")])
CASES = [("cuda", torch.float32), ("cuda", torch.float64), ("metal", torch.float32)]
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to compile the kernels for the host")


class HostKernels(_gpu.CudaKernels):
    """Kernels compiled for the host, on CPU tensors."""

    @contextlib.contextmanager
    def _current(self, device):
        yield 0


def host_source(language, name):
    """C++ that g++ takes: CUDA as it is, Metal with its headers inlined and its kernels exported."""
    if language == "cuda":
        return (CSRC / f"{name}.cu").read_text()
    text = _gpu.metal_source(CSRC / f"{name}.metal")
    kernels = re.findall(r"^kernel void (\w+)\(", text, re.MULTILINE)
    return text + "".join(f"IMN_EXPORT({kernel}, {kernel}, {_gpu.GROUP})\n" for kernel in kernels)


def compile_for_the_host(folder, name):
    loaded = {}
    for language in ("cuda", "metal"):
        source, target = folder / f"{language}.cpp", folder / f"{language}.so"
        source.write_text(host_source(language, name))
        subprocess.run([*HOST_COMPILER, source, "-o", target], check=True)
        loaded[language] = HostKernels(target)
    return loaded


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return compile_for_the_host(tmp_path_factory.mktemp("mesh2sdf"), "mesh2sdf")


@pytest.fixture(scope="session")
def projection(tmp_path_factory):
    return compile_for_the_host(tmp_path_factory.mktemp("projection"), "grid_feature_projection")


def bumpy(subdivisions, dtype, batch=1):
    vertices, faces = icosphere(subdivisions)
    phase = torch.arange(batch)[:, None, None]
    vertices = vertices.double() * (0.5 + 0.06 * torch.sin(4 * vertices[:, [1, 2, 0]] + phase)) + 0.01 * phase
    return vertices.to(dtype), faces


@needs_compiler
@pytest.mark.parametrize(("language", "dtype"), CASES)
@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 5, 33), (2, 3, 4), (20, 24, 9)])
def test_distances_and_gradients_are_the_cpus(kernels, language, dtype, shape):
    """float32 beside the truth in float64, sizes that straddle tiles, boxes and blocks."""
    vertices, faces = bumpy(2, dtype, batch=2)
    truth, _ = reference.mesh2sdf(vertices.double(), faces, shape)
    sdf, face = _gpu.mesh2sdf(kernels[language], vertices, faces, shape)
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(sdf.double(), truth, atol=5 * epsilon, rtol=0)
    assert ((sdf < 0) == (truth < 0))[truth.abs() > 1e-6].all()
    grad = torch.randn(sdf.shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) * (sdf.abs() > 1e-2)
    found = _gpu.mesh2sdf_backward(kernels[language], grad, vertices, faces, sdf, face)
    expected = reference.mesh2sdf_backward(grad.double(), vertices.double(), faces, sdf.double(), face)
    torch.testing.assert_close(found.double(), expected, atol=300 * epsilon, rtol=0)


@needs_compiler
@pytest.mark.parametrize(("language", "dtype"), CASES)
def test_lists_that_overflow_give_way_to_the_list_above(kernels, language, dtype):
    """More faces are as close to the middle as any list holds."""
    vertices, faces = icosphere(4)
    vertices = 0.9 * vertices.to(dtype)[None]
    sdf, _ = _gpu.mesh2sdf(kernels[language], vertices, faces, (3, 5, 4))
    expected, _ = reference.mesh2sdf(vertices, faces, (3, 5, 4))
    torch.testing.assert_close(sdf, expected, atol=16 * torch.finfo(dtype).eps, rtol=0)


@needs_compiler
@pytest.mark.parametrize(("language", "dtype"), CASES)
def test_what_is_not_valid_gives_nan_for_its_item_only(kernels, language, dtype):
    vertices, faces = bumpy(1, dtype, batch=4)
    vertices[1, 4, 2], vertices[2, 0, 0] = torch.nan, torch.inf
    sdf, face = _gpu.mesh2sdf(kernels[language], vertices, faces, (5, 6, 18))
    assert sdf[[0, 3]].isfinite().all()
    assert sdf[1:3].isnan().all()
    assert (face[1:3] == 0).all()
    for index in (-1, vertices.shape[1]):
        wrong = torch.cat([faces, torch.tensor([[0, 1, index]])])
        assert _gpu.mesh2sdf(kernels[language], vertices, wrong, (5, 6, 18))[0].isnan().all()
    assert _gpu.mesh2sdf(kernels[language], vertices[:0], faces, (2, 2, 2))[0].shape == (0, 2, 2, 2)
    with pytest.raises(ValueError, match="faces: wanted at least one face, found none"):
        _gpu.mesh2sdf(kernels[language], vertices, faces[:0], (2, 2, 2))


@needs_compiler
@pytest.mark.parametrize(("language", "dtype"), CASES)
def test_degenerate_faces_keep_their_distance(kernels, language, dtype):
    corners = torch.tensor([[0, 0, -0.7], [0, 0, 0.7], [0.8, 0.1, 0], [-0.5, 0.6, 0], [0, 0, 0.1]], dtype=dtype)[None]
    faces = torch.tensor([[2, 2, 2], [0, 1, 4], [0, 1, 1], [0, 1, 3], [1, 0, 3]])
    sdf, _ = _gpu.mesh2sdf(kernels[language], corners, faces, (9, 8, 7))
    expected, _ = reference.mesh2sdf(corners.double(), faces, (9, 8, 7))
    torch.testing.assert_close(sdf.abs().double(), expected.abs(), atol=5 * torch.finfo(dtype).eps, rtol=0)


@needs_compiler
@pytest.mark.parametrize(("language", "dtype"), CASES)
def test_inside_is_the_cpus_on_the_grids_own_lines(kernels, language, dtype):
    sphere, sphere_faces = bumpy(2, dtype)
    corner = torch.tensor([[0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]]).to(dtype)
    corner_faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    for voxels, faces in ((6 * sphere[0] + 6, sphere_faces), (corner, corner_faces)):
        found = _gpu.voxelize(kernels[language], voxels, faces, [13, 12, 14])
        assert torch.equal(found, voxelize(voxels, faces, (13, 12, 14)))
    with pytest.raises(ValueError, match="faces: wanted vertex indices from 0 to 3, found 4"):
        _gpu.voxelize(kernels[language], voxels, faces + 1, [3, 3, 3])


@needs_compiler
def test_a_deterministic_backward_is_the_references(kernels):
    vertices, faces = bumpy(1, torch.float32)
    sdf, face = _gpu.mesh2sdf(kernels["cuda"], vertices, faces, (5, 6, 7))
    arguments = torch.ones_like(sdf), vertices, faces, sdf, face
    torch.use_deterministic_algorithms(True)
    try:
        found = _gpu.mesh2sdf_backward(kernels["cuda"], *arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found, reference.mesh2sdf_backward(*arguments))


@needs_compiler
@pytest.mark.parametrize(("language", "dtype"), CASES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_splat_and_gather_are_the_references(projection, language, dtype, channels_last):
    """Positions beyond the cube, on its border and on voxels, several volumes, half-precision ones among them."""
    host, generator = projection[language], torch.Generator().manual_seed(0)
    positions = 0.7 * torch.randn(2, 20, 3, generator=generator, dtype=dtype)
    positions[0, :3] = torch.tensor([[-1, 0, 1], [0.5, -1, 0], [1, 1, 1]])
    features = torch.randn(2, 20, 37, generator=generator, dtype=dtype)
    layout = reference.memory_format(channels_last)
    volumes = [torch.randn(2, 37, 5, 6, 1, generator=generator, dtype=dtype).contiguous(memory_format=layout),
               torch.randn(2, 3, 4, 2, 7, generator=generator).bfloat16()]
    both = torch.cat([features, features[..., :3]], -1)
    for found, expected in (
        (_gpu.splat(host, positions, features, [5, 6, 7], channels_last),
         reference.splat(positions, features, [5, 6, 7], channels_last)),
        (_gpu.splat(host, positions, features.half(), [5, 6, 7], channels_last, torch.bfloat16),
         reference.splat(positions, features.half(), [5, 6, 7], channels_last, torch.bfloat16)),
        (_gpu.gather(host, volumes, positions), reference.gather(volumes, positions)),
        (_gpu.position_gradient(host, volumes, positions, both), reference.position_gradient(volumes, positions, both)),
        *zip(_gpu.splat_backward(host, volumes[0], positions, features),
             reference.splat_backward(volumes[0], positions, features), strict=True),
    ):
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()
    assert _gpu.splat(host, positions[:0], features[:0], [2, 3, 4]).shape == (0, 37, 2, 3, 4)


def test_constants_are_the_kernels():
    text = (CSRC / "mesh2sdf_gpu.h").read_text()
    assert f"BLOCK = {_gpu.BLOCK}," in text
    assert f"RUN = {_gpu.RUN};" in text
    assert f"WARPS = {_gpu.GROUP // 32}, GROUP = WARPS * WARP" in (CSRC / "gpu.h").read_text()


@pytest.mark.parametrize("source", sorted(CSRC.glob("*.metal")), ids=lambda path: path.stem)
def test_metal_source_stands_alone(source):
    text = _gpu.metal_source(source)
    assert re.findall(r"#include (.*)", text) == ["<metal_stdlib>", "<cmath>", "<cstdint>"]  # the latter for the host
    assert text.count("struct Thread {") == 1
    assert text.isascii()  # torch hands it over as such


def test_metal_that_does_not_compile_gives_way_to_the_reference(monkeypatch):
    def refuse(source):
        raise SyntaxError("not Metal")

    monkeypatch.setattr(torch.mps, "compile_shader", refuse)
    metal = _gpu.MetalKernels("mesh2sdf")
    with pytest.warns(UserWarning, match=r"mesh2sdf.metal did not compile for Metal \(not Metal\)"):
        assert not metal.usable()
    op = _kernels._or_reference(_gpu.mesh2sdf, metal, reference.mesh2sdf)
    vertices, faces = bumpy(1, torch.float32)
    assert torch.equal(op(vertices, faces, [3, 4, 5])[0], reference.mesh2sdf(vertices, faces, [3, 4, 5])[0])


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize("architecture", [80, 86, 90, 100])
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.stem)
def test_nvcc_compiles_without_a_warning(tmp_path, source, architecture):
    run = subprocess.run(["nvcc", "-std=c++17", "-O3", f"-arch=sm_{architecture}", f"-I{CSRC}", "-Xptxas=-v", "-c",
                          source, "-o", tmp_path / "out.o"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr
    assert not re.search(r"[1-9]\d+ bytes spill", run.stderr)  # 4 bytes in a kernel that is not hot are well


@pytest.mark.skipif(not PRESENT, reason="neither a CUDA nor an MPS device is present")
@pytest.mark.parametrize("device", PRESENT)
def test_on_the_device_itself(device):
    vertices, faces = bumpy(4, torch.float32, batch=2)
    grad = torch.randn(2, 33, 20, 18, generator=torch.Generator().manual_seed(0))
    results = []
    for where in ("cpu", device):
        leaf = vertices.to(where).requires_grad_()
        sdf = mesh2sdf(leaf, faces.to(where), grad.shape[1:])
        results.append([t.cpu() for t in (sdf.detach(), *torch.autograd.grad(sdf, leaf, grad.to(where)))])
    torch.testing.assert_close(results[1][0], results[0][0], atol=6e-7, rtol=0)
    close = (results[1][1] - results[0][1]).abs() <= 1e-3  # where another of two equally close faces does not decide
    assert close.float().mean() > 0.95
