"""What a training's data cost: a start without and with cached cases, the augmentation of a sample, memory.

    python benchmarks/data.py [--cases=1000] [--read=20] [--side=128] [--draws=200] [--folder=/tmp]

The cases are synthetic: noise and the balls of seven structures, as many files as cases (hard links to one volume), on
the network's own spacing. Each row runs in a process of its own, on as many threads as --threads. --folder takes 3
bytes a voxel and case, margin included, which are 12 GB for 1000 cases of side 128; it is left as it was. Only --read
cases are read and resampled, which is timed; to the others a copy of the first one's sample is given.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from timing import at_least

from implicitmeshnet.config import DataConfig
from implicitmeshnet.data import training_set
from implicitmeshnet.data.augment import augment
from implicitmeshnet.data.cache import write_entry
from implicitmeshnet.data.dataset import Case
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.data.training_set import TrainingSet, prepare
from implicitmeshnet.script import keep_freed_memory, run_script

STRUCTURES = 7
MIB = 2**10  # of the kB of /proc


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=at_least(1), default=1000)
    parser.add_argument("--read", type=at_least(1), default=20, help="cases that are read and resampled")
    parser.add_argument("--side", type=at_least(8), default=128, help="voxels of the network's grid along each axis")
    parser.add_argument("--draws", type=at_least(1), default=200, help="samples that are drawn and augmented")
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    arguments = parser.parse_args()
    config = DataConfig(structures={f"S{s}": [s + 1] for s in range(STRUCTURES)}, shape=(arguments.side,) * 3)
    margin = arguments.side // 8
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        cases = write_cases(Path(folder), arguments.cases, arguments.side + 2 * margin, config)
        cache_dir = f"{folder}/cache"
        task = (cases, config, margin, cache_dir, arguments)
        in_memory = arguments.cases * 3 * (arguments.side + 2 * margin) ** 3
        print(
            f"{arguments.cases} cases of {arguments.side}^3 with a margin of {margin}, {in_memory / 2**30:.1f} GiB of"
            f" samples, {arguments.threads} threads"
        )
        print(f"{'':<34}{'seconds':>10}{'own MiB':>10}{'all MiB':>10}")
        show("libraries", in_a_process(only_libraries, task))
        show(f"start without cache, {arguments.read} cases", in_a_process(start, (cases[: arguments.read], *task[1:])))
        copy_entries(cases, config, margin, cache_dir)
        show(f"start with cache, {len(cases)} cases", in_a_process(start, task))
        show("a sample drawn and augmented", in_a_process(draw, task))


def show(name: str, row: tuple[float, float, float]):
    seconds, own, everything = row
    print(f"{name:<34}{seconds:>10.3f}{own:>10.0f}{everything:>10.0f}", flush=True)


def write_cases(folder: Path, count: int, side: int, config: DataConfig) -> list[Case]:
    """One volume of balls in noise, under the names of all cases."""
    axis = torch.linspace(-1, 1, side)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    label = torch.zeros((side,) * 3, dtype=torch.int16)
    for structure in range(STRUCTURES):
        angle = 2 * np.pi * structure / STRUCTURES
        centre = torch.tensor([0.4 * np.cos(angle), 0.4 * np.sin(angle), 0.0], dtype=torch.float32)
        label[(points - centre).norm(dim=-1) < 0.2] = structure + 1
    image = np.random.default_rng(0).normal(0, 50, label.shape) + 300 * (label > 0).numpy()
    affine = np.diag([config.spacing_mm] * 3 + [1.0])
    write_volume(folder / "image.nii", image.astype(np.int16), affine)
    write_volume(folder / "label.nii", label.numpy(), affine)
    cases = []
    for number in range(count):
        case = Case(f"case_{number:04}", folder / f"{number:04}_image.nii", folder / f"{number:04}_label.nii")
        os.link(folder / "image.nii", case.image)
        os.link(folder / "label.nii", case.label)
        cases.append(case)
    return cases


def copy_entries(cases: list[Case], config: DataConfig, margin: int, cache_dir: str):
    """Give each case that has none yet an entry in the cache: the first one's sample."""
    files = training_set._SampleFiles(Path(cache_dir), config, margin)
    entry = training_set._to_entry(files.read(files.path_of(cases[0])))
    for case in cases:
        path = files.path_of(case)
        if not path.exists():
            write_entry(path, entry)


def in_a_process(function: Callable, task) -> tuple[float, float, float]:
    """Seconds, and the most memory in MiB, the process's own and all that it can see, of a task in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *task).result()


def memory() -> tuple[float, float]:
    """The process's own memory now, and with what it maps of files, in MiB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / MIB, int(fields["VmRSS"].split()[0]) / MIB


def only_libraries(*_) -> tuple[float, float, float]:
    return (0.0, *memory())


def open_all(cases, config, margin, cache_dir) -> TrainingSet:
    prepare(cases, config, margin, cache_dir)
    return TrainingSet(cases, config, margin, cache_dir)


def start(cases, config, margin, cache_dir, arguments) -> tuple[float, float, float]:
    """From the list of cases to all that a training needs of them before its first step."""
    torch.set_num_threads(arguments.threads)
    begin = time.perf_counter()
    open_all(cases, config, margin, cache_dir)
    return (time.perf_counter() - begin, *memory())


def draw(cases, config, margin, cache_dir, arguments) -> tuple[float, float, float]:
    """Random samples one after the other, as a training draws them: the median of the seconds for one."""
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    samples = open_all(cases, config, margin, cache_dir)
    generator = torch.Generator().manual_seed(0)
    order = random.Random(0)
    seconds = []
    most = memory()
    for _ in range(arguments.draws):
        begin = time.perf_counter()
        sample = samples[order.randrange(len(samples))]
        augment(sample.image, sample.label, config.shape, sample.grid.spacing_mm, generator)
        seconds.append(time.perf_counter() - begin)
        most = tuple(map(max, most, memory()))
        del sample
    return (statistics.median(seconds), *most)


if __name__ == "__main__":
    run_script(main)
