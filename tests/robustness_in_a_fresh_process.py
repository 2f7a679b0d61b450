"""The fuzz itself: it sees what is planted, draws the same input for the same number, and finds no fault in a few.

Run by test_robustness.py in a process of its own: children are forked here, and their memory is measured.
"""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from implicitmeshnet.script import InputError

if sys.platform != "linux":
    pytest.skip("needs processes that are forked and held to memory, as Linux does", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
children, kills, project, robustness, values = (
    importlib.import_module(name)
    for name in ("faults.children", "faults.kills", "faults.project", "robustness", "faults.values")
)
NAMES = re.compile(r"a\.nii")


def refuse(sentence: str, cause: Exception | None = None):
    raise InputError(sentence) from cause


def say(text: str):
    print(text, file=sys.stderr)


PLANTED = {
    "nothing": (lambda: None, "used"),
    "a warning": (lambda: say("warning: a.nii: doubtful"), "used"),
    "a sentence": (lambda: refuse("a.nii: wanted this, found that"), "refused"),
    "two lines": (lambda: refuse("a.nii: wanted this,\nfound that"), "refused"),  # which run_script makes one
    "another file": (lambda: refuse("b.nii: wanted this, found that"), "no sentence"),
    "an empty reason": (lambda: refuse("a.nii: cannot be read ()"), "no sentence"),
    "an empty shape": (lambda: refuse("a.nii: wanted shape (3,), found ()"), "refused"),
    "a long sentence": (lambda: refuse("a.nii: wanted this, found " + 1000 * "that"), "no sentence"),
    "a library's warning": (lambda: say("/lib/numpy.py:3: RuntimeWarning: overflow"), "no sentence"),
    "a control character": (lambda: say("\x1b[31m"), "no sentence"),
    "a wrong result": (lambda: children.expect(False, "the sun"), "wrong result"),
    "an exception": (lambda: 1 / 0, "traceback"),
    "a traceback that is printed": (lambda: say("Traceback (most recent call last):"), "traceback"),
    "another exit status": (lambda: sys.exit(1), "traceback"),
    "a segmentation fault": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
    "an end without a word": (lambda: os._exit(0), "crash"),
    "memory": (lambda: bytearray(children.MEMORY + 2**20), "over memory"),
    "memory of torch": (lambda: torch.empty(children.MEMORY + 2**20, dtype=torch.uint8), "over memory"),
    "memory behind a sentence": (lambda: refuse("a.nii: wanted this, found that", MemoryError()), "over memory"),
    "time": (lambda: time.sleep(10), "over time"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_seen_for_what_it_is(name):
    use, wanted = PLANTED[name]
    outcome = children.call(use, NAMES, hang_s=0.5 if name == "time" else children.HANG_SECONDS)
    assert outcome.kind == wanted, outcome.text


def test_memory_below_the_limit_is_measured():
    outcome = children.call(lambda: bytearray(2**28).count(1), NAMES)
    assert outcome.kind == "used"
    assert 250 < outcome.mib < 400


class Planted:
    """Draws inputs of which every third breaks one of its two uses."""

    def __init__(self, _):
        pass

    def draw(self, folder, generator):
        number = int(generator.integers(3))
        uses = {"well": lambda: None, "badly": partial(int.__truediv__, 1, number)}
        return values.Input(f"number {number}", uses, NAMES)


def test_each_fault_is_listed_with_the_number_that_draws_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robustness, "KINDS", {"planted": (Planted, 9)})
    folder = Namespace(folder=tmp_path)
    faults = robustness.fuzz_all(folder, Namespace(planted=12, seed=3))
    assert 0 < len(faults) < 12
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:2] == ["planted", "12"]
    counts = dict(zip(children.OUTCOMES, map(int, row[2:-2]), strict=True))
    assert counts == dict.fromkeys(children.OUTCOMES, 0) | {"used": 12 - len(faults), "traceback": len(faults)}
    for fault in faults:
        number = re.match(r"planted:(\d+) badly: traceback: ZeroDivisionError: .* <- number 0$", fault)[1]
        robustness.show("planted", int(number), folder, 3)
        shown = capsys.readouterr().out
        assert "well: used" in shown
        assert "badly: traceback" in shown
        assert "\nZeroDivisionError: " in shown


@pytest.mark.parametrize("kind", ["volumes", "configs"])
def test_a_number_draws_the_same_input_again(kind, tmp_path):
    (tmp_path / "project").mkdir()
    drawing = robustness.KINDS[kind][0](project.Project(tmp_path / "project"))
    drawn = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        changes = [drawing.draw(folder, np.random.default_rng([0, number])).change for number in range(5)]
        drawn.append([changes, {path.name: path.read_bytes() for path in folder.iterdir()}])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0][0])) == 5


