"""The op library `implicitmeshnet`: schemas, reference kernels, and the compiled kernels where there are any."""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

from implicitmeshnet.ops._gpu import CudaKernels, MetalKernels


def _tensors(args: Iterable) -> Iterator[torch.Tensor]:
    """The tensors among an op's arguments, those in lists included."""
    for arg in args:
        if isinstance(arg, torch.Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


def _refusing_tangents(name: str, kernel: Callable) -> Callable:
    """The kernel, which now refuses arguments with a forward-mode tangent; torch would drop it without a word."""

    def has_tangent(tensor: torch.Tensor) -> bool:
        return forward_ad.unpack_dual(tensor).tangent is not None

    @functools.wraps(kernel)
    def checked(keyset, *args, **kwargs):
        # torch's own test of whether forward mode is on at all, at a tenth of a microsecond
        if forward_ad._current_level >= 0 and any(map(has_tangent, _tensors(args))):
            raise NotImplementedError(
                f"{name}: wanted a derivative in reverse mode, found one in forward mode, which it does not have"
            )
        return kernel(keyset, *args, **kwargs)

    return checked


class _Library(torch.library.Library):
    """Ops that have derivatives in reverse mode only."""

    def impl(self, op_name, fn, dispatch_key="", **options) -> None:
        if dispatch_key == "Autograd":
            fn = _refusing_tangents(op_name, fn)
        super().impl(op_name, fn, dispatch_key, **options)


library = _Library("implicitmeshnet", "DEF")


def _load(pattern: str, load: Callable[[Path], Any]) -> tuple[Any, str]:
    """What `load` makes of the package's library of that name, or None; and why the library did not load, if so."""
    for path in sorted(Path(__file__).parents[1].glob(pattern)):
        try:
            return load(path), ""
        except OSError as error:  # built for another torch or another machine
            return None, f" ({path.name} does not load: {error})"
    return None, ""


def _load_operators(path: Path) -> bool:
    torch.ops.load_library(str(path))  # registers its kernels
    return True


_compiled, _failure = _load("_C*.so", _load_operators)
cuda_kernels, _cuda_failure = _load("_cuda*.so", CudaKernels) if torch.version.cuda else (None, "")
_has_metal = hasattr(torch._C, "_mps_compileShader")


def compiled() -> bool:
    """Whether compiled CPU kernels are loaded; otherwise the ops run their plain-PyTorch reference."""
    return bool(_compiled)


@functools.cache
def _warn_uncompiled(device: str) -> None:
    failure = _failure if device == "cpu" else _cuda_failure
    compiler = "a C++ compiler (g++)" if device == "cpu" else "nvcc"
    warnings.warn(
        f"implicitmeshnet: the ops run in plain PyTorch, slowly, as no compiled library for {device} was found"
        f"{failure}; install {compiler} and run `pip install --no-build-isolation -e .`",
        stacklevel=4,
    )


def _or_reference(gpu: Callable, kernels: CudaKernels | MetalKernels, reference: Callable) -> Callable:
    """`gpu` over the kernels; the reference, with one warning, on a device that does not run them."""

    @functools.wraps(reference)
    def op(*args, **kwargs):
        device = next(_tensors(args)).device
        if kernels.usable(device):
            return gpu(kernels, *args, **kwargs)
        return reference(*args, **kwargs)

    return op


_metal_kernels = functools.cache(MetalKernels)


def define(schema: str, reference: Callable, fake: Callable, gpu: Callable | None = None, source: str = ""):
    """Define an op with its reference as the default kernel, and its fake kernel; returns the op.

    gpu(kernels, *args) runs the op with `CudaKernels`, or with the `MetalKernels` of csrc/SOURCE.metal if a source is
    named; without them GPUs run the reference, and no warning says so.
    """
    name = schema.partition("(")[0]
    faster = {"cpu", "cuda"} if gpu else {"cpu"}  # devices that a compiled kernel would serve

    @functools.wraps(reference)
    def default(*args, **kwargs):
        devices = {tensor.device.type for tensor in _tensors(args)}
        for device in faster & devices:
            _warn_uncompiled(device)
        return reference(*args, **kwargs)

    library.define(schema)
    library.impl(name, default, "CompositeExplicitAutograd")
    if gpu and cuda_kernels:
        library.impl(name, _or_reference(gpu, cuda_kernels, reference), "CUDA")
    if gpu and source and _has_metal:
        library.impl(name, _or_reference(gpu, _metal_kernels(source), reference), "MPS")
    torch.library.register_fake(f"implicitmeshnet::{name}", fake, lib=library)
    return getattr(torch.ops.implicitmeshnet, name)


def differentiate(
    function: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """The gradients by each input of the sum of function's outputs times grads; None for an input that needs none.

    Torch finds them by differentiating the function itself. That serves derivatives beyond an op's first: it is slow,
    but right to any order.
    """
    with torch.enable_grad():
        # Views, so that an input that was made from another one is not differentiated through.
        views = [each.view_as(each) for each in inputs]
        outputs = function(*views)
        products = [(output * grad).sum() for output, grad in zip(outputs, grads, strict=True)]
        total = torch.stack(products).sum()
    wanted = [each for each in views if each.requires_grad]
    again = torch.is_grad_enabled()
    found = iter(torch.autograd.grad(total, wanted, create_graph=again, allow_unused=True))
    return [next(found) if each.requires_grad else None for each in views]


def register_autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Register an op's backward pass, and what saves for it."""
    torch.library.register_autograd(f"implicitmeshnet::{name}", backward, setup_context=setup_context, lib=library)
