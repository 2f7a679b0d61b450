"""The op library `implicitmeshnet`: schemas, reference kernels, and the compiled kernels where there are any."""

import functools
import warnings
from pathlib import Path

import torch

from implicitmeshnet.ops._gpu import CudaKernels, MetalKernels

library = torch.library.Library("implicitmeshnet", "DEF")


def _load(pattern, load):
    """What `load` makes of the package's library of that name, or None, and why it is None."""
    for path in sorted(Path(__file__).parents[1].glob(pattern)):
        try:
            return load(path), ""
        except OSError as error:  # built for another torch or another machine
            return None, f" ({path.name} does not load: {error})"
    return None, ""


_compiled, _failure = _load("_C*.so", lambda path: torch.ops.load_library(str(path)) or True)
cuda_kernels, _cuda_failure = _load("_cuda*.so", CudaKernels) if torch.version.cuda else (None, "")
_has_metal = hasattr(torch._C, "_mps_compileShader")


def compiled() -> bool:
    """Whether compiled CPU kernels are loaded; otherwise the ops run their plain-PyTorch reference."""
    return bool(_compiled)


@functools.cache
def _warn_uncompiled(device):
    failure, compiler = (_failure, "a C++ compiler (g++)") if device == "cpu" else (_cuda_failure, "nvcc")
    warnings.warn(
        f"implicitmeshnet: the ops run in plain PyTorch, slowly, as no compiled library for {device} was found"
        f"{failure}; install {compiler} and run `pip install --no-build-isolation -e .`", stacklevel=4)


def _or_reference(gpu, kernels, reference):
    """`gpu` over Metal kernels; the reference, with one warning, where Metal does not take their source."""

    @functools.wraps(reference)
    def op(*args, **kwargs):
        if kernels.usable():
            return gpu(kernels, *args, **kwargs)
        return reference(*args, **kwargs)

    return op


_metal_kernels = functools.cache(MetalKernels)


def define(schema: str, reference, fake, gpu=None, source: str = ""):
    """Define an op with its reference as the default kernel, and its fake kernel; returns the op.

    gpu(kernels, *args) runs the op with `CudaKernels`, or with the `MetalKernels` of csrc/SOURCE.metal; without it
    GPUs run the reference, and no warning says so.
    """
    name = schema.partition("(")[0]
    faster = {"cpu", "cuda"} if gpu else {"cpu"}

    @functools.wraps(reference)
    def default(*args, **kwargs):
        for device in faster & {a.device.type for a in args if isinstance(a, torch.Tensor)}:
            _warn_uncompiled(device)
        return reference(*args, **kwargs)

    library.define(schema)
    library.impl(name, default, "CompositeExplicitAutograd")
    if gpu and cuda_kernels:
        library.impl(name, functools.partial(gpu, cuda_kernels), "CUDA")
    if gpu and _has_metal:
        library.impl(name, _or_reference(gpu, _metal_kernels(source), reference), "MPS")
    torch.library.register_fake(f"implicitmeshnet::{name}", fake, lib=library)
    return getattr(torch.ops.implicitmeshnet, name)


def register_autograd(name: str, backward, setup_context):
    torch.library.register_autograd(f"implicitmeshnet::{name}", backward, setup_context=setup_context, lib=library)
