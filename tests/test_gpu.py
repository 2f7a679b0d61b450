"""The GPU kernels: compiled by nvcc, and run on the host, where the threads of a group are fibers (tests/gpu_shim)."""

import contextlib
import ctypes.util
import re
import runpy
import shutil
import subprocess
import types
import warnings

import pytest
import setuptools
import torch
from host_kernels import CSRC, ROOT, SHIM, HostKernels, compile_kernels
from meshes import bumpy_sphere

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import _gpu, _kernels, reference, voxelize

METAL_SOURCES = sorted(CSRC.glob("*.metal"))
CUDA_SOURCES = sorted([*CSRC.glob("*.cu"), *(ROOT / "benchmarks").glob("*.cu")])
CASES = [("cuda", torch.float32), ("cuda", torch.float64), ("metal", torch.float32)]
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to compile the kernels for the host")


def compile_for_the_host(folder, name):
    return {language: compile_kernels(folder, language, name) for language in ("cuda", "metal")}


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    return compile_for_the_host(tmp_path_factory.mktemp("mesh2sdf"), "mesh2sdf")


@pytest.fixture(scope="session")
def projection(tmp_path_factory):
    return compile_for_the_host(tmp_path_factory.mktemp("projection"), "grid_feature_projection")


def bumpy(subdivisions, dtype, batch=1):
    return bumpy_sphere(subdivisions, torch.arange(batch)[:, None, None], dtype)


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
    for wrong in (faces + 1, faces - 1):  # no error, as nothing waits for the device
        assert not _gpu.voxelize(kernels[language], voxels, wrong, [3, 3, 3]).any()
    with pytest.raises(ValueError, match="faces: wanted at least one face, found none"):
        _gpu.voxelize(kernels[language], voxels, faces[:0], [3, 3, 3])


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@needs_compiler
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("language", "dtype"), CASES)
def test_deterministic_sums_are_the_references(kernels, projection, language, dtype):
    """In fixed point in float32 on CUDA, where the order of groups and threads makes no difference to any bit."""
    vertices, faces = bumpy(1, dtype)
    sdf, face = _gpu.mesh2sdf(kernels[language], vertices, faces, (18, 6, 7))
    grad = torch.randn(sdf.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    arguments = grad, vertices, faces, sdf, face
    found = _gpu.mesh2sdf_backward(kernels[language], *arguments)
    torch.testing.assert_close(found, reference.mesh2sdf_backward(*arguments), atol=2e-6, rtol=1e-5)
    features = torch.randn(1, vertices.shape[1], 5, dtype=dtype)
    order = torch.randperm(vertices.shape[1])
    for channels_last in (False, True):
        options = ([3, 4, 5], channels_last)
        volume = _gpu.splat(projection[language], vertices, features, *options)
        expected = reference.splat(vertices, features, *options)
        torch.testing.assert_close(volume, expected)
        assert volume.stride() == expected.stride()
        if (language, dtype) == ("cuda", torch.float32):
            again = _gpu.splat(projection[language], vertices[:, order], features[:, order], *options)
            assert torch.equal(volume, again)
    if (language, dtype) == ("cuda", torch.float32):
        broken = torch.full_like(grad, torch.inf)
        assert not _gpu.mesh2sdf_backward(kernels[language], broken, *arguments[1:]).isfinite().any()
        # Whole numbers hold no NaN, which a vertex may be all the same.
        broken = vertices.clone()
        broken[0, 3, 1] = torch.nan
        assert _gpu.mesh2sdf_backward(kernels[language], grad, broken, *arguments[2:]).isnan().all()
        assert _gpu.splat(projection[language], broken, features, [3, 4, 5]).isnan().all()


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
    volumes = [
        torch.randn(2, 37, 5, 6, 1, generator=generator, dtype=dtype).contiguous(memory_format=layout),
        torch.randn(2, 3, 4, 2, 7, generator=generator).bfloat16(),
    ]
    both = torch.cat([features, features[..., :3]], -1)
    for found, expected in (
        (
            _gpu.splat(host, positions, features, [5, 6, 7], channels_last),
            reference.splat(positions, features, [5, 6, 7], channels_last),
        ),
        (
            _gpu.splat(host, positions, features.half(), [5, 6, 7], channels_last, torch.bfloat16),
            reference.splat(positions, features.half(), [5, 6, 7], channels_last, torch.bfloat16),
        ),
        (_gpu.gather(host, volumes, positions), reference.gather(volumes, positions)),
        (_gpu.position_gradient(host, volumes, positions, both), reference.position_gradient(volumes, positions, both)),
        *zip(
            _gpu.splat_backward(host, volumes[0], positions, features),
            reference.splat_backward(volumes[0], positions, features),
            strict=True,
        ),
    ):
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()
    assert _gpu.splat(host, positions[:0], features[:0], [2, 3, 4]).shape == (0, 37, 2, 3, 4)


@pytest.fixture(scope="session")
def norm(tmp_path_factory):
    return compile_kernels(tmp_path_factory.mktemp("norm"), "cuda", "instance_norm")


# An odd count of channels, more than a group has threads, several parts, and one channel, whose threads have no full
# batch of loads; the last has several, and a part that ends within one.
NORMED = [(2, 3, 4, 3, 5), (1, 300, 2, 3, 2), (1, 17, 11, 9, 13), (2, 1, 7, 3, 4), (1, 100, 5, 5, 9)]


@needs_compiler
@pytest.mark.parametrize("shape", NORMED)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-10), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("both", [False, True])
def test_norm_and_its_gradients_are_the_references(norm, shape, dtype, tolerance, both):
    """Channels with means far from zero; what is stored in bfloat16 is held against float32."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.float64 if dtype == torch.float64 else torch.float32
    volume, residual, grad = torch.randn(3, *shape, generator=generator).to(dtype)
    volume = 3 * volume + 10
    weight, bias = torch.randn(2, shape[1], generator=generator).to(whole)
    multiplier = 2 * torch.randint(0, 2, shape[:2], generator=generator).to(whole)
    extra = (residual, multiplier) if both else (None, None)
    found = _gpu.instance_norm_leaky_relu(norm, volume, weight, bias, *extra, 0.01)
    wide = [None if each is None else each.to(whole) for each in (volume, weight, bias, *extra)]
    expected = reference.instance_norm_leaky_relu(*wide, 0.01)
    assert found[0].dtype == dtype
    assert found[0].is_contiguous(memory_format=torch.channels_last_3d)
    close = {"atol": 10 * tolerance, "rtol": tolerance}
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own.to(whole), wanted, **close)
    saved = (volume, found[0], weight, extra[1], *found[1:])
    found = _gpu.instance_norm_leaky_relu_backward(norm, grad, *saved, 0.01, both)
    saved = [None if each is None else each.to(whole) for each in (grad, *saved)]
    expected = reference.instance_norm_leaky_relu_backward(*saved, 0.01, both)
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own.to(whole), wanted, **close)


@needs_compiler
def test_a_norm_of_nothing_or_of_float16_is_the_references(norm):
    for volume in (torch.ones(1, 2, 0, 3, 4), torch.randn(1, 2, 3, 3, 4).half()):
        found = _gpu.instance_norm_leaky_relu(norm, volume, torch.ones(2), torch.zeros(2), None, None, 0.01)
        assert found[0].shape == volume.shape
        assert found[0].dtype == volume.dtype


@needs_compiler
def test_a_norm_reads_no_more_coefficients_than_there_are(norm):
    volume, few, mean = torch.randn(2, 5, 3, 3, 4), torch.ones(4), torch.ones(2, 5)
    right = {"weight": mean[0], "bias": mean[0], "residual": None, "multiplier": None}
    for name, wrong in {"weight": few, "bias": few, "residual": volume[:1], "multiplier": mean[:1]}.items():
        with pytest.raises(ValueError, match=r"wanted shape .*, found"):
            _gpu.instance_norm_leaky_relu(norm, volume, *(right | {name: wrong}).values(), 0.01)
    for saved in ((few, None, mean, mean), (mean[0], mean[:1], mean, mean), (mean[0], None, mean[:1], mean)):
        with pytest.raises(ValueError, match=r"wanted shape .*, found"):
            _gpu.instance_norm_leaky_relu_backward(norm, volume, volume, volume, *saved, 0.01, False)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [False, True])
def test_neighbour_sums_and_their_gradients_are_the_references(tmp_path_factory, dtype, own):
    host = compile_kernels(tmp_path_factory.mktemp("graph"), "cuda", "neighbour_sum", ["-O0"])
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 10, (10, 4), generator=generator)
    weight = torch.randn(10, 4, generator=generator)
    features = torch.randn(2, 3, 10, 70, generator=generator, dtype=dtype)
    graph = (index, weight.to(dtype), own)
    found = _gpu.neighbour_sum(host, features, *graph)
    torch.testing.assert_close(found, reference.neighbour_sum(features, *graph))
    found = _gpu.neighbour_sum_backward(host, features, *graph)
    torch.testing.assert_close(found, reference.neighbour_sum_backward(features, *graph))
    beyond = (index + 100, *graph[1:])
    assert _gpu.neighbour_sum(host, features, *beyond).isfinite().all()  # no error, as nothing waits for the device
    for wrong in ((index[:9], weight[:9].to(dtype), own), (index, weight[:, :3].to(dtype), own)):
        with pytest.raises(ValueError, match=r"(features|weight): wanted shape .*, found"):
            _gpu.neighbour_sum(host, features, *wrong)


def test_constants_are_the_kernels():
    text = (CSRC / "mesh2sdf_gpu.h").read_text()
    assert f"BLOCK = {_gpu.BLOCK}, BOX = {_gpu.BOX}, TILE = {_gpu.TILE}," in text
    assert f"BLOCK_FACES = {_gpu.BLOCK_FACES};" in text
    assert f"BOUND_FIELDS = {_gpu.BOUND_FIELDS};" in text
    assert f"RUN = {_gpu.RUN};" in text
    groups = f"int WARP = {_gpu.WARP}, WARPS = {_gpu.GROUP // _gpu.WARP}, GROUP = WARPS * WARP"
    assert groups in (CSRC / "gpu.h").read_text()
    for source in METAL_SOURCES:
        kernels = _gpu.kernel_names(source.read_text())
        limit = f"[[max_total_threads_per_threadgroup({_gpu.GROUP})]]\nkernel void"
        assert kernels
        assert source.read_text().count(limit) == len(kernels)


@pytest.mark.parametrize("source", METAL_SOURCES, ids=lambda path: path.stem)
def test_metal_source_stands_alone(source):
    text = _gpu.metal_source(source)
    assert re.findall(r"#include (.*)", text) == ["<metal_stdlib>", "<cmath>", "<cstdint>"]  # the latter for the host
    assert text.count("struct Thread {") == 1
    assert text.isascii()  # torch hands it over as such


SCALARS = {"bool", "char", "short", "int", "long", "uchar", "ushort", "uint", "ulong", "half", "bfloat", "float"}
QUALIFIERS = {"kernel", "device", "constant", "thread", "threadgroup"}  # that our kernels use as such
RESERVED = (
    QUALIFIERS
    | {
        "vertex",
        "fragment",
        "visible",
        "threadgroup_imageblock",
        "ray_data",
        "object_data",  # other qualifiers
        "new",
        "delete",
        "goto",
        "virtual",
        "try",
        "catch",
        "throw",
        "dynamic_cast",
        "typeid",
        "noexcept",
        "register",
        "thread_local",
        "double",
        "wchar_t",
        "char16_t",
        "char32_t",  # C++14's that Metal does without
        "main",
        "metal",
        "assert",
        "as_type",
        "restrict",
        "quad",
        "complex",
        "imaginary",
        "llong",
        "ullong",
        "uchar",
        "ushort",
        "uint",
        "ulong",
        "half",
        "bfloat",
        "size_t",
        "ptrdiff_t",
        "int8_t",
        "uint8_t",
        "int16_t",
        "uint16_t",
        "int32_t",
        "uint32_t",
        "int64_t",
        "uint64_t",
        "vec",
        "packed_vec",
        "matrix",
        "array",
        "array_ref",
        "sampler",
        "imageblock",
        "patch_control_point",
        "atomic",
        "atomic_int",
        "atomic_uint",
        "atomic_bool",
        "atomic_ulong",
        "atomic_float",
        "INFINITY",
        "NAN",
        "MAXFLOAT",
        "MAXHALF",
        "HUGE_VALF",
        "HUGE_VALH",
    }
    | {f"{packed}{scalar}{size}" for packed in ("", "packed_") for scalar in SCALARS for size in (2, 3, 4)}
    | {f"{scalar}{rows}x{columns}" for scalar in ("half", "float") for rows in (2, 3, 4) for columns in (2, 3, 4)}
)
RESERVED_PATTERN = re.compile(r"(texture|depth)(1d|2d|3d|cube|_buffer)\w*|(M|FLT|HALF)_[A-Z0-9_]+")
USES = re.compile(
    r"""
    \b(?:kernel|device|constant|thread|threadgroup|uint)\s+(?=[A-Za-z_])  # before the word that they qualify
  | \bas_type<(?:uint>)? | \bushort\(\d | \bmetal::atomic_(?:int|uint|float)\b | \bmetal::
  | \[\[.*?\]\] | ^\#.*$""",
    re.VERBOSE | re.MULTILINE,
)


