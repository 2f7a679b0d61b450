"""The GPU kernels compiled for the host, where the threads of a group are fibers (tests/gpu_shim)."""

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from implicitmeshnet.ops import _gpu

ROOT = Path(__file__).resolve().parents[1]
CSRC, SHIM = ROOT / "csrc", ROOT / "tests" / "gpu_shim"
HOST_COMPILER = ["g++", "-std=c++17", "-Wno-attributes", f"-I{SHIM}", f"-I{CSRC}"]


class HostKernels(_gpu.CudaKernels):
    """Kernels compiled for the host, on CPU tensors."""

    @contextlib.contextmanager
    def _current(self, device):
        yield 0


def host_source(language: str, name: str) -> str:
    """C++ that g++ takes: CUDA as it is, Metal with its headers inlined and its kernels exported."""
    if language == "cuda":
        return (CSRC / f"{name}.cu").read_text()
    text = _gpu.metal_source(CSRC / f"{name}.metal")
    exports = (f"IMN_EXPORT({kernel}, {kernel}, {_gpu.GROUP})\n" for kernel in _gpu.kernel_names(text))
    return text + '#include "run.h"\n' + "".join(exports)


def compile_kernels(folder: Path, language: str, name: str, options: Sequence[str] = ("-O2",)) -> HostKernels:
    """The kernels of csrc/NAME.cu or NAME.metal, for the host; what is compiled lies in the folder."""
    source, target = folder / f"{language}_{name}.cpp", folder / f"{language}_{name}.so"
    source.write_text(host_source(language, name))
    subprocess.run([*HOST_COMPILER, *options, "-shared", "-fPIC", source, "-o", target], check=True)
    kernels = HostKernels(target)
    kernels.FIXED_POINT = language == "cuda"
    return kernels
