"""Trainings that are cut short at random moments, again and again, against the same ones left alone.

    python benchmarks/interruptions.py --kills=20 --terms=5 --processes 1 2

Each round starts a small training of some hundred steps in real processes, ends it at a random moment by SIGKILL or
SIGTERM (of two processes, one that is drawn), and starts it again, until it was ended so many times and then finishes.
Prints how often it was ended at which point, and whether its last weights equal, bit for bit, those of a training on as
many processes that nobody disturbed.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
from faults.project import DATA, NETWORK, Project

from implicitmeshnet.config import REPOSITORY
from implicitmeshnet.script import InputError, run_script

TRAINING = {"epochs": 40, "repeats": 8, "batch_size": 2, "validate_every": 4, "checkpoint_minutes": 0.002}
START_S = 120.0  # until the first checkpoint, at most
GRACE_S = 15.0  # between the end of one process and that of the others, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'processes':>9}  {'ended by':<24}{'in':<44}{'equal':>6}{'largest difference':>20}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder)
        for count in arguments.processes:
            undisturbed = Training(folder, f"undisturbed_{count}", count)
            undisturbed.start()
            assert undisturbed.wait() == {0}, undisturbed.said()
            disturbed = Training(folder, f"disturbed_{count}", count)
            signals = [signal.SIGKILL] * arguments.kills + [signal.SIGTERM] * arguments.terms
            disturb(disturbed, signals, random.Random(arguments.seed))
            print_row(undisturbed, disturbed, signals)


def write_project(folder: Path) -> None:
    """A data set of blobs and a config that trains on it for some seconds."""
    Project(folder)
    config = {"data": DATA | {"dir": str(folder / "data")}, "network": NETWORK, "training": TRAINING}
    (folder / "config.json").write_text(json.dumps(config))


class Training:
    """A training of so many processes, and where it was ended."""

    def __init__(self, folder: Path, name: str, count: int):
        self.folder = folder
        self.run = folder / name
        self.count = count
        self.ended: Counter[str] = Counter()
        self.processes: list[subprocess.Popen] = []

    def start(self) -> None:
        port = free_port()
        command = [
            sys.executable,
            REPOSITORY / "implicitmeshnet_train.py",
            f"--config={self.folder / 'config.json'}",
            f"--training.run_dir={self.run}",
            "--device=cpu",
        ]
        self.processes = []
        for rank in range(self.count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.count}
            variables = place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            with (self.folder / f"{self.run.name}_{rank}.txt").open("ab") as log:
                environment = os.environ | {key: str(value) for key, value in variables.items()}
                self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def wait(self) -> set[int]:
        """The exit statuses of the processes, once all have ended.

        As torchrun and srun do, it ends those that do not end by themselves soon after another.
        """
        while len(ended := [process for process in self.processes if process.poll() is not None]) < self.count:
            if any(process.returncode for process in ended):
                self._end_the_rest()
            time.sleep(0.05)
        return {process.returncode for process in self.processes}

    def _end_the_rest(self) -> None:
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()

    def said(self) -> str:
        return (self.folder / f"{self.run.name}_0.txt").read_text()

    def state(self) -> dict | None:
        path = self.run / "last.pt"
        return torch.load(path, weights_only=True) if path.exists() else None

    def place(self) -> str:
        """Where the last checkpoint is."""
        state = self.state()
        if state is None:
            return "before the first checkpoint"
        return "in an epoch" if state["unfinished"] else "after an epoch"


def disturb(training: Training, signals: list[signal.Signals], draw: random.Random) -> None:
    """End a training by each signal, in random order, at a random moment, and let it finish at last."""
    draw.shuffle(signals)
    start_s = measured_start(training)
    for number in signals:
        training.start()
        time.sleep(start_s * draw.uniform(0.7, 1.5))
        draw.choice(training.processes).send_signal(number)
        statuses = training.wait()
        if statuses == {0}:
            raise InputError("--kills: wanted fewer than end the training before it finishes, found too many")
        training.ended[training.place()] += 1
    training.start()
    assert training.wait() == {0}, training.said()


def measured_start(training: Training) -> float:
    """The seconds until this training writes its first checkpoint; it is killed there, once."""
    begin = time.perf_counter()
    training.start()
    while training.state() is None:
        time.sleep(0.05)
        assert time.perf_counter() - begin < START_S, training.said()
    seconds = time.perf_counter() - begin
    for process in training.processes:
        process.kill()
    training.wait()
    return seconds


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def print_row(undisturbed: Training, disturbed: Training, signals: list[signal.Signals]) -> None:
    wanted, found = undisturbed.state(), disturbed.state()
    assert wanted is not None and found is not None, "both have finished"
    difference = 0.0
    for name, values in wanted["network"].items():
        difference = max(difference, (values - found["network"][name]).abs().max().item())
    counts = Counter(number.name for number in signals)
    ended = ", ".join(f"{count} {name}" for name, count in counts.items())
    places = ", ".join(f"{count} {place}" for place, count in disturbed.ended.items())
    equal = "yes" if difference == 0 else "NO"
    print(f"{disturbed.count:>9}  {ended:<24}{places:<44}{equal:>6}{difference:>20.3g}", flush=True)


if __name__ == "__main__":
    run_script(main)