def as_metal_reads_it(text):
    """The branches for Metal, macros expanded and comments gone."""
    text = re.sub(r"^#include.*$", "", text, flags=re.MULTILINE)
    run = subprocess.run(
        ["g++", "-E", "-P", "-D__METAL_VERSION__=310", "-x", "c++", "-"],
        input=text,
        check=True,
        capture_output=True,
        text=True,
    )
    return run.stdout


def reserved_words(code):
    """The words of the Metal Shading Language that code uses for something of its own."""
    words = set(re.findall(r"\b[A-Za-z_]\w*", USES.sub(" ", code)))
    return {word for word in words if word in RESERVED or RESERVED_PATTERN.fullmatch(word)}


@needs_compiler
@pytest.mark.parametrize("source", METAL_SOURCES, ids=lambda path: path.stem)
def test_no_identifier_is_a_word_of_metal(source):
    """C++'s own keywords are g++'s too, which compiles the kernels in the tests above."""
    code = as_metal_reads_it(_gpu.metal_source(source))
    assert len(code) > 1000
    assert reserved_words(code) == set()


@pytest.mark.parametrize("use", ["int {} = 0;", "void f(const device float* {});", "float {}[2];", "x = {} + 1;"])
def test_words_of_metal_are_found(use):
    for word in (*RESERVED, "texture2d_array", "depthcube", "texture_buffer", "M_PI_F"):
        assert reserved_words(use.format(word)) == {word}


