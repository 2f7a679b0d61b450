"""Everything that a CUDA GPU can show, in one command: builds, tests, times; prints tables and writes JSON.

    make gpu
    PYTHONPATH=. python3 benchmarks/gpu.py [--output gpu.json] [--limit_s 540] [--leave_out PART ...]
                                           [--config CONFIG ...]

The second line is for a machine where nothing can be installed, with the requirements there or on the path. Wants a
CUDA GPU, a torch with CUDA, and nvcc, unless `implicitmeshnet/_cuda.so` is there and the build is left out; otherwise
it says which is missing, with status 2.

The parts run in this order, the most worth knowing first, each in a process of its own, so that a fault or a hang of
one takes no other along. The command ends by itself after --limit_s seconds, nine minutes unless told otherwise: a part
that is not done by then is stopped, and what follows is left out. Each row is printed and written as soon as it is
measured. Status 1 where a test or a part failed, was stopped or left out for want of time.

- build: the C++ operators, and the CUDA library for this GPU alone.
- tests: tests/test_gpu_on_device.py.
- mesh2sdf: mesh b (5120 faces) at 64^3 and 128^3, forward and backward, beside a kernel that takes every face for every
  voxel, and Warp where it is installed (forward alone).
- splat: 2562 vertices, batch 2, 128 channels, channels last, beside a memset of the same volume.
- norm: beside torch's own, (2, 16, 128, 128, 128) in bfloat16 and float32.
- step: the parts of benchmarks/training_step.py for each --config.

Times are of the GPU's own clock: CUDA events around many calls, the median of several such rounds; `host us` is how
long the host takes to start a call, with the GPU left behind.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import torch

from implicitmeshnet.script import InputError, atomic_path, run_script

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("configs_implicitmeshnet/whole_heart.json", "configs_implicitmeshnet/2025-03-31_13-45-41.json")
LIMIT_S = 540.0
CALLS, ROUNDS = 20, 7
QUOTED_LINES = 40  # of what a part printed, in the JSON
DONE = "done"


# The parts, one after the other


class Part(NamedTuple):
    """What one process does."""

    name: str
    seconds: float
    """It is stopped after so many."""
    command: list[str]


def parts_of(configs: list[str]) -> list[Part]:
    """All parts, the most worth knowing first."""
    python = sys.executable
    tests = [python, "-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/test_gpu_on_device.py"]
    step = [python, "benchmarks/training_step.py", "--device=cuda"]
    steps = [Part(f"step {Path(config).stem}", 120, [*step, f"--config={config}"]) for config in configs]
    return [
        Part("build", 240, [python, "setup.py", "build_ext", "--inplace"]),
        Part("tests", 200, tests),
        *(Part(name, 120, [python, "benchmarks/gpu.py", f"--measure={name}"]) for name in MEASURED),
        *steps,
    ]


def run_parts(parts: list[Part], limit_s: float, save: Callable[[dict], None]) -> dict:
    """Run parts until the limit; returns what they found, which `save` is handed whenever there is more.

    "parts": what became of each, and the end of what it printed; "rows": all rows. A part prints a row as a line of
    JSON, see `print_row`.
    """
    deadline = time.monotonic() + limit_s
    report: dict = {"parts": {}, "rows": {}}

    def keep(row: dict) -> None:
        report["rows"][row.pop("row")] = row
        save(report)

    for part in parts:
        started = time.monotonic()
        seconds = min(part.seconds, deadline - started)
        lines: list[str] = []
        became = _run_part(part, seconds, lines, keep) if seconds > 0 else "left out: no time was left"
        taken = time.monotonic() - started
        report["parts"][part.name] = {"became": became, "seconds": round(taken, 1), "output": lines[-QUOTED_LINES:]}
        print(f"[{part.name}: {became}, {taken:.0f} s]", flush=True)
        save(report)
    return report


def _run_part(part: Part, seconds: float, lines: list[str], keep: Callable[[dict], None]) -> str:
    """What became of a part: DONE, or why not. Its lines are printed, those that are rows handed to `keep`."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    environment.setdefault("IMPLICITMESHNET_CUDA", "native")
    process = subprocess.Popen(
        part.command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    reader = threading.Thread(target=_follow, args=(process.stdout, lines, keep))
    reader.start()
    try:
        status = process.wait(seconds)
        became = DONE if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        became = f"stopped after {seconds:.0f} s"
    finally:
        _end_session(process)  # what it started holds the pipe too
        reader.join()
    return became


def _end_session(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _follow(output: IO[str], lines: list[str], keep: Callable[[dict], None]) -> None:
    for line in output:
        if line.startswith('{"row"'):
            row = json.loads(line)
            print(row_text(row), flush=True)
            keep(row)
        else:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))


def failures(report: dict) -> list[str]:
    """One sentence for each part that is not done."""
    return [f"{name}: {part['became']}" for name, part in report["parts"].items() if part["became"] != DONE]


# The rows


def print_row(name: str, row: dict) -> None:
    """What the parent reads a row from."""
    print(json.dumps({"row": name} | row), flush=True)


def row_text(row: dict) -> str:
    """A row for people."""
    numbers = [f"{name} {value:.4g}" for name, value in row.items() if name != "row"]
    return f"{row['row']:<52}{', '.join(numbers)}"


