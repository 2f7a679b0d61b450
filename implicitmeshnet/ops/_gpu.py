"""The ops on CUDA and MPS tensors: one host side for both, over kernels that are started by name.

CUDA's come from the library that setup.py builds, Metal's are compiled from csrc/ on first use.
"""

import contextlib
import ctypes
import functools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from implicitmeshnet.ops import reference
from implicitmeshnet.ops._checks import check_size, check_volume

# As in csrc/gpu.h and csrc/mesh2sdf_gpu.h.
GROUP = 256
"""Threads of every group."""
WARP = 32
"""Threads of a warp."""
BLOCK = 16
"""Voxels along the block that a group finds distances for."""
RUN = 8
"""Voxels along the run that a thread differentiates."""
TRIANGLE_FIELDS = 20
"""Numbers that stand for a triangle."""
BALL_FIELDS = 4
"""Numbers that stand for a ball."""
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


class MetalKernels:
    """The kernels of one .metal file, on MPS tensors; compiled on first use."""

    MOST_GROUPS = (2**32 - 1) // GROUP
    """Metal counts a grid's threads in 32 bits."""

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

    def launch(self, kernel: str, groups: int, device: torch.device, *arguments: torch.Tensor | int) -> None:
        """Start `groups` groups of a kernel with these tensors and integers; ValueError for more than Metal takes."""
        _check_groups(kernel, groups, self.MOST_GROUPS)
        if groups > 0:
            getattr(self.library, kernel)(*arguments, threads=[groups * GROUP], group_size=[GROUP])


class CudaKernels:
    """The kernels of a library of C functions `imn_KERNEL(arguments, groups, stream)`, on CUDA tensors."""

    MOST_GROUPS = 2**31 - 1
    """CUDA's limit along a grid's first axis."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        self._runs: dict[torch.device, bool] = {}

    def usable(self, device: torch.device) -> bool:
        """Whether kernels start on the device, which one that does nothing shows; if not, one warning says why."""
        if device not in self._runs:
            try:
                self.launch("accumulate", 1, device, 0, 0, 0)
                self._runs[device] = True
            except (RuntimeError, AttributeError) as error:  # the driver too old, no code for the device, or not ours
                _warn_unusable(f"the compiled CUDA kernels do not run on {device} ({error})")
                self._runs[device] = False
        return self._runs[device]

    def launch(self, kernel: str, groups: int, device: torch.device, *arguments: torch.Tensor | int) -> None:
        """Start `groups` groups of a kernel with these tensors and integers on the device's current stream.

        ValueError for more groups than CUDA takes, and what torch raises for CUDA's errors. Nothing waits for the
        kernel.
        """
        _check_groups(kernel, groups, self.MOST_GROUPS)
        if groups == 0:
            return
        # cudaLaunchKernel wants a pointer to each argument; a tensor's is its address, so all have 64 bits.
        values = [ctypes.c_int64(a.data_ptr() if isinstance(a, torch.Tensor) else a) for a in arguments]
        addresses = [ctypes.addressof(value) for value in values]
        pointers = (ctypes.c_void_p * len(values))(*addresses)
        start = getattr(self.library, f"imn_{kernel}")
        with self._current(device) as stream:
            code = start(pointers, ctypes.c_int64(groups), ctypes.c_void_p(stream))
        if code:
            torch.cuda.check_error(code)

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


def prepare(
    kernels: Kernels, vertices: torch.Tensor, faces: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each item's triangles (B, F, 20), balls (B, F, 4) and first corners (B, F), and the slack (B,) for rounding."""
    batch, count, _ = vertices.shape
    extent = reference.extent(vertices, _in_range(faces, count))
    slack = 32 * torch.finfo(vertices.dtype).eps * extent
    triangles = vertices.new_empty(batch, len(faces), TRIANGLE_FIELDS)
    balls = vertices.new_empty(batch, len(faces), BALL_FIELDS)
    first = torch.empty(batch, len(faces), dtype=torch.int32, device=vertices.device)
    meshes, sizes = (vertices, faces), (batch, count, len(faces))
    groups = groups_of(batch * len(faces))
    name = f"prepare{suffix(vertices)}"
    kernels.launch(name, groups, vertices.device, *meshes, slack, triangles, balls, first, *sizes)
    return triangles, balls, first, slack


def _in_range(faces: torch.Tensor, vertex_count: int) -> torch.Tensor:
    """Indices that can be read without a fault, for faces that may be out of range."""
    return faces.clamp(0, vertex_count - 1)


def _reach(vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int], normalised: bool) -> torch.Tensor:
    """How many voxels from the grid's first the vertices in use or the grid itself reach along X and Y: (B,)."""
    used = vertices[:, _in_range(faces, vertices.shape[1]).flatten(), :2].abs()
    largest = max(shape[:2])
    voxels = (used + 1) * (largest / 2) if normalised else used
    return voxels.amax((1, 2)).clamp(min=largest)