@pytest.fixture(scope="module")
def diagnose():
    """Metal source -> what clang says about it, read as C++ for OpenCL."""
    cindex = pytest.importorskip("clang.cindex", reason="no libclang to read the kernels as C++ for OpenCL")
    try:
        index = cindex.Index.create()
    except cindex.LibclangError as error:
        pytest.skip(f"libclang does not load: {error}")
    flags = ["-cl-std=clc++2021", "-cl-no-stdinc", "-Wno-unknown-attributes", f"-I{SHIM / 'opencl'}"]

    def said_about(text):
        unit = index.parse("kernels.cl", args=flags, unsaved_files=[("kernels.cl", text)])
        return [f"{each.location.line}: {each.spelling}" for each in unit.diagnostics]

    return said_about


@pytest.mark.parametrize("source", METAL_SOURCES, ids=lambda path: path.stem)
def test_metal_source_is_cpp_for_opencl(source, diagnose):
    text = _gpu.metal_source(source)
    assert diagnose(text) == []
    for pattern, wrong in (
        (r"device float\* result", "float* result"),  # no address space
        (r"\(const IMN_DEVICE", "(const IMN_SHARED"),  # another one
        (r"\bme\b", "vertex"),
        (r"\bme\b", "thread"),
    ):
        changed, count = re.subn(pattern, wrong, text)
        assert count > 0
        assert diagnose(changed) != []