def print_table(rows: dict) -> None:
    """All rows, one line each."""
    print(f"{'':<52}{'ms':>10}{'spread':>10}{'host us':>10}{'max error':>12}")
    for name, row in rows.items():
        error = f"{row['max error']:>12.1e}" if "max error" in row else ""
        print(f"{name:<52}{row['ms']:>10.4f}{row['spread']:>10.4f}{row['host us']:>10.1f}{error}")


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


def distance_rows(size: int) -> Iterator[tuple[str, dict]]:
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
    truth = mesh2sdf(mesh[0].double(), mesh[1], size)
    error = (ready.detach().cpu().double() - truth).abs().max().item()
    forward = device_ms(lambda: mesh2sdf(vertices, faces, size))
    yield f"mesh2sdf forward, {size}^3", forward | {"max error": error}
    backward = device_ms(lambda: torch.autograd.grad(ready, leaf, gradient, retain_graph=True))
    yield f"mesh2sdf backward, {size}^3", backward
    problem = make_problem(mesh, size, device, 1)
    for name in ("brute-force-kernel", "warp"):
        try:
            row = peers.ON_DEVICE["cuda"][name](problem)
        except (ImportError, FileNotFoundError) as error:  # no Warp, no nvcc
            print(f"{name}: left out ({error})")
            continue
        yield f"{row.name}, {size}^3", device_ms(row.compute)


def splat_rows(size: int) -> Iterator[tuple[str, dict]]:
    """Rows of splat beside a memset of its volume."""
    from implicitmeshnet.mesh import icosphere
    from implicitmeshnet.ops import splat_trilinear

    vertices = (0.5 * icosphere(4)[0]).expand(2, -1, -1).contiguous().cuda()
    features = torch.randn(2, vertices.shape[1], 128, device="cuda")
    volume = splat_trilinear(vertices, features, size, channels_last=True)
    name = f"128 channels, {size}^3"
    yield f"splat, {name}", device_ms(lambda: splat_trilinear(vertices, features, size, channels_last=True))
    yield f"memset, {name}", device_ms(volume.zero_)


def norm_rows() -> Iterator[tuple[str, dict]]:
    """Rows of the fused norm beside torch's."""
    import torch.nn.functional as F

    from implicitmeshnet.ops import instance_norm_leaky_relu

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
        yield f"instance norm, {kind}", device_ms(ours)
        yield f"instance norm forward + backward, {kind}", device_ms(lambda both=both, ours=ours: both(ours))
        yield f"torch's, {kind}", device_ms(torchs)
        yield f"torch's forward + backward, {kind}", device_ms(lambda both=both, torchs=torchs: both(torchs))


MEASURED: dict[str, Callable[[], Iterator[tuple[str, dict]]]] = {
    "mesh2sdf-64": lambda: distance_rows(64),
    "mesh2sdf-128": lambda: distance_rows(128),
    "splat": lambda: splat_rows(128),
    "norm": norm_rows,
}


# The command


def check_machine(builds: bool) -> None:
    """Raise InputError that names what is missing."""
    if torch.version.cuda is None:
        raise InputError(f"torch: wanted a build with CUDA, found {torch.__version__}")
    if not torch.cuda.is_available():
        raise InputError("device: wanted a CUDA GPU, found none")
    if builds and not shutil.which("nvcc"):
        raise InputError("nvcc: wanted the CUDA toolkit's compiler on the PATH, found none")


def check_kernels() -> None:
    """Raise InputError unless our kernels run: the ops would run in plain PyTorch."""
    from implicitmeshnet.ops._kernels import cuda_kernels

    if cuda_kernels is None or not cuda_kernels.usable(torch.device("cuda", 0)):
        raise InputError("implicitmeshnet/_cuda.so: wanted kernels that run on this GPU, found none")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--limit_s", type=float, default=LIMIT_S, help="seconds; default %(default)s")
    parser.add_argument("--leave_out", nargs="*", default=[], metavar="PART", help="such as build or tests")
    parser.add_argument("--config", nargs="*", default=list(CONFIGS), help="of the training steps; none without names")
    parser.add_argument("--measure", choices=list(MEASURED), help=argparse.SUPPRESS)  # the process of one part
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    parts = parts_of(arguments.config)
    for name in set(arguments.leave_out) - {part.name for part in parts}:
        raise InputError(f"--leave_out: wanted names of {', '.join(part.name for part in parts)}, found {name}")
    check_machine("build" not in arguments.leave_out and not arguments.measure)
    if arguments.measure:
        check_kernels()
        for name, row in MEASURED[arguments.measure]():
            print_row(name, row)
        return
    properties = torch.cuda.get_device_properties(0)
    name = f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}"
    print(name, flush=True)

    def save(report: dict) -> None:
        with atomic_path(arguments.output) as path:
            path.write_text(json.dumps({"device": name} | report, indent=1) + "\n")

    report = run_parts([part for part in parts if part.name not in arguments.leave_out], arguments.limit_s, save)
    print_table(report["rows"])
    print(f"written: {arguments.output}")
    failed = failures(report)
    print("\n".join(failed) or "all parts are done")
    sys.exit(bool(failed))


if __name__ == "__main__":
    run_script(main)
