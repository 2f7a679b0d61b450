"""Runs the CUDA kernels on the host under UndefinedBehaviorSanitizer and ThreadSanitizer; status 1 if one complains.

    make sanitize

The lanes of a group are fibers (tests/gpu_shim), each a thread to ThreadSanitizer, and barriers alone order them: it
finds races within a group, not between groups. Results are held against the references besides. A minute or two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from host_kernels import compile_kernels

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import _gpu, reference
from implicitmeshnet.script import InputError, run_script

FLAGS = {
    "undefined": ["-O1", "-g", "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize-recover=all"],
    "thread": ["-O2", "-g", "-fsanitize=thread"],
}
LIBRARIES = {"undefined": "libubsan.so", "thread": "libtsan.so"}
SOURCES = ("mesh2sdf", "grid_feature_projection", "instance_norm", "neighbour_sum")


def exercise(flags: list[str]) -> None:
    """Every kernel once, in float32."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kernels = {name: compile_kernels(Path(folder), "cuda", name, flags) for name in SOURCES}
    vertices, faces = icosphere(2)
    vertices = vertices[None] * torch.tensor([0.7, 0.5, 0.6])
    mesh = kernels["mesh2sdf"]
    grad = torch.randn(1, 17, 5, 9, generator=torch.Generator().manual_seed(0))
    expected, _ = reference.mesh2sdf(vertices, faces, grad.shape[1:])
    sdf, face = _gpu.mesh2sdf(mesh, vertices, faces, grad.shape[1:])
    torch.testing.assert_close(sdf, expected, atol=1e-6, rtol=0)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        _gpu.mesh2sdf_backward(mesh, grad, vertices, faces, sdf, face)
        _gpu.splat(kernels["grid_feature_projection"], vertices, vertices, [3, 4, 5])
    torch.use_deterministic_algorithms(False)
    crowded, all_faces = icosphere(4)  # whose middle is as far from all faces
    _gpu.mesh2sdf(mesh, crowded[None], all_faces, (2, 3, 2))
    _gpu.mesh2sdf(mesh, vertices * torch.nan, faces, (2, 3, 2))
    _gpu.voxelize(mesh, 3 * vertices[0] + 3, faces, (7, 7, 40))
    volume = torch.randn(1, 17, 3, 4, 5)
    _gpu.splat_backward(kernels["grid_feature_projection"], volume, vertices, torch.randn(1, vertices.shape[1], 17))
    weight, bias = torch.ones(17), torch.zeros(17)
    result, mean, scale = _gpu.instance_norm_leaky_relu(
        kernels["instance_norm"], volume, weight, bias, volume, None, 0.01
    )
    saved = (volume, volume, result, weight, None, mean, scale)
    _gpu.instance_norm_leaky_relu_backward(kernels["instance_norm"], *saved, 0.01, True)
    index = faces[:, :1].expand(-1, 4).contiguous()[: vertices.shape[1]]
    _gpu.neighbour_sum(kernels["neighbour_sum"], vertices, index, torch.ones(index.shape), False)


def preloaded(library: str) -> str:
    """The path of a sanitizer's library, which must be loaded before all others."""
    run = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    path = run.stdout.strip()
    if not Path(path).is_absolute():
        raise InputError(f"{library}: wanted the sanitizer's library of g++, found none")
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(FLAGS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # in the process it is for
    arguments = parser.parse_args()
    if arguments.inside:
        exercise(FLAGS[arguments.only])
        return
    failed = []
    for name in [arguments.only] if arguments.only else FLAGS:
        environment = os.environ | {
            "LD_PRELOAD": preloaded(LIBRARIES[name]),
            "TSAN_OPTIONS": "exitcode=66 report_signal_unsafe=0 ignore_noninstrumented_modules=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, __file__, "--inside", f"--only={name}"]
        clean = subprocess.run(command, env=environment).returncode == 0
        print(f"{name}: {'clean' if clean else 'NOT clean, see above'}", flush=True)
        failed += [] if clean else [name]
    sys.exit(bool(failed))


if __name__ == "__main__":
    run_script(main)
