"""The ops on CUDA and MPS tensors: one host side for both, over kernels that are started by name.

CUDA's come from the library that setup.py builds, Metal's are compiled from csrc/ on first use.
"""

import contextlib
import ctypes
import functools
import math
import re
import warnings
from pathlib import Path

import torch

from implicitmeshnet.ops import reference
from implicitmeshnet.ops._checks import check_size, check_volume

GROUP, WARP, BLOCK, RUN = 256, 32, 16, 8
"""As in csrc/: threads of every group and of a warp, voxels along a group's block, and along a thread's run."""
CSRC = Path(__file__).parents[2] / "csrc"
_SUFFIX = {torch.float32: "_float", torch.float64: "_double"}


def metal_source(path: Path) -> str:
    """The text of a .metal file with the headers of its own folder in place, each once."""
    seen = set()

    def inline(path):
        if path in seen:
            return ""
        seen.add(path)
        text = path.read_text().replace("#pragma once", "")
        return re.sub(r'^#include "(.+)"$', lambda match: inline(path.parent / match[1]), text, flags=re.MULTILINE)

    return inline(path)


def kernel_names(source: str) -> list[str]:
    """The kernels that Metal source defines."""
    return re.findall(r"^kernel void (\w+)\(", source, re.MULTILINE)


def _warn_unusable(reason):
    warnings.warn(f"implicitmeshnet: the ops run in plain PyTorch, slowly, as {reason}", stacklevel=2)


def _check_groups(kernel, groups, most):
    if groups > most:
        raise ValueError(
            f"{kernel}: wanted at most {most} groups of {GROUP} threads on the device, found {groups}: too"
            " many voxels or vertices at once"
        )


class MetalKernels:
    """The kernels of one .metal file, on MPS tensors; compiled on first use."""

    MOST_GROUPS = (2**32 - 1) // GROUP
    """Metal counts a grid's threads in 32 bits."""

    def __init__(self, name):
        self.path = CSRC / f"{name}.metal"

    @functools.cached_property
    def library(self):
        """What torch compiled, None where it did not or where groups or warps are not those that the kernels mean."""
        try:
            source = metal_source(self.path)
            library = torch.mps.compile_shader(source)
            for name in kernel_names(source):
                self._check_kernel(name, getattr(library, name))
        except (OSError, RuntimeError, SyntaxError) as error:  # no csrc/ beside the package, or not Metal's taste
            _warn_unusable(f"{self.path} did not compile for Metal ({error})")
            return None
        return library

    def _check_kernel(self, name, kernel):
        if kernel.max_threads_per_threadgroup < GROUP:
            raise RuntimeError(f"{name}: wanted groups of {GROUP} threads, found {kernel.max_threads_per_threadgroup}")
        if kernel.thread_execution_width != WARP:
            raise RuntimeError(f"{name}: wanted warps of {WARP} threads, found {kernel.thread_execution_width}")

    def usable(self, device) -> bool:
        return self.library is not None

    def launch(self, kernel, groups, device, *arguments):
        _check_groups(kernel, groups, self.MOST_GROUPS)
        if groups > 0:
            getattr(self.library, kernel)(*arguments, threads=[groups * GROUP], group_size=[GROUP])


class CudaKernels:
    """The kernels of a library of C functions `imn_KERNEL(arguments, groups, stream)`, on CUDA tensors."""

    MOST_GROUPS = 2**31 - 1
    """CUDA's limit along a grid's first axis."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self._runs = {}

    def usable(self, device) -> bool:
        """Whether kernels start on the device, by one that does nothing; where not, one warning says why."""
        if device not in self._runs:
            try:
                self.launch("accumulate", 1, device, 0, 0, 0)
                self._runs[device] = True
            except (RuntimeError, AttributeError) as error:  # the driver too old, no code for the device, or not ours
                _warn_unusable(f"the compiled CUDA kernels do not run on {device} ({error})")
                self._runs[device] = False
        return self._runs[device]

    def launch(self, kernel, groups, device, *arguments):
        _check_groups(kernel, groups, self.MOST_GROUPS)
        if groups == 0:
            return
        values = [ctypes.c_int64(a.data_ptr() if isinstance(a, torch.Tensor) else a) for a in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        with self._current(device) as stream:
            code = getattr(self.library, f"imn_{kernel}")(pointers, ctypes.c_int64(groups), ctypes.c_void_p(stream))
        if code:
            torch.cuda.check_error(code)

    @contextlib.contextmanager
    def _current(self, device):
        with torch.cuda.device(device):
            yield torch.cuda.current_stream(device).cuda_stream


def groups_of(count: int) -> int:
    """How many groups give each of `count` pieces of work a thread."""
    return -(-count // GROUP)


def suffix(tensor) -> str:
    """What ends the name of a kernel for this tensor's dtype."""
    return _SUFFIX[tensor.dtype]