def _inside(
    kernels: Kernels, vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int], normalised: bool
) -> torch.Tensor:
    """Whether each voxel is inside: int32 (B, X, Y, Z), 0 or 1."""
    batch, count, _ = vertices.shape
    device = vertices.device
    reach = _reach(vertices, faces, shape, normalised)
    inside = torch.zeros(batch, *shape, dtype=torch.int32, device=device)
    groups = warp_groups_of(batch * len(faces))
    name = f"cross_faces{suffix(vertices)}"
    sizes = (batch, count, len(faces), *shape)
    # First the changes of the winding number along each column, then their sums in place.
    kernels.launch(name, groups, device, vertices, faces, reach, inside, *sizes, int(normalised))
    columns = batch * shape[0] * shape[1]
    kernels.launch("accumulate", groups_of(columns), device, inside, columns, shape[2])
    return inside


def _valid(vertices: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Which items (B,) have a distance: faces that are all in range, and vertices within the limit."""
    in_range = (faces == _in_range(faces, vertices.shape[1])).all()
    return in_range & (vertices.abs() <= reference.LIMIT).flatten(1).all(1)


def mesh2sdf(
    kernels: Kernels, vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `implicitmeshnet.ops.mesh2sdf`. Nothing waits for the device: faces out of range give NaN, not an error."""
    vertices = vertices.contiguous()
    faces = faces.contiguous()
    if 0 in (len(faces), vertices.shape[1]):
        reference.check_faces(faces, vertices.shape[1])
    valid = _valid(vertices, faces).int()
    triangles, balls, _, slack = prepare(kernels, vertices, faces)
    face = _inside(kernels, vertices, faces, shape, normalised=True)  # the solver replaces it by the closest faces
    sdf = vertices.new_empty(face.shape)
    blocks = [-(-n // BLOCK) for n in shape]
    groups = len(vertices) * math.prod(blocks)
    name = f"solve{suffix(vertices)}"
    kernels.launch(name, groups, vertices.device, triangles, balls, slack, valid, sdf, face, len(faces), *shape)
    return sdf, face


def mesh2sdf_backward(
    kernels: Kernels,
    grad: torch.Tensor,
    vertices: torch.Tensor,
    faces: torch.Tensor,
    sdf: torch.Tensor,
    face: torch.Tensor,
) -> torch.Tensor:
    """Sums by atomic additions, in any order; in the reference's fixed one where torch is to be deterministic."""
    if torch.are_deterministic_algorithms_enabled():
        return reference.mesh2sdf_backward(grad, vertices, faces, sdf, face)
    check_size(sdf, (len(vertices), *sdf.shape[1:]), "sdf")
    check_size(grad, sdf.shape, "grad")
    check_size(face, sdf.shape, "face")
    vertices = vertices.contiguous()
    faces = faces.contiguous()
    triangles, _, first, slack = prepare(kernels, vertices, faces)
    result = torch.zeros_like(vertices)
    batch, x, y, z = sdf.shape
    runs = batch * x * y * -(-z // RUN)
    mesh = (triangles, faces, first, slack)
    distances = (sdf.contiguous(), face.contiguous())
    sizes = (batch, vertices.shape[1], len(faces), x, y, z)
    name = f"differentiate{suffix(vertices)}"
    kernels.launch(name, groups_of(runs), vertices.device, grad.contiguous(), *mesh, *distances, result, *sizes)
    return result


def voxelize(kernels: Kernels, vertices: torch.Tensor, faces: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """See `implicitmeshnet.ops.voxelize`."""
    reference.check_faces(faces, len(vertices))
    batch = vertices.contiguous()[None]
    return _inside(kernels, batch, faces.contiguous(), shape, normalised=False)[0].bool()


def splat(
    kernels: Kernels,
    vertices: torch.Tensor,
    features: torch.Tensor,
    shape: Sequence[int],
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Sums by atomic additions, in any order; in the reference's fixed one where torch is to be deterministic."""
    batch, count, _ = vertices.shape
    check_size(features, (batch, count, features.shape[-1]), "features")
    dtype = dtype or features.dtype
    if torch.are_deterministic_algorithms_enabled():
        return reference.splat(vertices, features, shape, channels_last, dtype)
    vertices = vertices.contiguous()
    features = features.to(vertices.dtype).contiguous()
    layout = reference.memory_format(channels_last)
    size = (batch, features.shape[2], *shape)
    volume = torch.empty(size, dtype=vertices.dtype, device=vertices.device, memory_format=layout).zero_()
    groups = groups_of(features.numel())
    name = f"splat{suffix(vertices)}"
    kernels.launch(name, groups, vertices.device, vertices, features, volume, batch, count, *_layout(volume))
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
        kernels.launch(f"gather{name}", groups, vertices.device, values, vertices, result, *sizes)
        first += volume.shape[1]
    return result


def position_gradient(
    kernels: Kernels, volumes: Sequence[torch.Tensor], vertices: torch.Tensor, features: torch.Tensor
) -> torch.Tensor:
    """The gradient (B, V, 3) of sum(gather(volumes, vertices) * features) by the vertices; features (B, V, C)."""
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
        kernels.launch(name, groups, vertices.device, values, vertices, features, result, *sizes)
        first += volume.shape[1]
    return result


def splat_backward(
    kernels: Kernels, grad: torch.Tensor, vertices: torch.Tensor, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients by vertices and features of sum(splat(vertices, features) * grad)."""
    by_position = position_gradient(kernels, [grad], vertices, features)
    by_features = gather(kernels, [grad], vertices)
    return by_position, by_features.to(features.dtype)
