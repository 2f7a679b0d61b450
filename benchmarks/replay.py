"""Replays the CUDA kernels of mesh2sdf on the host, counts each warp's instructions and models a GPU's time.

    python benchmarks/replay.py [--sizes 64 128] [--meshes b sphere slab vessels] [--passes forward backward]
                                [--json FILE] [--sms 132] [--ghz 1.7] [--scale 0.7] [--latency 4] [--issue 0.6]
                                [--warps 24] [--gbytes 3350] [--gap 2]

It needs g++ on x86-64, no GPU. The kernels' own code runs on fibers (tests/gpu_shim). g++ compiles it to scalar code
with fused multiplications; every basic block of that gets a counter, and a block counts as many instructions as it has.
The lanes of a warp run a block together: between two barriers a warp takes it as often as the lane that takes it most.

Counts are x86's, without moves from and to the stack, and constants. The model takes each for --scale GPU instructions:
the loop that holds two voxels against a face has 107 in nvcc's PTX for sm_90, and about 150 here.

The model: groups start in their order on the SM that is free first, as many at once as --warps allows. A warp issues an
instruction every --latency cycles at best, and an SM's four schedulers fill the share --issue of their slots, which
the warps that are there share. A kernel's time is no less than the bytes of its volumes take at --gbytes a second.
Between kernels pass --gap microseconds. This is a model, no measurement.

- warp instructions: of all warps of a kernel. median, slowest: of a group's slowest warp; ratio: slowest to median.
"""

import argparse
import ctypes
import heapq
import json
import math
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from host_kernels import HOST_COMPILER, HostKernels, host_source
from signed_distance import displaced_sphere
from timing import at_least

from implicitmeshnet.mesh import icosphere
from implicitmeshnet.ops import _gpu
from implicitmeshnet.script import InputError, run_script

