"""Everything that a CUDA GPU can show, in one command: builds, tests, times; prints a table and writes JSON.

    python benchmarks/gpu.py [--output gpu.json] [--skip-tests] [--config CONFIG ...]

Wants a CUDA GPU, a torch with CUDA and nvcc; without them it says which is missing, and ends with status 2. Under ten
minutes on a recent GPU with 16 cores. Times are of the GPU's own clock: CUDA events around many calls, the median of
several such rounds; `host us` is how long the host takes to start a call, with the GPU left behind.

- mesh2sdf: mesh b (5120 faces) at 64^3 and 128^3, forward and backward, beside a kernel that takes every face for every
  voxel, and Warp where it is installed (forward alone).
- splat: 2562 vertices, batch 2, 128 channels, channels last, beside a memset of the same volume.
- instance norm: beside torch's own, (2, 16, 128, 128, 128) in bfloat16 and float32.
- training step: the parts of benchmarks/training_step.py for each --config.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from implicitmeshnet.script import InputError, run_script

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("configs_implicitmeshnet/whole_heart.json", "configs_implicitmeshnet/2025-03-31_13-45-41.json")
CALLS, ROUNDS = 20, 7


def check_machine() -> None:
    """Raise InputError that names what is missing."""
    if torch.version.cuda is None:
        raise InputError(f"torch: wanted a build with CUDA, found {torch.__version__}")
    if not torch.cuda.is_available():
        raise InputError("device: wanted a CUDA GPU, found none")
    if not shutil.which("nvcc"):
        raise InputError("nvcc: wanted the CUDA toolkit's compiler on the PATH, found none")


def build() -> None:
    """Compile the operators, the CUDA library too, in place."""
    environment = os.environ | {"IMPLICITMESHNET_CUDA": "1"}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)


def run_tests() -> str:
    """The last line of pytest on the tests of the device; raises InputError if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_gpu_on_device.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = run.stdout.strip().splitlines()[-1] if run.stdout.strip() else "nothing"
    if run.returncode:
        print(run.stdout[-4000:], run.stderr[-2000:], file=sys.stderr)
    return last


def device_ms(call) -> dict:
    """Milliseconds of one call on the GPU, and microseconds that the host takes to start one."""
    for _ in range(3):
        call()
    taken, host = [], []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(20_000_000)  # so that the host is ahead, and the GPU waits for nothing
        started = time.perf_counter()
        begin.record()
        for _ in range(CALLS):
            call()
        end.record()
        host.append((time.perf_counter() - started) / CALLS * 1e6)
        end.synchronize()
        taken.append(begin.elapsed_time(end) / CALLS)
    return {"ms": statistics.median(taken), "spread": max(taken) - min(taken), "host us": statistics.median(host)}


def distance_rows(size: int) -> dict:
    """Rows of mesh2sdf and its peers."""
    import peers
    from signed_distance import displaced_sphere, make_problem

    from implicitmeshnet.ops import mesh2sdf

    mesh = displaced_sphere(4)
    device = torch.device("cuda")
    vertices, faces = mesh[0].to(device), mesh[1].to(device)
    leaf = vertices.clone().requires_grad_()
    ready = mesh2sdf(leaf, faces, size)
    gradient = torch.randn_like(ready)
    rows = {
        "mesh2sdf forward": device_ms(lambda: mesh2sdf(vertices, faces, size)),
        "mesh2sdf backward": device_ms(lambda: torch.autograd.grad(ready, leaf, gradient, retain_graph=True)),
    }
    problem = make_problem(mesh, size, device, 1)
    for name in ("brute-force-kernel", "warp"):
        try:
            row = peers.ON_DEVICE["cuda"][name](problem)
        except ImportError:
            continue
        rows[row.name] = device_ms(row.compute)
    truth = mesh2sdf(mesh[0].double(), mesh[1], size)
    rows["mesh2sdf forward"]["max error"] = (ready.detach().cpu().double() - truth).abs().max().item()
    return {f"{name}, {size}^3": row for name, row in rows.items()}


def splat_rows(size: int) -> dict:
    """Rows of splat beside a memset of its volume."""
    from implicitmeshnet.mesh import icosphere
    from implicitmeshnet.ops import splat_trilinear

    vertices = (0.5 * icosphere(4)[0]).expand(2, -1, -1).contiguous().cuda()
    features = torch.randn(2, vertices.shape[1], 128, device="cuda")
    volume = splat_trilinear(vertices, features, size, channels_last=True)
    name = f"128 channels, {size}^3"
    return {
        f"splat, {name}": device_ms(lambda: splat_trilinear(vertices, features, size, channels_last=True)),
        f"memset, {name}": device_ms(volume.zero_),
    }


def norm_rows() -> dict:
    """Rows of the fused norm beside torch's."""
    import torch.nn.functional as F

    from implicitmeshnet.ops import instance_norm_leaky_relu

    rows = {}
    for dtype in (torch.float32, torch.bfloat16):
        volume = torch.randn(2, 16, 128, 128, 128, device="cuda", dtype=dtype)
        volume = volume.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        weight, bias = (torch.ones(16, device="cuda", requires_grad=True) for _ in range(2))
        grad = torch.randn_like(volume)

        def torchs(volume=volume, weight=weight, bias=bias):
            return F.leaky_relu(F.instance_norm(volume, weight=weight.to(volume.dtype), bias=bias.to(volume.dtype)))

        def both(function, volume=volume, weight=weight, bias=bias, grad=grad):
            return torch.autograd.grad(function(), [volume, weight, bias], grad)

        def ours(volume=volume, weight=weight, bias=bias):
            return instance_norm_leaky_relu(volume, weight, bias)

        kind = str(dtype).removeprefix("torch.")
        rows[f"instance norm, {kind}"] = device_ms(ours)
        rows[f"instance norm forward + backward, {kind}"] = device_ms(lambda both=both, ours=ours: both(ours))
        rows[f"torch's, {kind}"] = device_ms(torchs)
        rows[f"torch's forward + backward, {kind}"] = device_ms(lambda both=both, torchs=torchs: both(torchs))
    return rows


def training_step(config: str) -> str:
    """What benchmarks/training_step.py prints."""
    command = [sys.executable, "benchmarks/training_step.py", f"--config={config}", "--device=cuda"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else f"{config}: {run.stderr.strip()[-500:]}"


def print_rows(rows: dict) -> None:
    """One line a row."""
    print(f"{'':<46}{'ms':>10}{'spread':>10}{'host us':>10}{'max error':>12}")
    for name, row in rows.items():
        error = f"{row['max error']:>12.1e}" if "max error" in row else ""
        print(f"{name:<46}{row['ms']:>10.4f}{row['spread']:>10.4f}{row['host us']:>10.1f}{error}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--config", nargs="*", default=list(CONFIGS), help="of the training steps; none without names")
    arguments = parser.parse_args()
    check_machine()
    build()
    properties = torch.cuda.get_device_properties(0)
    name = f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}"
    print(name, flush=True)
    found = {"device": name, "tests": "left out" if arguments.skip_tests else run_tests()}
    print(f"tests: {found['tests']}", flush=True)
    rows: dict = {}
    # The library that was just built is loaded by the first of these imports.
    for make in (lambda: distance_rows(64), lambda: distance_rows(128), lambda: splat_rows(128), norm_rows):
        rows |= make()
    print_rows(rows)
    found["rows"] = rows
    found["training steps"] = {config: training_step(config) for config in arguments.config}
    for text in found["training steps"].values():
        print("\n" + text)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    run_script(main)
