"""Builds the package with its compiled operators: C++ always, CUDA too where torch has CUDA or IMPLICITMESHNET_CUDA=1.

IMPLICITMESHNET_CUDA=native makes code for the GPUs of this machine alone, which takes a sixth of the time.

Without a C++ compiler the package installs all the same and runs the PyTorch references. The CUDA kernels need nvcc
alone, no torch header, so their library fits any torch. All else about the package stands in pyproject.toml.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import setup
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension

ROOT = Path(__file__).parent
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
FLAGS.append("-fopenmp" if sys.platform == "linux" else "-fopenmp-simd")  # at::parallel_for is serial without it
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")  # for the loops that are compiled for AVX-512 and chosen at run time
NVCC_FLAGS = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "--threads=0"]  # as many as there are cores


def sources(suffix):
    """Paths in csrc/, relative, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(f"*{suffix}"))


def architectures(nvcc):
    """Code for each generation from Volta on that this nvcc knows, and what later ones translate themselves.

    A generation runs the code of its first architecture: 8.6 that of 8.0. Turing (7.5) counts as Volta's (7.0), and is
    the first where nvcc lists no Volta any more.
    """
    if os.environ.get("IMPLICITMESHNET_CUDA") == "native":
        return ["-arch=native"]
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    known = sorted(int(name[8:]) for name in listed if name[8:].isdigit())  # compute_90, not compute_90a
    first: dict[int, int] = {}
    for number in known:
        if number >= 70:
            first.setdefault(number // 10, number)
    newest = max(first.values())
    return [f"-gencode=arch=compute_{n},code=sm_{n}" for n in first.values()] + [
        f"-gencode=arch=compute_{newest},code=compute_{newest}"
    ]


class OptionalBuild(BuildExtension):
    """Builds what can be built; a failure leaves an uncompiled package and one warning."""

    def run(self):
        if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++"):
            self._warn("found no C++ compiler", "uncompiled, slowly", "g++ (Debian: apt install g++)")
            return
        try:
            super().run()
        except Exception as error:
            self._warn(f"the build failed ({error})", "uncompiled, slowly", "g++ (Debian: apt install g++)")
        if torch.version.cuda or os.environ.get("IMPLICITMESHNET_CUDA") in ("1", "native"):
            self._build_cuda()

    def _build_cuda(self):
        nvcc = shutil.which("nvcc", path=f"{CUDA_HOME}/bin" if CUDA_HOME else None) or "nvcc"
        target = Path(self.get_ext_fullpath("implicitmeshnet._C")).with_name("_cuda.so")
        try:
            subprocess.run(
                [nvcc, *NVCC_FLAGS, *architectures(nvcc), *sources(".cu"), "-o", str(target)], check=True, cwd=ROOT
            )
        except (OSError, subprocess.CalledProcessError) as error:
            self._warn(f"the CUDA kernels were not built ({error})", "slowly on GPUs", "the CUDA toolkit (nvcc)")

    def _warn(self, reason, how, remedy):
        print(
            f"warning: {reason}, so implicitmeshnet will run {how}: install {remedy} and install again", file=sys.stderr
        )


class BuildWithMetal(build_py):
    """Copies what Metal compiles on first use into the installed package; an editable one reads csrc/ itself."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / "implicitmeshnet" / "csrc"
        self.mkpath(str(folder))
        for path in sources(".metal") + sources(".h"):
            self.copy_file(path, str(folder))


setup(
    ext_modules=[CppExtension("implicitmeshnet._C", sources(".cpp"), extra_compile_args=FLAGS)],
    cmdclass={"build_ext": OptionalBuild.with_options(no_python_abi_suffix=True), "build_py": BuildWithMetal},
)