def test_metal_that_does_not_compile_gives_way_to_the_reference(monkeypatch):
    def refuse(source):
        raise SyntaxError("not Metal")

    monkeypatch.setattr(torch.mps, "compile_shader", refuse)
    metal = _gpu.MetalKernels("mesh2sdf")
    with pytest.warns(UserWarning, match=r"mesh2sdf.metal did not compile for Metal \(not Metal\)"):
        assert not metal.usable(torch.device("mps"))
    assert_is_the_reference(metal)


def assert_is_the_reference(kernels):
    """Whatever op uses kernels that do not run is the reference, without another word."""
    vertices, faces = bumpy(1, torch.float32)
    volume = torch.randn(1, 2, 3, 4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = _kernels._or_reference(_gpu.mesh2sdf, kernels, reference.mesh2sdf)
        assert torch.equal(op(vertices, faces, [3, 4, 5])[0], reference.mesh2sdf(vertices, faces, [3, 4, 5])[0])
        op = _kernels._or_reference(_gpu.gather, kernels, reference.gather)
        assert torch.equal(op([volume], vertices), reference.gather([volume], vertices))


class MetalLibrary:
    """What torch.mps.compile_shader returns, of kernels that all have the same limits."""

    def __init__(self, most_threads, width):
        self._limits = types.SimpleNamespace(max_threads_per_threadgroup=most_threads, thread_execution_width=width)

    def __getattr__(self, kernel):
        return self._limits


@pytest.mark.parametrize(
    ("most_threads", "width", "reason"),
    [
        (1024, 32, None),
        (256, 32, None),
        (255, 32, "wanted groups of 256 threads, found 255"),
        (1024, 16, "wanted warps of 32 threads, found 16"),
        (1024, 64, "wanted warps of 32 threads, found 64"),
    ],
)
@pytest.mark.parametrize("name", [source.stem for source in METAL_SOURCES])
def test_metal_groups_and_warps_must_be_those_that_the_kernels_mean(monkeypatch, most_threads, width, reason, name):
    monkeypatch.setattr(torch.mps, "compile_shader", lambda source: MetalLibrary(most_threads, width))
    metal = _gpu.MetalKernels(name)
    if reason is None:
        assert metal.usable(torch.device("mps"))
        return
    with pytest.warns(UserWarning, match=rf"in plain PyTorch, slowly, as .*{name}.metal .*: {reason}"):
        assert not metal.usable(torch.device("mps"))
    assert_is_the_reference(metal)


def test_metals_kernels_are_all_checked(monkeypatch):
    asked = []

    class Library(MetalLibrary):
        def __getattr__(self, kernel):
            asked.append(kernel)
            return super().__getattr__(kernel)

    monkeypatch.setattr(torch.mps, "compile_shader", lambda source: Library(256, 32))
    assert _gpu.MetalKernels("mesh2sdf").usable(torch.device("mps"))
    wanted = set(_gpu.kernel_names((CSRC / "mesh2sdf.metal").read_text()))
    assert {"accumulate", "solve_float"} < wanted == set(asked) - {"_limits"}


class FailingKernels(HostKernels):
    """A CUDA library whose kernels return an error's code on some devices."""

    def __init__(self, codes):
        self._runs = {}
        self.codes, self.started, self.device = codes, [], None

    @contextlib.contextmanager
    def _current(self, device):
        self.device = device
        yield 0

    def _entry(self, kernel):
        return 0

    def _start(self, words, stream):
        self.started.append(self.device)
        return self.codes[self.device]


def test_a_cuda_library_that_cannot_run_gives_way_on_its_device_alone(monkeypatch):
    def check_error(code):
        raise RuntimeError(f"no kernel image is available ({code})")

    monkeypatch.setattr(torch.cuda, "check_error", check_error)
    new, old = torch.device("cuda", 0), torch.device("cuda", 1)
    kernels = FailingKernels({new: 0, old: 209})
    assert kernels.usable(new)
    with pytest.warns(UserWarning, match=r"compiled CUDA kernels do not run on cuda:1 \(no kernel image is available"):
        assert not kernels.usable(old)
    assert kernels.usable(new)
    assert not kernels.usable(old)
    assert kernels.started == [new, old]  # once for each device
    kernels = FailingKernels({torch.device("cpu"): 35})
    with pytest.warns(UserWarning, match=r"do not run on cpu \(no kernel image is available \(35\)\)"):
        assert not kernels.usable(torch.device("cpu"))
    assert_is_the_reference(kernels)


def test_a_library_of_something_else_gives_way():
    kernels = HostKernels(ctypes.util.find_library("c"))
    with pytest.warns(UserWarning, match="do not run on cpu .*imn_accumulate"):
        assert not kernels.usable(torch.device("cpu"))


@needs_compiler
@pytest.mark.parametrize("language", ["cuda", "metal"])
def test_kernels_that_run_are_used(kernels, language):
    vertices, faces = bumpy(1, torch.float32)
    op = _kernels._or_reference(lambda host, *arguments: "started", kernels[language], reference.mesh2sdf)
    assert op(vertices, faces, [3, 4, 5]) == "started"


@pytest.mark.parametrize(("kernels", "most"), [(_gpu.CudaKernels, 2**31 - 1), (_gpu.MetalKernels, 2**24 - 1)])
def test_more_groups_than_a_grid_has_are_refused(kernels, most):
    assert most == kernels.MOST_GROUPS
    bare = object.__new__(kernels)
    bare._entries = {"splat_float": 0}
    for groups in (most + 1, 2**31, 2**32, 2**40):
        with pytest.raises(
            ValueError,
            match=f"splat_float: wanted at most {most} groups of 256 threads on the device,"
            f" found {groups}: too many voxels or vertices at once",
        ):
            bare.run(torch.device("cpu"), ("splat_float", groups))
    _gpu._check_groups("splat_float", most, most)


@needs_compiler
@pytest.mark.parametrize("language", ["cuda", "metal"])
def test_a_volume_of_more_voxels_than_32_bits_number_is_read(projection, language):
    """2^31 voxels that lie on each other, so that they take no memory, but along X."""
    volume = torch.arange(1300.0).view(1, 1, 1300, 1, 1).expand(1, 2, 1300, 1300, 1300)
    positions = torch.tensor([[[-1.0, 0, 0.3], [0.5, 1, 1], [1, 1, 1]]])
    expected = (positions[..., :1] + 1) * (1299 / 2)
    torch.testing.assert_close(_gpu.gather(projection[language], [volume], positions), expected.expand(1, 3, 2))


@needs_compiler
@pytest.mark.parametrize("language", ["cuda", "metal"])
def test_what_a_backward_is_handed_must_fit(kernels, projection, language):
    vertices, faces = bumpy(1, torch.float32)
    sdf, face = _gpu.mesh2sdf(kernels[language], vertices, faces, (5, 6, 7))
    good = torch.ones_like(sdf), vertices, faces, sdf, face
    for index, name in ((0, "grad"), (3, "sdf"), (4, "face")):
        wrong = [each[:, 1:] if at == index else each for at, each in enumerate(good)]
        with pytest.raises(ValueError, match=f"{'grad' if name == 'sdf' else name}: wanted shape"):
            _gpu.mesh2sdf_backward(kernels[language], *wrong)
    for beyond in (-1, len(faces), 2**31 - 1):  # no error, as nothing waits for the device, but no crash
        assert _gpu.mesh2sdf_backward(kernels[language], *good[:4], torch.full_like(face, beyond)).isfinite().all()
    for moved in (faces + 1000, faces - 1000):
        assert _gpu.mesh2sdf_backward(kernels[language], *good[:2], moved, *good[3:]).isfinite().all()
    # Kernels read as many bytes as the right types have.
    expected = _gpu.mesh2sdf_backward(kernels[language], *good)
    others = good[0].half(), vertices, faces.int(), sdf.double(), face.short()
    torch.testing.assert_close(_gpu.mesh2sdf_backward(kernels[language], *others), expected)
    with pytest.raises(ValueError, match="faces: wanted at least one face, found none"):
        _gpu.mesh2sdf_backward(kernels[language], *good[:2], faces[:0], *good[3:])
    with pytest.raises(ValueError, match=r"faces: wanted shape \(80, 3\), found \(80, 2\)"):
        _gpu.mesh2sdf_backward(kernels[language], *good[:2], faces[:, :2], *good[3:])
    volume, features = torch.ones(1, 2, 3, 4, 5), torch.ones(*vertices.shape[:2], 3)
    with pytest.raises(ValueError, match=r"features: wanted shape \(1, 42, 2\), found \(1, 42, 3\)"):
        _gpu.splat_backward(projection[language], volume, vertices, features)
    with pytest.raises(ValueError, match=r"features: wanted shape \(1, 42, 3\), found \(1, 41, 3\)"):
        _gpu.splat(projection[language], vertices, features[:, 1:], [3, 4, 5])
    with pytest.raises(ValueError, match=r"volume: wanted shape \(1, C, X, Y, Z\), found \(2, 2, 3, 4, 5\)"):
        _gpu.gather(projection[language], [volume.expand(2, -1, -1, -1, -1)], vertices)


LISTED = {
    "11.8": [35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90],
    "12.9": [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121],
    "13.0": [75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121],
    "unsorted": [121, 120, 90, 89, 80, 75],
    "without a first": [80, 86, 103, 121],
}


@pytest.mark.parametrize(
    ("toolkit", "wanted"),
    [
        ("11.8", [70, 80, 90]),
        ("12.9", [70, 80, 90, 100, 120]),
        ("13.0", [75, 80, 90, 100, 110, 120]),
        ("unsorted", [75, 80, 90, 120]),
        ("without a first", [80, 103, 121]),
    ],
)
def test_each_generation_has_its_code(tmp_path, monkeypatch, toolkit, wanted):
    """Also the specific architectures (compute_90a), which run nowhere else, are passed over."""
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    nvcc = tmp_path / "nvcc"
    listed = [f"compute_{number}" for number in LISTED[toolkit]]
    nvcc.write_text("#!/bin/sh\necho " + " ".join([*listed, "compute_90a", "compute_100f"]) + "\n")
    nvcc.chmod(0o755)
    flags = runpy.run_path(str(ROOT / "setup.py"))["architectures"](str(nvcc))
    compiled = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in wanted]
    assert flags == [*compiled, f"-gencode=arch=compute_{wanted[-1]},code=compute_{wanted[-1]}"]
    monkeypatch.setenv("IMPLICITMESHNET_CUDA", "native")
    assert runpy.run_path(str(ROOT / "setup.py"))["architectures"](str(nvcc)) == ["-arch=native"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present, on which the kernels run")
def test_a_real_cuda_library_without_a_driver_gives_way(tmp_path, monkeypatch):
    source, target = CSRC / "mesh2sdf.cu", tmp_path / "_cuda.so"
    subprocess.run(["nvcc", "-std=c++17", "-O0", "-shared", "-Xcompiler", "-fPIC", source, "-o", target], check=True)

    def check_error(code):
        raise RuntimeError(f"CUDA error {code}")

    monkeypatch.setattr(torch.cuda, "check_error", check_error)
    kernels = HostKernels(target)
    with pytest.warns(UserWarning, match=r"the compiled CUDA kernels do not run on cpu \(CUDA error \d+\)"):
        assert not kernels.usable(torch.device("cpu"))
    assert_is_the_reference(kernels)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize("architecture", [75, 80, 86, 90, 100])
@pytest.mark.parametrize("source", CUDA_SOURCES, ids=lambda path: path.stem)
def test_nvcc_compiles_without_a_warning(tmp_path, source, architecture):
    run = subprocess.run(
        [
            "nvcc",
            "-std=c++17",
            "-O3",
            f"-arch=sm_{architecture}",
            f"-I{CSRC}",
            "-Xptxas=-v",
            "-c",
            source,
            "-o",
            tmp_path / "out.o",
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr
    assert not re.search(r"[1-9]\d+ bytes spill", run.stderr)  # 4 bytes in a kernel that is not hot are well