def prepare(kernels, vertices, faces):
    """Each item's triangles (B, F, 20), balls (B, F, 4) and first corners (B, F), and the slack (B,) for rounding."""
    batch, count = vertices.shape[:2]
    slack = 32 * torch.finfo(vertices.dtype).eps * reference.extent(vertices, _in_range(faces, count))
    triangles = vertices.new_empty(batch, len(faces), 20)
    balls = vertices.new_empty(batch, len(faces), 4)
    first = torch.empty(batch, len(faces), dtype=torch.int32, device=vertices.device)
    kernels.launch(
        f"prepare{suffix(vertices)}",
        groups_of(batch * len(faces)),
        vertices.device,
        vertices,
        faces,
        slack,
        triangles,
        balls,
        first,
        batch,
        count,
        len(faces),
    )
    return triangles, balls, first, slack


def _in_range(faces, vertex_count):
    """Indices that can be read without a fault, for faces that may be out of range."""
    return faces.clamp(0, vertex_count - 1)


def _inside(kernels, vertices, faces, shape, normalised):
    """Whether each voxel is inside: int32 (B, X, Y, Z), 0 or 1."""
    batch, count = vertices.shape[:2]
    used = vertices[:, _in_range(faces, count).flatten(), :2]
    largest = max(shape[:2])
    reach = ((used.abs() + 1) * (largest / 2) if normalised else used.abs()).amax((1, 2)).clamp(min=largest)
    inside = torch.zeros(batch, *shape, dtype=torch.int32, device=vertices.device)
    warps = GROUP // WARP
    kernels.launch(
        f"cross_faces{suffix(vertices)}",
        -(-batch * len(faces) // warps),
        vertices.device,
        vertices,
        faces,
        reach,
        inside,
        batch,
        count,
        len(faces),
        *shape,
        int(normalised),
    )
    columns = batch * shape[0] * shape[1]
    kernels.launch("accumulate", groups_of(columns), vertices.device, inside, columns, shape[2])
    return inside


def mesh2sdf(kernels, vertices, faces, shape):
    """See `implicitmeshnet.ops.mesh2sdf`. Nothing waits for the device: faces out of range give NaN, not an error."""
    vertices, faces = vertices.contiguous(), faces.contiguous()
    if 0 in (len(faces), vertices.shape[1]):
        reference.check_faces(faces, vertices.shape[1])
    in_range = (faces == _in_range(faces, vertices.shape[1])).all()
    valid = in_range & (vertices.abs() <= reference.LIMIT).flatten(1).all(1)
    triangles, balls, _, slack = prepare(kernels, vertices, faces)
    face = _inside(kernels, vertices, faces, shape, normalised=True)
    sdf = vertices.new_empty(face.shape)
    blocks = len(vertices) * math.prod(-(-n // BLOCK) for n in shape)
    kernels.launch(
        f"solve{suffix(vertices)}",
        blocks,
        vertices.device,
        triangles,
        balls,
        slack,
        valid.int(),
        sdf,
        face,
        len(faces),
        *shape,
    )
    return sdf, face


def mesh2sdf_backward(kernels, grad, vertices, faces, sdf, face):
    """Sums by atomic additions, in any order; in the reference's fixed one where torch is to be deterministic."""
    if torch.are_deterministic_algorithms_enabled():
        return reference.mesh2sdf_backward(grad, vertices, faces, sdf, face)
    check_size(sdf, (len(vertices), *sdf.shape[1:]), "sdf")
    check_size(grad, sdf.shape, "grad")
    check_size(face, sdf.shape, "face")
    grad, vertices, faces = grad.contiguous(), vertices.contiguous(), faces.contiguous()
    triangles, _, first, slack = prepare(kernels, vertices, faces)
    result, shape = torch.zeros_like(vertices), sdf.shape[1:]
    runs = len(vertices) * shape[0] * shape[1] * -(-shape[2] // RUN)
    kernels.launch(
        f"differentiate{suffix(vertices)}",
        groups_of(runs),
        vertices.device,
        grad,
        triangles,
        faces,
        first,
        slack,
        sdf.contiguous(),
        face.contiguous(),
        result,
        *vertices.shape[:2],
        len(faces),
        *shape,
    )
    return result


def voxelize(kernels, vertices, faces, shape):
    """See `implicitmeshnet.ops.voxelize`."""
    reference.check_faces(faces, len(vertices))
    return _inside(kernels, vertices.contiguous()[None], faces.contiguous(), shape, normalised=False)[0].bool()


def splat(kernels, vertices, features, shape, channels_last=False, dtype=None):
    """Sums by atomic additions, in any order; in the reference's fixed one where torch is to be deterministic."""
    check_size(features, (*vertices.shape[:2], features.shape[-1]), "features")
    dtype = dtype or features.dtype
    if torch.are_deterministic_algorithms_enabled():
        return reference.splat(vertices, features, shape, channels_last, dtype)
    vertices, features = vertices.contiguous(), features.to(vertices.dtype).contiguous()
    volume = torch.empty(
        len(vertices),
        features.shape[2],
        *shape,
        dtype=vertices.dtype,
        device=vertices.device,
        memory_format=reference.memory_format(channels_last),
    ).zero_()
    kernels.launch(
        f"splat{suffix(vertices)}",
        groups_of(features.numel()),
        vertices.device,
        vertices,
        features,
        volume,
        *vertices.shape[:2],
        *_layout(volume),
    )
    return volume.to(dtype)


def _layout(volume):
    """Channels, sizes and strides of a volume, as the kernels take them."""
    return *volume.shape[1:], *volume.stride()


def _readable(volume, vertices):
    """A volume of a dtype that a kernel reads beside vertices of theirs, and what ends the kernel's name."""
    if volume.dtype == torch.bfloat16 and vertices.dtype == torch.float32:
        return volume, "_bfloat16"
    return volume.to(vertices.dtype), suffix(vertices)


def gather(kernels, volumes, vertices):
    """See `implicitmeshnet.ops.sample_trilinear`, of a list."""
    vertices, row, first = vertices.contiguous(), sum(volume.shape[1] for volume in volumes), 0
    result = vertices.new_empty(*vertices.shape[:2], row)
    for volume in volumes:
        check_volume(volume, vertices)
        volume, name = _readable(volume, vertices)
        work = vertices.shape[0] * vertices.shape[1] * volume.shape[1]
        kernels.launch(
            f"gather{name}",
            groups_of(work),
            vertices.device,
            volume,
            vertices,
            result,
            *vertices.shape[:2],
            row,
            first,
            *_layout(volume),
        )
        first += volume.shape[1]
    return result


def position_gradient(kernels, volumes, vertices, features):
    """The gradient (B, V, 3) of sum(gather(volumes, vertices) * features) by the vertices; features (B, V, C)."""
    vertices, features, first = vertices.contiguous(), features.to(vertices.dtype).contiguous(), 0
    result, row = torch.zeros_like(vertices), sum(volume.shape[1] for volume in volumes)
    check_size(features, (*vertices.shape[:2], row), "features")
    warps = GROUP // WARP
    for volume in volumes:
        check_volume(volume, vertices)
        volume, name = _readable(volume, vertices)
        kernels.launch(
            f"position_gradient{name}",
            -(-vertices.shape[0] * vertices.shape[1] // warps),
            vertices.device,
            volume,
            vertices,
            features,
            result,
            *vertices.shape[:2],
            row,
            first,
            *_layout(volume),
        )
        first += volume.shape[1]
    return result


def splat_backward(kernels, grad, vertices, features):
    """The gradients by vertices and features of sum(splat(vertices, features) * grad)."""
    return position_gradient(kernels, [grad], vertices, features), gather(kernels, [grad], vertices).to(features.dtype)
