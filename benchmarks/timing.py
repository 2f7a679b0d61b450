"""How the benchmarks time: rows that take turns, so that a busy machine slows them alike."""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from implicitmeshnet.models.weights import pick_device
from implicitmeshnet.script import core_count

TURN_MS = 100
SYNCHRONIZE = {"cpu": lambda: None, "cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}


class Row(NamedTuple):
    """One line of a table."""

    name: str
    compute: Callable  # () -> result
    read: Callable | None = None  # result -> what is judged
    signed: bool = True
    share: float = 1  # of the work that compute covers
    note: str = ""


class Result(NamedTuple):
    """What a row took for the whole grid, how many cores were busy, and what it read from its last result."""

    ms: float
    cores: float
    value: torch.Tensor | None

    def __str__(self):
        return f"{self.ms:>11.2f}{self.cores:>7.1f}"


def turn(compute, synchronize):
    """Milliseconds and processor milliseconds of each call that one turn has time for, and the last result."""
    taken = []
    while sum(ms for ms, _ in taken) < TURN_MS:
        result = None  # frees the last call's
        begin = time.perf_counter(), time.process_time()
        result = compute()
        synchronize()
        taken.append(((time.perf_counter() - begin[0]) * 1e3, (time.process_time() - begin[1]) * 1e3))
    return taken, result


def measure(rows, rounds, synchronize):
    """A Result of each row; all take turns in each round."""
    taken, values = [[] for _ in rows], [None] * len(rows)
    for _ in range(rounds):
        for index, row in enumerate(rows):
            calls, result = turn(row.compute, synchronize)
            taken[index] += calls
            values[index] = row.read(result) if row.read else None
    results = []
    for row, calls, value in zip(rows, taken, values, strict=True):
        wall, processor = zip(*calls, strict=True)
        results.append(Result(statistics.median(wall) / row.share, sum(processor) / sum(wall), value))
    return results


def hold_threads(threads):
    """For torch, for libraries loaded from here on and, through the cores that they see, for the rest."""
    torch.set_num_threads(threads)
    for name in ("OMP_NUM_THREADS", "IGL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def parse_arguments(description):
    """What every benchmark of ops asks for (rounds, threads held, device), and the torch device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--threads", type=at_least(1), default=core_count())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    hold_threads(arguments.threads)
    return arguments, device


def at_least(lowest):
    def number(text):
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"wanted {lowest} or more, found {text}")
        return int(text)

    return number
