"""Runs of the scripts, killed at random moments and called again, beside one that was left alone."""

import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from implicitmeshnet.models.weights import load_checkpoint
from implicitmeshnet.script import InputError

POLL_S = 0.002
TIMED = "seconds"  # the one entry of histories and tables that may differ


class Killed(NamedTuple):
    """A run that was killed once and called again."""

    after_s: float  # since its folder was there
    left: list[str]  # the files that the kill left
    fault: str  # what is wrong with those that the second call left; empty where nothing is


def kill_runs(command: list[str], out: Path, generator: np.random.Generator, count: int) -> Iterator[Killed]:
    """Kill so many runs of a command that writes into the folder `out`, each at a moment of its own.

    Raises InputError where the command does not work undisturbed.
    """
    process, begun = begin(command, out)
    _, errors = process.communicate()
    work_s = time.perf_counter() - begun
    if process.returncode:
        raise InputError(f"{' '.join(command)}: wanted a run without error, found {errors}")
    wanted = contents(out)
    while count:
        shutil.rmtree(out)
        after_s = float(generator.uniform(0, work_s))
        process, begun = begin(command, out)
        time.sleep(max(begun + after_s - time.perf_counter(), 0))
        process.kill()
        process.communicate()
        if process.returncode < 0:  # else it had ended, earlier than the first one did
            count -= 1
            left = sorted(path.name for path in out.iterdir())
            yield Killed(after_s, left, call_again(command, out, wanted))


def begin(command: list[str], out: Path) -> tuple[subprocess.Popen, float]:
    """A run, and when its folder was there."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not out.exists() and process.poll() is None:
        time.sleep(POLL_S)
    return process, time.perf_counter()


def call_again(command: list[str], out: Path, wanted: dict) -> str:
    """What is wrong with a run's folder after a second call; empty where nothing is."""
    again = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if again.returncode:
        return f"exit status {again.returncode}: {again.stderr.strip().splitlines()[-1:]}"
    found = contents(out)
    if set(found) != set(wanted):
        return f"missing {sorted(set(wanted) - set(found))}, left over {sorted(set(found) - set(wanted))}"
    others = [name for name, content in wanted.items() if not same(content, found[name])]
    return f"others in {sorted(others)}" if others else ""


def contents(out: Path) -> dict:
    """What a run's folder holds, by name: checkpoints and tables as values, else bytes; TensorBoard's files left out,
    which hold times throughout."""
    found = {}
    for path in out.iterdir():
        if path.suffix == ".pt":
            found[path.name] = load_checkpoint(path)
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                found[path.name] = list(csv.DictReader(file))
        elif not path.name.startswith("events."):
            found[path.name] = path.read_bytes()
    return found


def same(one, other) -> bool:
    """Whether two values are the same to the bit, but for times."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(name == TIMED or same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other
