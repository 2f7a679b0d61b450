"""The ops on CUDA and MPS tensors: one host side for both, over kernels that are started by name.

CUDA's come from the library that setup.py builds, Metal's are compiled from csrc/ on first use.
"""

import array
import contextlib
import ctypes
import functools
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from implicitmeshnet.ops import reference
from implicitmeshnet.ops._checks import check_batched_points, check_size, check_volume

# As in csrc/gpu.h and csrc/mesh2sdf_gpu.h.
GROUP = 256
"""Threads of every group."""
WARP = 32
"""Threads of a warp."""
BLOCK, BOX, TILE = 16, 8, 4
"""Voxels along the block that faces are listed for, the box of a group and the tile of a warp."""
BLOCK_FACES = 8192
"""Faces that a block's list has room for; beyond, all are read."""
RUN = 8
"""Voxels along the run that a thread differentiates."""
TRIANGLE_FIELDS = 20
"""Numbers that stand for a triangle."""
BALL_FIELDS = 4
"""Numbers that stand for a ball."""
BOUND_FIELDS = 4
"""Numbers that bound a batch item."""
CROWDED_GROUPS = 1024
"""Groups that share the crowded tiles, however many there are."""
_PACKAGE = Path(__file__).parents[1]
CSRC = _PACKAGE / "csrc" if (_PACKAGE / "csrc").is_dir() else _PACKAGE.parent / "csrc"
"""The Metal sources: setup.py copies them into an installed package, a checkout has them beside it."""
_SUFFIX = {torch.float32: "_float", torch.float64: "_double"}


