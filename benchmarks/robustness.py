"""What odd and damaged input and kills do: whatever is read, changed at random, and runs killed at random moments.

    nice python benchmarks/robustness.py [--seed=0] [--volumes=2000 ...] [--kills=20]
    python benchmarks/robustness.py --only=volumes:137    # one input again, with its traceback

Each input is used in a process of its own, which may take 2 GiB beside the libraries and 10 s of processor time. Either
it gives a right result, or exit status 2 and lines on stderr of which one names the file or argument; anything else is
a fault, listed with its number. Exit status 1 where there is one.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from faults.checkpoints import Checkpoints
from faults.children import OUTCOMES, Outcome, call
from faults.configs import Configs
from faults.folders import Folders
from faults.kills import kill_runs
from faults.project import SCRIPTS, Project
from faults.volumes import Volumes
from timing import at_least, hold_threads

from implicitmeshnet.script import run_script

KINDS = {
    "volumes": (Volumes, 2000),
    "configs": (Configs, 500),
    "checkpoints": (Checkpoints, 200),
    "folders": (Folders, 200),
}
"""What is drawn, and how many by default."""
NO_FAULTS = OUTCOMES[:2]


def main():
    arguments = parse_arguments()
    hold_threads(1)
    with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
        project = Project(Path(folder))
        if arguments.only:
            show(*arguments.only, project, arguments.seed)
            return
        faults = fuzz_all(project, arguments)
        if arguments.kills:
            faults += kill_all(project, arguments)
    for fault in faults:
        print(fault)
    sys.exit(1 if faults else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=at_least(0), default=0)
    for kind, (_, count) in KINDS.items():
        parser.add_argument(f"--{kind}", type=at_least(0), default=count, help=f"how many; {count} unless told")
    parser.add_argument("--kills", type=at_least(0), default=20, help="of each script; 20 unless told")
    parser.add_argument("--only", type=one_input, metavar="KIND:NUMBER", help="one input of the same seed, in full")
    return parser.parse_args()


def one_input(text: str) -> tuple[str, int]:
    kind, _, number = text.partition(":")
    if kind not in KINDS or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted one of {', '.join(KINDS)} and a number, as volumes:137, found {text}")
    return kind, int(number)


def show(kind: str, number: int, project: Project, seed: int):
    """Print one input, and all that its uses said."""
    change, outcomes = use_one(kind, number, KINDS[kind][0](project), project, seed)
    print(change)
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome.kind}, {outcome.seconds:.1f} s, {outcome.mib:.0f} MiB\n{outcome.text}")


def fuzz_all(project: Project, arguments) -> list[str]:
    """Print a row for each kind; a line for each fault."""
    print(f"{'':<13}{'count':>6}" + "".join(f"{name:>14}" for name in OUTCOMES) + f"{'most s':>9}{'most MiB':>10}")
    faults = []
    for kind, (drawing, _) in KINDS.items():
        count = getattr(arguments, kind)
        if count:
            faults += fuzz(kind, drawing(project), project, arguments.seed, count)
    return faults


def fuzz(kind: str, drawing, project: Project, seed: int, count: int) -> list[str]:
    """Draw and use so many inputs and print their row; a line for each fault."""
    counts, faults, seconds, mib = Counter(), [], 0.0, 0.0
    for number in range(count):
        change, outcomes = use_one(kind, number, drawing, project, seed)
        name = max(outcomes, key=lambda name: OUTCOMES.index(outcomes[name].kind))
        outcome = outcomes[name]
        counts[outcome.kind] += 1
        seconds = max(seconds, *(each.seconds for each in outcomes.values()))
        mib = max(mib, *(each.mib for each in outcomes.values()))
        if outcome.kind not in NO_FAULTS:
            lines = outcome.text.strip().split("\n")
            said = lines[-1] if outcome.kind == "traceback" else lines[0]
            faults.append(f"{kind}:{number} {name}: {outcome.kind}: {said[:300]} <- {change}")
    cells = "".join(f"{counts[name]:>14}" for name in OUTCOMES)
    print(f"{kind:<13}{count:>6}{cells}{seconds:>9.1f}{mib:>10.0f}", flush=True)
    return faults


def use_one(kind: str, number: int, drawing, project: Project, seed: int) -> tuple[str, dict[str, Outcome]]:
    """What was changed in one input, and what became of each of its uses."""
    generator = np.random.default_rng([seed, list(KINDS).index(kind), number])
    with tempfile.TemporaryDirectory(dir=project.folder) as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of tensors that are odd on purpose
            drawn = drawing.draw(Path(folder), generator)
        return drawn.change, {name: call(use, drawn.names) for name, use in drawn.uses.items()}


def kill_all(project: Project, arguments) -> list[str]:
    """Kill runs of each script and print its row; a line for each that did not end as one that was left alone."""
    project.train()
    faults = []
    print(f"\n{'':<13}{'kills':>6}{'the same':>14}{'another':>14}{'files left':>14}{'half-written':>14}")
    for number, what in enumerate(SCRIPTS):
        generator = np.random.default_rng([arguments.seed, len(KINDS), number])
        out = project.folder / "killed" / what
        killed = list(kill_runs(project.command(what, out), out, generator, arguments.kills))
        wrong = []
        half_written = 0
        for run in killed:
            if run.fault:
                wrong.append(f"{what}: killed after {run.after_s:.3f} s with {', '.join(run.left)}: {run.fault}")
            half_written += any(".partial-" in name for name in run.left)
        left = [len(run.left) for run in killed]
        row = f"{what:<13}{len(killed):>6}{len(killed) - len(wrong):>14}{len(wrong):>14}"
        row += f"{f'{min(left)} to {max(left)}':>14}{half_written:>14}"
        print(row, flush=True)
        faults += wrong
    return faults


if __name__ == "__main__":
    run_script(main)