FLAGS = ["-O2", "-march=x86-64-v3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
FLAGS += ["-fno-tree-vectorize", "-mno-red-zone", "-DIMN_COUNT_BLOCKS"]
UNCOUNTED = re.compile(r"shim|^_ZN?K?S|^_ZSt|^imn_|IdE")  # the host's own part, and kernels of double
BYTES = {"clear": 4, "accumulate": 4, "solve": 12, "differentiate": 12}  # moved a voxel
CHUNK = 16  # as in tests/gpu_shim/counts.h
BRANCH = re.compile(r"j\w+$")
READS_FLAGS = ("j", "set", "cmov", "adc", "sbb")
# What a GPU, with its 255 registers and numbers within instructions, does without: moves from and to the stack, and
# constants. And the host's ways of asking for the thread.
LEFT_OUT = re.compile(r"\tv?mov\w*\t.*(\(%rsp\)|\.LC\d+\(%rip\))")
WRITES_FLAGS = ("cmp", "test", "ucomi", "comi", "vucomi", "vcomi", "add", "sub", "and", "or", "xor", "imul", "neg")


# Counting


def assembly(source: Path) -> list[str]:
    """What g++ makes of the kernels."""
    run = subprocess.run([*HOST_COMPILER, *FLAGS, "-S", source, "-o", "-"], capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def is_label(line: str) -> bool:
    """Whether a line names a place in the code."""
    return re.match(r"^[.\w]+:", line) is not None


def is_instruction(line: str) -> bool:
    """Whether a line is run."""
    return line.startswith("\t") and not line.startswith(("\t.", "\t#"))


def keeps_flags(block: list[str]) -> bool:
    """Whether a block may read flags that were set before it."""
    for line in block:
        word = line.split()[0]
        if word.startswith(READS_FLAGS):
            return True
        if word.startswith(WRITES_FLAGS):
            return False
    return True


def blocks_of(lines: list[str]) -> tuple[list[list[str]], list[bool]]:
    """The text cut where control can come or go, and whether each part counts: code of a kernel."""
    parts: list[list[str]] = [[]]
    counted = [False]
    inside = False
    for line in lines:
        if line.startswith("\t.type") and line.endswith("@function"):
            inside = not UNCOUNTED.search(line.split()[1].rstrip(","))
        if line.startswith("\t.size"):
            parts.append([])
            counted.append(inside := False)
        starts = is_label(line) or (parts[-1] and BRANCH.match(parts[-1][-1].strip().split("\t")[0] or " "))
        if starts:
            parts.append([])
            counted.append(inside)
        parts[-1].append(line)
    return parts, counted


def with_counters(lines: list[str]) -> str:
    """The assembly with a counter at the head of each block that counts."""
    text, sizes = [], []
    for part, counts in zip(*blocks_of(lines), strict=True):
        run = [line for line in part if is_instruction(line)]
        if not counts or not run:
            text += part
            continue
        head = next(index for index, line in enumerate(part) if is_instruction(line))
        add = [f"\taddl\t$1, imn_block_count+{4 * len(sizes)}(%rip)"]
        if keeps_flags(run):
            add = ["\tpushfq", *add, "\tpopfq"]
        text += part[:head] + add + part[head:]
        sizes.append(sum(not LEFT_OUT.match(line) for line in run))
    sizes += [0] * (-len(sizes) % CHUNK)
    table = "\n".join(f"\t.long\t{size}" for size in sizes)
    text.append(
        f"\t.data\n\t.align 64\nimn_block_count:\n\t.zero\t{4 * len(sizes)}\nimn_block_instructions:\n{table}\n"
        f"imn_blocks:\n\t.long\t{len(sizes)}\n"
    )
    return "\n".join(text)


class CountingKernels(HostKernels):
    """The CUDA kernels of mesh2sdf on the host; `launches` keeps each warp's instructions of each launch."""

    def __init__(self, folder: Path):
        source, counted, target = folder / "kernels.cpp", folder / "kernels.s", folder / "kernels.so"
        source.write_text(host_source("cuda", "mesh2sdf"))
        counted.write_text(with_counters(assembly(source)))
        subprocess.run(["g++", "-shared", counted, "-o", target], check=True)
        super().__init__(target)
        self.launches: list[tuple[str, list[int]]] = []

    def run(self, device, *launches):
        """See `CudaKernels.run`."""
        for launch in launches:
            super().run(device, launch)
            self.launches.append((launch[0], self._take()))

    def take_launches(self) -> list[tuple[str, list[int]]]:
        """The launches since the last call."""
        taken, self.launches = self.launches, []
        return taken

    def _take(self) -> list[int]:
        count = self.library.imn_take_counts(None, ctypes.c_int64(0))
        room = (ctypes.c_uint64 * count)()
        self.library.imn_take_counts(room, ctypes.c_int64(count))
        return list(room)


# The model


def sm_cycles(groups: list[list[float]], at_once: int, latency: float, issued: float) -> float:
    """Cycles that one SM takes for groups of warps, at most `at_once` of them there at a time.

    All warps that are there go on at the same rate: one instruction in `latency` cycles, or less where together they
    would issue more than `issued` a cycle.
    """
    waiting = iter(groups)
    progress = 0.0  # instructions that a warp which was always there would have issued
    cycles = 0.0
    ends: list[tuple[float, int]] = []  # when warps are done, by progress; and their groups
    left: dict[int, int] = {}  # warps of each group that are there
    number = 0

    def enter() -> None:
        nonlocal number
        for group in waiting:
            number += 1
            left[number] = len(group)
            for warp in group:
                heapq.heappush(ends, (progress + warp, number))
            return

    for _ in range(at_once):
        enter()
    while ends:
        end, group = heapq.heappop(ends)
        rate = min(1 / latency, issued / (len(ends) + 1))
        cycles += (end - progress) / rate
        progress = end
        left[group] -= 1
        if left[group] == 0:
            del left[group]
            enter()
    return cycles


def modelled_ms(warps: list[float], bytes_moved: float, options: argparse.Namespace) -> float:
    """Milliseconds of one kernel."""
    width = _gpu.GROUP // _gpu.WARP
    groups = [warps[i : i + width] for i in range(0, len(warps), width)]
    # Groups go to the SM with the least work so far, which is nearly the one that is free first.
    shares: list[list[list[float]]] = [[] for _ in range(options.sms)]
    loads = [(0.0, sm) for sm in range(options.sms)]
    for group in groups:
        load, sm = heapq.heappop(loads)
        shares[sm].append(group)
        heapq.heappush(loads, (load + sum(group), sm))
    at_once = max(options.warps // width, 1)
    cycles = max(sm_cycles(share, at_once, options.latency, 4 * options.issue) for share in shares)
    return max(cycles / (options.ghz * 1e6), bytes_moved / (options.gbytes * 1e6))


# The meshes


def slab() -> tuple[torch.Tensor, torch.Tensor]:
    """A plate of 1.6 x 1.6 x 0.1: a medial axis as large as it can be. 5808 faces."""
    return _closed(lambda x, y, z: torch.stack([x.abs() - 0.8, y.abs() - 0.8, z.abs() - 0.05]).amax(0), 52)


def vessels() -> tuple[torch.Tensor, torch.Tensor]:
    """A tree of tubes: a trunk, two branches, and two of each again."""
    ends = {
        (0.0, 0.0, -0.8): [(0.0, 0.05, -0.2)],
        (0.0, 0.05, -0.2): [(0.45, 0.1, 0.2), (-0.4, -0.1, 0.25)],
        (0.45, 0.1, 0.2): [(0.7, 0.45, 0.7), (0.6, -0.4, 0.6)],
        (-0.4, -0.1, 0.25): [(-0.75, 0.3, 0.65), (-0.5, -0.5, 0.75)],
    }
    tubes = [(start, end, 0.12 - 0.04 * (start[2] > -0.5)) for start, after in ends.items() for end in after]

    def distance(x, y, z):
        point = torch.stack([x, y, z], -1)
        found = []
        for start, end, radius in tubes:
            a, b = torch.tensor(start), torch.tensor(end)
            along = (((point - a) @ (b - a)) / (b - a).dot(b - a)).clamp(0, 1)
            found.append((point - a - along[..., None] * (b - a)).norm(dim=-1) - radius)
        return torch.stack(found).amin(0)

    return _closed(distance, 72)


def _closed(distance, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The surface where a function is 0, from its values on a grid of size^3."""
    from skimage.measure import marching_cubes  # takes a second

    axis = torch.linspace(-0.95, 0.95, size)
    values = distance(*torch.meshgrid(axis, axis, axis, indexing="ij"))
    vertices, faces, _, _ = marching_cubes(values.numpy(), 0.0)
    return torch.from_numpy(vertices.copy()) * (1.9 / (size - 1)) - 0.95, torch.from_numpy(faces.copy()).long()


def sphere() -> tuple[torch.Tensor, torch.Tensor]:
    """A perfect sphere: all of its faces are as close to its centre."""
    vertices, faces = icosphere(4)
    return 0.5 * vertices, faces


PASSES = ("forward", "backward")
MESHES = {"b": lambda: displaced_sphere(4), "sphere": sphere, "slab": slab, "vessels": vessels}


# The table


def replay(kernels: CountingKernels, mesh, size: int, passes: list[str]) -> dict[str, list[tuple[str, list[int]]]]:
    """The launches of one forward and one backward, as far as they are asked for."""
    vertices, faces = mesh[0][None], mesh[1]
    found = {}
    if "forward" in passes:
        _gpu.mesh2sdf(kernels, vertices, faces, [size] * 3)
        found["forward"] = kernels.take_launches()
    if "backward" in passes:
        # What it is handed is the same from the CPU's kernels, which take less time.
        sdf, face = torch.ops.implicitmeshnet.mesh2sdf(vertices, faces, [size] * 3)
        gradient = torch.randn(sdf.shape, generator=torch.Generator().manual_seed(1))
        _gpu.mesh2sdf_backward(kernels, gradient, vertices, faces, sdf, face)
        found["backward"] = kernels.take_launches()
    return found


def rows(launches: list[tuple[str, list[int]]], size: int, options: argparse.Namespace) -> list[dict]:
    """One row a launch, and one of all of them."""
    found = []
    width = _gpu.GROUP // _gpu.WARP
    for kernel, warps in launches:
        slowest_of_groups = [max(warps[i : i + width]) for i in range(0, len(warps), width)]
        median = statistics.median(slowest_of_groups)
        bytes_moved = BYTES.get(kernel.removesuffix("_float"), 0) * size**3
        found.append(
            {
                "kernel": kernel,
                "groups": len(slowest_of_groups),
                "instructions": sum(warps),
                "median": median,
                "slowest": max(warps),
                "ratio": max(warps) / max(median, 1),
                "ms": modelled_ms([options.scale * warp for warp in warps], bytes_moved, options) + options.gap * 1e-3,
            }
        )
    return found


def print_rows(found: list[dict]) -> None:
    """The table of one mesh at one size."""
    print(f"{'kernel':<24}{'groups':>8}{'M warp instr.':>15}{'median':>10}{'slowest':>10}{'ratio':>7}{'model ms':>10}")
    for row in found:
        print(
            f"{row['kernel']:<24}{row['groups']:>8}{row['instructions'] / 1e6:>15.2f}{row['median']:>10.0f}"
            f"{row['slowest']:>10}{row['ratio']:>7.1f}{row['ms']:>10.3f}"
        )
    total = sum(row["instructions"] for row in found)
    print(f"{'all':<24}{'':>8}{total / 1e6:>15.2f}{'':>27}{sum(row['ms'] for row in found):>10.3f}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=at_least(2), nargs="+", default=[64, 128])
    parser.add_argument("--meshes", nargs="+", choices=list(MESHES), default=list(MESHES))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--sms", type=at_least(1), default=132, help="multiprocessors; default %(default)s")
    parser.add_argument("--ghz", type=float, default=1.7, help="of their clock; default %(default)s")
    parser.add_argument(
        "--scale", type=float, default=0.7, help="GPU instructions for one counted; default %(default)s"
    )
    parser.add_argument("--latency", type=float, default=4, help="cycles between a warp's instructions; %(default)s")
    parser.add_argument("--issue", type=float, default=0.6, help="share of the issue slots filled; %(default)s")
    parser.add_argument("--warps", type=at_least(8), default=24, help="on an SM at once; default %(default)s")
    parser.add_argument("--gbytes", type=float, default=3350, help="of memory a second; default %(default)s")
    parser.add_argument("--gap", type=float, default=2, help="microseconds between kernels; default %(default)s")
    return parser.parse_args()


def main():
    options = parse_arguments()
    wrong = [
        name for name in ("ghz", "scale", "latency", "issue", "gbytes") if not 0 < getattr(options, name) < math.inf
    ]
    for name in wrong:
        raise InputError(f"--{name}: wanted a number above 0, found {getattr(options, name)}")
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        kernels = CountingKernels(Path(folder))
        for name in options.meshes:
            mesh = MESHES[name]()
            for size in options.sizes:
                for direction, launches in replay(kernels, mesh, size, options.passes).items():
                    found = rows(launches, size, options)
                    print(f"\n{name}, {len(mesh[1])} faces, {size}^3, {direction}")
                    print_rows(found)
                    tables[f"{name} {size} {direction}"] = found
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