def test_a_few_inputs_of_each_kind_are_used_or_refused():
    counts = {"volumes": 40, "configs": 40, "checkpoints": 5, "folders": 5}
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks/robustness.py", "--kills=0", *(f"--{k}={n}" for k, n in counts.items())],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {name: list(map(int, cells)) for name, *cells, _, _ in map(str.split, run.stdout.splitlines()[1:])}
    assert {name: cells[0] for name, cells in rows.items()} == counts
    for _, refused, used, *faults in rows.values():
        assert used and refused
        assert not any(faults)


STEPS = "for number in range(20): (out / f'{number}.txt').write_text(str(number)); time.sleep(0.01)"
RUNS = {
    "well": ("", ""),
    "half-written": ("(out / f'.partial-{os.getpid()}').touch()", "(out / f'.partial-{os.getpid()}').unlink()"),
    "twice": ("(out / 'log.txt').open('a').write('x')", ""),
    "refuses": ("os.path.exists(out / '0.txt') and sys.exit('a.nii: wanted no such file')", ""),
    "forgets": ("done = (out / '0.txt').exists()", "done or (out / 'best.txt').touch()"),
}
FOUND = {
    "well": "",
    "half-written": r"missing \[\], left over \['\.partial-\d+'\]",
    "twice": r"others in \['log\.txt'\]",
    "refuses": r"exit status 1: \['a\.nii: wanted no such file'\]",
    "forgets": r"missing \['best\.txt'\], left over \[\]",
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_does_not_mend_what_a_kill_left_is_seen(name, tmp_path):
    before, after = RUNS[name]
    script = tmp_path / "script.py"
    lines = ["import os, pathlib, sys, time", "out = pathlib.Path(sys.argv[1])", "out.mkdir(exist_ok=True)"]
    script.write_text("\n".join([*lines, before, STEPS, after]))
    command = [str(script), str(tmp_path / "out")]
    killed = list(kills.kill_runs(command, tmp_path / "out", np.random.default_rng(0), 3))
    assert len(killed) == 3
    faults = [run.fault for run in killed]
    assert any(re.fullmatch(FOUND[name], fault) for fault in faults), faults  # not all: some die before the first step
    assert name != "well" or not any(faults)


def test_values_are_the_same_to_the_bit_but_for_times():
    one = {"network": {"a": torch.ones(2)}, "history": [{"epoch": 1, "seconds": 2.0, "dice": {"LV": 0.5}}]}
    assert kills.same(one, one | {"history": [{"epoch": 1, "seconds": 3.0, "dice": {"LV": 0.5}}]})
    assert not kills.same(one, one | {"history": [{"epoch": 1, "seconds": 2.0, "dice": {"LV": 0.5 + 1e-16}}]})
    assert not kills.same(one, one | {"network": {"a": torch.tensor([1, 1 + 1.2e-7])}})
    assert not kills.same(one, one | {"network": {"a": torch.ones(2).double()}})
    assert not kills.same(one, one | {"history": []})
    assert not kills.same([b"a"], ["a"])
