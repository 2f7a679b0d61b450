"""What several processes bring to a training: cases a second, and its start without and with cached cases.

    python benchmarks/scaling.py --config=configs_implicitmeshnet/hippocampus.json [--section.key=value ...]

Each layout, PROCESSES x THREADS of each, runs the training script in a new folder for --epochs epochs, the layouts in
turns for --rounds rounds. Cases a second are those of an epoch's steps, without the first epoch, which warms up; a
start lasts from the command to the first step, libraries included. The start without cache is the first layout's.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from timing import at_least

from implicitmeshnet.config import Config, load_config
from implicitmeshnet.data.dataset import configured_split, find_cases
from implicitmeshnet.script import InputError, run_script

SCRIPT = Path(__file__).resolve().parents[1] / "implicitmeshnet_train.py"


@dataclass(frozen=True)
class Layout:
    """How many processes, and how many threads each has."""

    processes: int
    threads: int

    def __str__(self):
        return f"{self.processes} x {self.threads}"


@dataclass(frozen=True)
class Took:
    """The seconds of a run's start, and of the steps of each epoch."""

    start: float
    epochs: list[float]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layouts", type=layout, nargs="+", default=[Layout(1, 1), Layout(1, 2), Layout(2, 1)])
    parser.add_argument("--epochs", type=at_least(2), default=3)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    arguments, overrides = parser.parse_known_args()
    cases = cases_of_an_epoch(load_config(arguments.config, overrides))
    options = [f"--config={arguments.config}", f"--device={arguments.device}", *overrides]
    options += [f"--training.epochs={arguments.epochs}", f"--training.validate_every={arguments.epochs}"]
    starts, speeds, first_starts = defaultdict(list), defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            cache = f"--data.cache_dir={folder}/cache_{number}"
            first_starts.append(train(arguments.layouts[0], Path(folder, f"{number}_first"), [*options, cache]).start)
            for each in arguments.layouts:
                took = train(each, Path(folder, f"{number}_{each}"), [*options, cache])
                starts[each].append(took.start)
                speeds[each] += [cases / seconds for seconds in took.epochs[1:]]
    print(f"{'processes x threads':<22}{'cases a second':>16}{'to the first':>14}{'start s':>10}")
    first = statistics.median(speeds[arguments.layouts[0]])
    print(f"{'without cache':<22}{'':>16}{'':>14}{statistics.median(first_starts):>10.1f}")
    for each in arguments.layouts:
        speed, start = statistics.median(speeds[each]), statistics.median(starts[each])
        print(f"{each!s:<22}{speed:>16.2f}{speed / first:>14.2f}{start:>10.1f}")


def layout(text: str) -> Layout:
    processes, _, threads = text.partition("x")
    return Layout(at_least(1)(processes), at_least(1)(threads))


def cases_of_an_epoch(config: Config) -> int:
    """How many samples an epoch's steps draw."""
    cases = find_cases(config.data.dir, labelled=True, channels=config.data.channels)
    training_cases, _ = configured_split(cases, config)
    return config.training.steps_of_epoch(len(training_cases)) * config.training.batch_size


def train(layout: Layout, run_dir: Path, options: list[str]) -> Took:
    """A training by its script, in processes that meet on this machine."""
    begin = time.perf_counter()
    processes = start_processes(layout, [*options, f"--training.run_dir={run_dir}"])
    while processes[0].poll() is None and not (run_dir / "provenance.json").exists():  # written ahead of the first step
        time.sleep(0.01)
    start = time.perf_counter() - begin
    said = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        raise InputError(f"{layout}: wanted a training, found it ended by: {said[0].strip()[-300:]}")
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    return Took(start, [json.loads(line)["seconds"] for line in lines])


def start_processes(layout: Layout, options: list[str]) -> list[subprocess.Popen]:
    """What torchrun does, without its own seconds."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    job = {"WORLD_SIZE": layout.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    job["OMP_NUM_THREADS"] = layout.threads
    processes = []
    for rank in range(layout.processes):
        variables = job | {"RANK": rank, "LOCAL_RANK": rank}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, SCRIPT, *options],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


if __name__ == "__main__":
    run_script(main)