def metal_source(path: Path) -> str:
    """The text of a .metal file with the headers of its own folder in place, each once."""
    seen: set[Path] = set()

    def inline(path: Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        text = path.read_text().replace("#pragma once", "")

        def header(match: re.Match) -> str:
            return inline(path.parent / match[1])

        return re.sub(r'^#include "(.+)"$', header, text, flags=re.MULTILINE)

    return inline(path)


def kernel_names(source: str) -> list[str]:
    """The names of the kernels that Metal source defines."""
    return re.findall(r"^kernel void (\w+)\(", source, re.MULTILINE)


def _warn_unusable(reason: str) -> None:
    warnings.warn(f"implicitmeshnet: the ops run in plain PyTorch, slowly, as {reason}", stacklevel=2)


def _check_groups(kernel: str, groups: int, limit: int) -> None:
    if groups > limit:
        raise ValueError(
            f"{kernel}: wanted at most {limit} groups of {GROUP} threads on the device, found {groups}: too"
            " many voxels or vertices at once"
        )


Launch = tuple
"""One start of a kernel: its name, how many groups, and its arguments, tensors and integers."""


class MetalKernels:
    """The kernels of one .metal file, on MPS tensors; compiled on first use."""

    MOST_GROUPS = (2**32 - 1) // GROUP
    """Metal counts a grid's threads in 32 bits."""
    FIXED_POINT = False
    """Whether there are kernels that add in 64 bits; Metal has no such additions."""

    def __init__(self, name: str):
        self.path = CSRC / f"{name}.metal"

    @functools.cached_property
    def library(self):
        """What torch compiled; None where it did not, or where groups or warps are not those that the kernels mean."""
        try:
            source = metal_source(self.path)
            library = torch.mps.compile_shader(source)
            for name in kernel_names(source):
                self._check_kernel(name, getattr(library, name))
        except (OSError, RuntimeError, SyntaxError) as error:  # no csrc/ beside the package, or Metal refuses it
            _warn_unusable(f"{self.path} did not compile for Metal ({error})")
            return None
        return library

    def _check_kernel(self, name: str, kernel) -> None:
        if kernel.max_threads_per_threadgroup < GROUP:
            raise RuntimeError(f"{name}: wanted groups of {GROUP} threads, found {kernel.max_threads_per_threadgroup}")
        if kernel.thread_execution_width != WARP:
            raise RuntimeError(f"{name}: wanted warps of {WARP} threads, found {kernel.thread_execution_width}")

    def usable(self, device: torch.device) -> bool:
        """Whether kernels run on the device."""
        return self.library is not None

    def run(self, device: torch.device, *launches: "Launch") -> None:
        """Start kernels one after the other; ValueError for more groups than Metal takes."""
        for kernel, groups, *arguments in launches:
            _check_groups(kernel, groups, self.MOST_GROUPS)
            if groups > 0:
                getattr(self.library, kernel)(*arguments, threads=[groups * GROUP], group_size=[GROUP])


class CudaKernels:
    """The kernels of a library of C functions `imn_KERNEL(arguments, groups, stream)`, on CUDA tensors."""

    MOST_GROUPS = 2**31 - 1
    """CUDA's limit along a grid's first axis."""
    FIXED_POINT = True
    """As of `MetalKernels`."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        self._entries: dict[str, int] = {}
        self._runs: dict[torch.device, bool] = {}

    def usable(self, device: torch.device) -> bool:
        """Whether kernels start on the device, which one that does nothing shows; if not, one warning says why."""
        if device not in self._runs:
            try:
                self.run(device, ("accumulate", 1, 0, 0, 0))
                self._runs[device] = True
            except (RuntimeError, AttributeError) as error:  # the driver too old, no code for the device, or not ours
                _warn_unusable(f"the compiled CUDA kernels do not run on {device} ({error})")
                self._runs[device] = False
        return self._runs[device]

    def run(self, device: torch.device, *launches: Launch) -> None:
        """Start kernels one after the other on the device's current stream, in one call of the library.

        ValueError for more groups than CUDA takes, and what torch raises for CUDA's errors. Nothing waits for the
        kernels.
        """
        words: list[int] = []  # as `imn_run` of csrc/launch.h takes them; a tensor stands as its address
        for kernel, groups, *arguments in launches:
            _check_groups(kernel, groups, self.MOST_GROUPS)
            if groups > 0:
                words += (self._entry(kernel), groups, len(arguments))
                words += [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
        if not words:
            return
        with self._current(device) as stream:
            code = self._start(array.array("q", words), stream)
        if code:
            torch.cuda.check_error(code)

    def _entry(self, kernel: str) -> int:
        """The address of the C function that starts a kernel."""
        if kernel not in self._entries:
            function = getattr(self.library, f"imn_{kernel}")
            self._entries[kernel] = ctypes.cast(function, ctypes.c_void_p).value or 0
        return self._entries[kernel]

    def _start(self, words: array.array, stream: int) -> int:
        """Hand launches over; CUDA's error code."""
        address, count = words.buffer_info()
        return self.library.imn_run(ctypes.c_void_p(address), ctypes.c_int64(count), ctypes.c_void_p(stream))

    @contextlib.contextmanager
    def _current(self, device: torch.device) -> Iterator[int]:
        with torch.cuda.device(device):
            yield torch.cuda.current_stream(device).cuda_stream


Kernels = MetalKernels | CudaKernels


def groups_of(count: int) -> int:
    """How many groups give each of `count` pieces of work a thread."""
    return -(-count // GROUP)


def warp_groups_of(count: int) -> int:
    """How many groups give each of `count` pieces of work a warp."""
    warps = GROUP // WARP
    return -(-count // warps)


def suffix(tensor: torch.Tensor) -> str:
    """What ends the name of a kernel for this tensor's dtype."""
    return _SUFFIX[tensor.dtype]


def _bounds(vertices: torch.Tensor) -> torch.Tensor:
    """Room for the bounds of each item, not cleared."""
    return vertices.new_empty(len(vertices), BOUND_FIELDS)


def _readable_mesh(vertices: torch.Tensor, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices (B, V, 3) and faces as the kernels read them; raises TypeError or ValueError where there are none."""
    check_batched_points(vertices)
    if 0 in (len(faces), vertices.shape[1]):
        reference.check_faces(faces, vertices.shape[1])
    check_size(faces, (len(faces), 3), "faces")
    return vertices.contiguous(), faces.long().contiguous()


def _find_bounds(vertices: torch.Tensor, faces: torch.Tensor, bounds: torch.Tensor) -> Launch:
    batch, count, _ = vertices.shape
    rows = -(-max(count, len(faces)) // WARP) * WARP
    groups = groups_of(batch * rows)
    return f"bounds{suffix(vertices)}", groups, vertices, faces, bounds, batch, count, len(faces)


def _clear(bounds: torch.Tensor, words: torch.Tensor, counter: torch.Tensor | None = None) -> Launch:
    """All become 0; `words` and the counter are of 32 bits."""
    count = words.numel()
    bound_words = bounds.numel() * bounds.element_size() // 4
    first = words if counter is None else counter
    return "clear", groups_of(max(count, bound_words)), words, bounds, first, count, bound_words


def _prepare(
    vertices: torch.Tensor, faces: torch.Tensor, bounds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Launch]:
    """Room for a batch's triangles (B, F, 20) and balls (B, F, 4), and what fills it once the bounds are known."""
    batch, count, _ = vertices.shape
    triangles = vertices.new_empty(batch, len(faces), TRIANGLE_FIELDS)
    balls = vertices.new_empty(batch, len(faces), BALL_FIELDS)
    sizes = (batch, count, len(faces))
    name = f"prepare{suffix(vertices)}"
    launch = (name, groups_of(batch * len(faces)), vertices, faces, bounds, triangles, balls, *sizes)
    return triangles, balls, launch


def _prepare_gradient(vertices: torch.Tensor, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Launch]:
    """Room for a batch's triangles (B, F, 20) and which corner is each one's first (B, F), and what fills it."""
    batch, count, _ = vertices.shape
    triangles = vertices.new_empty(batch, len(faces), TRIANGLE_FIELDS)
    first = torch.empty(batch, len(faces), dtype=torch.int32, device=vertices.device)
    name = f"prepare_gradient{suffix(vertices)}"
    sizes = (batch, count, len(faces))
    return triangles, first, (name, groups_of(batch * len(faces)), vertices, faces, triangles, first, *sizes)


def prepare_triangles(kernels: Kernels, vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Each item's triangles (B, F, 20), as the kernels read them."""
    triangles, _, launch = _prepare_gradient(vertices.contiguous(), faces.contiguous())
    kernels.run(vertices.device, launch)
    return triangles


def _cross(
    vertices: torch.Tensor,
    faces: torch.Tensor,
    bounds: torch.Tensor,
    inside: torch.Tensor,
    normalised: bool,
) -> list[Launch]:
    """What makes of zeros (B, X, Y, Z) in int32 whether each voxel is inside."""
    batch, count, _ = vertices.shape
    _, *shape = inside.shape
    groups = warp_groups_of(batch * len(faces))
    name = f"cross_faces{suffix(vertices)}"
    sizes = (batch, count, len(faces), *shape)
    columns = batch * shape[0] * shape[1]
    # First the changes of the winding number along each column, then their sums in place.
    return [
        (name, groups, vertices, faces, bounds, inside, *sizes, int(normalised)),
        ("accumulate", warp_groups_of(columns), inside, columns, shape[2]),
    ]


def _cubes(shape: Sequence[int], side: int) -> int:
    """How many cubes of so many voxels along cover a grid."""
    return math.prod(-(-n // side) for n in shape)


def mesh2sdf(
    kernels: Kernels, vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `implicitmeshnet.ops.mesh2sdf`. Nothing waits for the device: faces out of range give NaN, not an error."""
    vertices, faces = _readable_mesh(vertices, faces)
    batch, device, kind = len(vertices), vertices.device, suffix(vertices)
    sdf = vertices.new_empty(batch, *shape)
    face = torch.empty(batch, *shape, dtype=torch.int32, device=device)  # inside or not, until the solver replaces it
    bounds = _bounds(vertices)
    triangles, balls, preparing = _prepare(vertices, faces, bounds)
    blocks, tiles = batch * _cubes(shape, BLOCK), batch * _cubes(shape, TILE)
    capacity = min(len(faces), BLOCK_FACES)
    # What the kernels work with: each block's list and its length; the crowded tiles, and how many these are.
    work = torch.empty(blocks * (capacity + 1) + tiles + 1, dtype=torch.int32, device=device)
    lists, listed, crowd, crowded = work.split([blocks * capacity, blocks, tiles, 1])
    mesh = (triangles, balls, bounds)
    sizes = (capacity, len(faces), *shape)
    search = (*mesh, lists, listed, crowd, crowded, sdf, face, *sizes)
    crowded_groups = min(tiles, CROWDED_GROUPS)
    kernels.run(
        device,
        _clear(bounds, face, crowded),
        _find_bounds(vertices, faces, bounds),
        preparing,
        *_cross(vertices, faces, bounds, face, normalised=True),
        (f"list_faces{kind}", blocks, *mesh, lists, listed, *sizes),
        (f"solve{kind}", batch * _cubes(shape, BOX), *search),
        (f"solve_crowded{kind}", crowded_groups, *search, crowded_groups),
    )
    return sdf, face


def mesh2sdf_backward(
    kernels: Kernels,
    grad: torch.Tensor,
    vertices: torch.Tensor,
    faces: torch.Tensor,
    sdf: torch.Tensor,
    face: torch.Tensor,
) -> torch.Tensor:
    """Sums by atomic additions, in any order; in fixed point where torch is to be deterministic.

    Metal and float64 have no such sums, and run the reference then.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic and not _sums_in_fixed_point(kernels, vertices):
        return reference.mesh2sdf_backward(grad, vertices, faces, sdf, face)
    check_size(sdf, (len(vertices), *sdf.shape[1:]), "sdf")
    check_size(grad, sdf.shape, "grad")
    check_size(face, sdf.shape, "face")
    vertices, faces = _readable_mesh(vertices, faces)
    grad, sdf = (each.to(vertices.dtype).contiguous() for each in (grad, sdf))
    face = face.int().contiguous()
    triangles, first, preparing = _prepare_gradient(vertices, faces)
    batch, x, y, z = sdf.shape
    mesh = (triangles, faces, first)
    sizes = (batch, vertices.shape[1], len(faces), x, y, z)
    groups = 2 * batch * _cubes((x, y, z), BLOCK)

    def launch(name: str, result: torch.Tensor, *scale: torch.Tensor) -> None:
        kernels.run(vertices.device, preparing, (name, groups, grad, *mesh, sdf, face, result, *scale, *sizes))

    if deterministic:
        terms = Terms(grad, vertices, x * y * z)
        return _fixed_point_sum(vertices.shape, terms, lambda *to: launch("differentiate_fixed", *to))
    result = torch.zeros_like(vertices)
    launch(f"differentiate{suffix(vertices)}", result)
    return result


def _sums_in_fixed_point(kernels: Kernels, values: torch.Tensor) -> bool:
    return kernels.FIXED_POINT and values.dtype == torch.float32


class Terms(NamedTuple):
    """What the terms of sums are made of: none is larger than the largest value, a sum has at most `most`."""

    values: torch.Tensor
    vertices: torch.Tensor
    most: int


def _fixed_point_sum(
    size: Sequence[int],
    terms: Terms,
    add: Callable[[torch.Tensor, torch.Tensor], None],
    layout: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """Sums in float32 that do not depend on the order of their terms, by whole numbers of 64 bits.

    add(sums, scale) adds terms times the scale, a float64, to int64 zeros of a size. So a term is right to 2^-60 most
    of the largest value. All is NaN where a value or a vertex is not finite, which whole numbers cannot tell.
    """
    values = terms.values
    largest = values.abs().amax() if values.numel() else values.new_zeros(())
    largest = largest + 0 * terms.vertices.sum()
    bits = 61 - max(terms.most, 1).bit_length()
    scale = torch.ldexp(torch.ones((), dtype=torch.float64, device=values.device), bits - torch.frexp(largest).exponent)
    sums = torch.empty(size, dtype=torch.int64, device=values.device, memory_format=layout).zero_()
    add(sums, scale)
    return torch.where(largest.isfinite(), sums / scale, torch.nan).float()


def voxelize(kernels: Kernels, vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """See `implicitmeshnet.ops.voxelize`. Nothing waits for the device: nothing is inside where the CPU would raise."""
    vertices, faces = _readable_mesh(vertices[None], faces)
    bounds = _bounds(vertices)
    inside = torch.empty(1, *shape, dtype=torch.int32, device=vertices.device)
    kernels.run(
        vertices.device,
        _clear(bounds, inside),
        _find_bounds(vertices, faces, bounds),
        *_cross(vertices, faces, bounds, inside, normalised=False),
    )
    return inside[0].bool()


def splat(
    kernels: Kernels,
    vertices: torch.Tensor,
    features: torch.Tensor,
    shape: Sequence[int],
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Sums by atomic additions, in any order; in fixed point where torch is to be deterministic.

    Metal and float64 have no such sums, and run the reference then.
    """
    check_batched_points(vertices)
    batch, count, _ = vertices.shape
    check_size(features, (batch, count, features.shape[-1]), "features")
    dtype = dtype or features.dtype
    deterministic = torch.are_deterministic_algorithms_enabled()
    if deterministic and not _sums_in_fixed_point(kernels, vertices):
        return reference.splat(vertices, features, shape, channels_last, dtype)
    vertices = vertices.contiguous()
    features = features.to(vertices.dtype).contiguous()
    layout = reference.memory_format(channels_last)
    size = (batch, features.shape[2], *shape)
    groups = groups_of(features.numel())

    def launch(name: str, volume: torch.Tensor, *scale: torch.Tensor) -> None:
        sizes = (batch, count, *_layout(volume))
        kernels.run(vertices.device, (name, groups, vertices, features, volume, *scale, *sizes))

    if deterministic:
        terms = Terms(features, vertices, count)
        volume = _fixed_point_sum(size, terms, lambda *to: launch("splat_fixed", *to), layout)
        return volume.to(dtype)
    volume = torch.empty(size, dtype=vertices.dtype, device=vertices.device, memory_format=layout).zero_()
    launch(f"splat{suffix(vertices)}", volume)
    return volume.to(dtype)


def _layout(volume: torch.Tensor) -> tuple[int, ...]:
    """Channels, sizes and strides of a volume, as the kernels take them."""
    return *volume.shape[1:], *volume.stride()


def _readable(volume: torch.Tensor, vertices: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The volume in a dtype that a kernel reads beside these vertices, and what ends that kernel's name."""
    if volume.dtype == torch.bfloat16 and vertices.dtype == torch.float32:
        return volume, "_bfloat16"
    return volume.to(vertices.dtype), suffix(vertices)


def gather(kernels: Kernels, volumes: Sequence[torch.Tensor], vertices: torch.Tensor) -> torch.Tensor:
    """See `implicitmeshnet.ops.sample_trilinear`, of a list."""
    check_batched_points(vertices)
    vertices = vertices.contiguous()
    batch, count, _ = vertices.shape
    row = sum(volume.shape[1] for volume in volumes)  # channels of all volumes
    result = vertices.new_empty(batch, count, row)
    first = 0  # where the volume's channels go in a row
    for volume in volumes:
        check_volume(volume, vertices)
        values, name = _readable(volume, vertices)
        groups = groups_of(batch * count * volume.shape[1])
        sizes = (batch, count, row, first, *_layout(values))
        kernels.run(vertices.device, (f"gather{name}", groups, values, vertices, result, *sizes))
        first += volume.shape[1]
    return result


def position_gradient(
    kernels: Kernels, volumes: Sequence[torch.Tensor], vertices: torch.Tensor, features: torch.Tensor
) -> torch.Tensor:
    """The gradient (B, V, 3) of sum(gather(volumes, vertices) * features) by the vertices; features (B, V, C)."""
    check_batched_points(vertices)
    vertices = vertices.contiguous()
    features = features.to(vertices.dtype).contiguous()
    batch, count, _ = vertices.shape
    row = sum(volume.shape[1] for volume in volumes)
    check_size(features, (batch, count, row), "features")
    result = torch.zeros_like(vertices)
    groups = warp_groups_of(batch * count)
    first = 0
    for volume in volumes:
        check_volume(volume, vertices)
        values, name = _readable(volume, vertices)
        name = f"position_gradient{name}"
        sizes = (batch, count, row, first, *_layout(values))
        kernels.run(vertices.device, (name, groups, values, vertices, features, result, *sizes))
        first += volume.shape[1]
    return result


def splat_backward(
    kernels: Kernels, grad: torch.Tensor, vertices: torch.Tensor, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients by vertices and features of sum(splat(vertices, features) * grad)."""
    by_position = position_gradient(kernels, [grad], vertices, features)
    by_features = gather(kernels, [grad], vertices)
    return by_position, by_features.to(features.dtype)


PART_VOXELS, MOST_PARTS = 256, 512
"""Voxels of a part of an item that a group norms, at least, and parts of an item, at most."""


class NormCut(NamedTuple):
    """How the items of a volume are cut for `csrc/instance_norm.cu`, whose kernels take these numbers last."""

    channels: int
    voxels: int
    parts: int
    part: int  # voxels


def _norm_cut(volume: torch.Tensor) -> NormCut:
    voxels = math.prod(volume.shape[2:])
    parts = min(-(-voxels // PART_VOXELS), MOST_PARTS)
    part = -(-voxels // parts)
    return NormCut(volume.shape[1], voxels, -(-voxels // part), part)


def _is_normed(volume: torch.Tensor) -> bool:
    """Whether there are kernels for it: numbers, and not float16."""
    return volume.numel() > 0 and volume.dtype in (torch.bfloat16, torch.float32, torch.float64)


def _channels_last(volume: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return volume.to(dtype).contiguous(memory_format=torch.channels_last_3d)


def _whole(volume: torch.Tensor) -> torch.dtype:
    """What the kernels compute in, and take weights and moments in."""
    return torch.float64 if volume.dtype == torch.float64 else torch.float32


def _check_coefficients(
    volume: torch.Tensor, of_channels: Sequence[torch.Tensor], of_items: Sequence[torch.Tensor]
) -> None:
    """Raise ValueError unless these are (C,) and those (B, C): the kernels read as many."""
    for each in of_channels:
        check_size(each, volume.shape[1:2], "a channel's weight or bias")
    for each in of_items:
        check_size(each, volume.shape[:2], "a multiplier or moment")


def _bits(number: float) -> int:
    """A double as the integer of the same bits: kernels take integers and pointers alone."""
    return struct.unpack("q", struct.pack("d", number))[0]


def instance_norm_leaky_relu(
    kernels: Kernels,
    volume: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    multiplier: torch.Tensor | None,
    slope: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `reference.instance_norm_leaky_relu`."""
    if not _is_normed(volume):
        return reference.instance_norm_leaky_relu(volume, weight, bias, residual, multiplier, slope)
    _check_coefficients(volume, (weight, bias), () if multiplier is None else (multiplier,))
    if residual is not None:
        check_size(residual, volume.shape, "residual")
    volume = _channels_last(volume, volume.dtype)
    summand = 0 if residual is None else _channels_last(residual, volume.dtype)
    whole = _whole(volume)
    factor = 0 if multiplier is None else multiplier.to(whole).contiguous()
    weight, bias = weight.to(whole).contiguous(), bias.to(whole).contiguous()
    result = torch.empty_like(volume, memory_format=torch.channels_last_3d)
    mean = weight.new_empty(volume.shape[:2])
    scale = torch.empty_like(mean)
    cut = _norm_cut(volume)
    means = weight.new_empty(len(volume), cut.parts, cut.channels)
    squares = torch.empty_like(means)
    stored = "_bfloat16" if volume.dtype == torch.bfloat16 else suffix(volume)
    groups = len(volume) * cut.parts
    coefficients = (weight, bias, factor, mean, scale, _bits(slope))
    kernels.run(
        volume.device,
        (f"moments{stored}", groups, volume, means, squares, *cut),
        (f"normalise{suffix(weight)}", warp_groups_of(mean.numel()), means, squares, mean, scale, mean.numel(), *cut),
        (f"activate{stored}", groups, volume, summand, result, *coefficients, *cut),
    )
    return result, mean, scale


def instance_norm_leaky_relu_backward(
    kernels: Kernels,
    grad: torch.Tensor,
    volume: torch.Tensor,
    result: torch.Tensor,
    weight: torch.Tensor,
    multiplier: torch.Tensor | None,
    mean: torch.Tensor,
    scale: torch.Tensor,
    slope: float,
    summed: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `reference.instance_norm_leaky_relu_backward`."""
    if not _is_normed(volume):
        given = (grad, volume, result, weight, multiplier, mean, scale)
        return reference.instance_norm_leaky_relu_backward(*given, slope, summed)
    check_size(grad, volume.shape, "grad")
    check_size(result, volume.shape, "result")
    _check_coefficients(volume, (weight,), (mean, scale) if multiplier is None else (multiplier, mean, scale))
    grad, volume, result = (_channels_last(each, volume.dtype) for each in (grad, volume, result))
    whole = _whole(volume)
    factor = 0 if multiplier is None else multiplier.to(whole).contiguous()
    weight, mean, scale = (each.to(whole).contiguous() for each in (weight, mean, scale))
    by_volume = torch.empty_like(volume, memory_format=torch.channels_last_3d)
    by_residual = torch.empty_like(by_volume) if summed else volume.new_empty(0)
    written = by_residual if summed else by_volume  # the gradient by the sum before the activation
    cut = _norm_cut(volume)
    sums = weight.new_empty(len(volume), cut.parts, cut.channels)
    products = torch.empty_like(sums)
    constant, by_offset = torch.empty_like(mean), torch.empty_like(mean)
    by_weight = torch.empty_like(mean, dtype=torch.float64)
    by_bias = torch.empty_like(by_weight)
    stored = "_bfloat16" if volume.dtype == torch.bfloat16 else suffix(volume)
    groups, channels = len(volume) * cut.parts, mean.numel()
    gathered = (by_weight, by_bias, constant, by_offset)
    kernels.run(
        volume.device,
        (f"reduce{stored}", groups, grad, volume, result, written, factor, mean, sums, products, _bits(slope), *cut),
        (
            f"gather_sums{suffix(weight)}",
            warp_groups_of(channels),
            *(sums, products, weight, scale, *gathered, channels, *cut[:3]),
        ),
        (
            f"differentiate_norm{stored}",
            groups,
            *(written, volume, by_volume, weight, mean, scale, constant, by_offset, *cut),
        ),
    )
    return by_volume, by_weight.sum(0).to(weight.dtype), by_bias.sum(0).to(weight.dtype), by_residual


class Rows(NamedTuple):
    """Which channels of the rows of features are summed, and where they go in the rows of the result."""

    channels: int
    stride: int
    first: int
    wide: int
    start: int
    own: int  # 1 where the features' first channels are added


def _sum_neighbours(
    kernels: Kernels,
    features: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    result: torch.Tensor,
    rows: Rows,
) -> torch.Tensor:
    if features.shape[-2] != len(index):
        raise ValueError(f"features: wanted shape (..., {len(index)}, C), found {tuple(features.shape)}")
    check_size(weight, index.shape, "weight")
    features, index = features.contiguous(), index.long().contiguous()
    weight = weight.to(features.dtype).contiguous()
    count = features.numel() // max(rows.stride, 1)
    launch = (f"neighbour_sum{suffix(features)}", warp_groups_of(count), features, index, weight, result)
    kernels.run(features.device, (*launch, count, *index.shape, *rows))
    return result


def neighbour_sum(
    kernels: Kernels, features: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, own: bool
) -> torch.Tensor:
    """See `implicitmeshnet.ops.neighbour_sum`; what is no vertex is moved into range."""
    stride = features.shape[-1]
    channels = stride // 2 if own else stride
    result = features.new_empty(*features.shape[:-1], channels)
    rows = Rows(channels, stride, stride - channels, channels, 0, int(own))
    return _sum_neighbours(kernels, features, index, weight, result, rows)


def neighbour_sum_backward(
    kernels: Kernels, grad: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, own: bool
) -> torch.Tensor:
    """The gradient by the features of sum(neighbour_sum(features) * grad), the operator being symmetric."""
    channels = grad.shape[-1]
    wide = 2 * channels if own else channels
    result = grad.new_empty(*grad.shape[:-1], wide)
    if own:
        result[..., :channels] = grad
    rows = Rows(channels, channels, 0, wide, wide - channels, 0)
    return _sum_neighbours(kernels, grad, index, weight, result, rows)
