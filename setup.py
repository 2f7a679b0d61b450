"""Builds the package with its compiled operators: C++ always, CUDA where a toolkit is found or IMPLICITMESHNET_CUDA=1.

Without a C++ compiler the package installs all the same and runs the PyTorch references.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")  # for the loops that are compiled for AVX-512 and chosen at run time


class OptionalBuild(BuildExtension):
    """Builds what can be built; a failure leaves an uncompiled package and one warning."""

    def run(self):
        if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++"):
            self._warn("found no C++ compiler")
            return
        try:
            super().run()
        except Exception as error:
            self._warn(f"the build failed ({error})")

    def _warn(self, reason):
        print(
            f"warning: {reason}, so implicitmeshnet will run uncompiled, slowly: install g++ (Debian: apt install g++)"
            " and install again",
            file=sys.stderr,
        )


def extension():
    """One library of all sources; relative paths, as setuptools wants them."""
    root = Path(__file__).parent
    sources = sorted(str(path.relative_to(root)) for path in (root / "csrc").glob("*.cpp"))
    cuda = sorted(str(path.relative_to(root)) for path in (root / "csrc").glob("*.cu"))
    if cuda and (CUDA_HOME or os.environ.get("IMPLICITMESHNET_CUDA") == "1"):
        return CUDAExtension("implicitmeshnet._C", sources + cuda, extra_compile_args={"cxx": FLAGS, "nvcc": ["-O3"]})
    return CppExtension("implicitmeshnet._C", sources, extra_compile_args=FLAGS)


setup(
    name="implicitmeshnet",
    version="0.1.0",
    description="Anatomical shapes as closed surface meshes, from volumetric images",
    license="MIT",
    python_requires=">=3.10",
    packages=["implicitmeshnet", "implicitmeshnet.ops"],
    ext_modules=[extension()],
    cmdclass={"build_ext": OptionalBuild.with_options(no_python_abi_suffix=True)},
)
