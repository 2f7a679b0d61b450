"""Kill trainings before each file that they put in place, call them again, and compare with one that was left alone.

    python tests/killed_runs.py '[[FOLDER, SCRIPT, [OPTION, ...]], ...]'

A part of test_runs.py, in one process for all trainings: with one thread it can be forked, which spares the imports. A
run is FOLDER/run; where FOLDER/start is there each begins with a copy of it. Prints, in JSON, the number of kills of
each training, or what went wrong with it.
"""

import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # which an optimiser imports, for two seconds
from matplotlib.figure import Figure

from implicitmeshnet.surfaces import figures

figures.RENDER_PIXELS = 40
OF_THEIR_TIME = {"last.pt", "log.jsonl", "provenance.json"}
SECONDS = ("seconds", "validation_seconds")


def save_values(figure: Figure, file, **_):
    """In place of a picture, which takes longer than an epoch here: the values of its lines and images."""
    lines = [line.get_xydata() for panel in figure.axes for line in panel.lines]
    images = [image.get_array() for panel in figure.axes for image in panel.images]
    values = np.concatenate([np.ravel(array).astype(float) for array in lines + images]).tobytes()
    file.write_bytes(values) if isinstance(file, Path) else file.write(values)


def train(script, folder: Path, options: list[str], kill_before: int) -> int:
    """A run in a process of its own, killed before its nth file is put in place; how it ended, as by os.wait."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    replace, count = Path.replace, iter(range(1, 10**6))

    def counted(source: Path, target: Path):
        if next(count) == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(source, target)

    Path.replace = counted
    Figure.savefig = save_values
    sys.argv = [script.__name__, f"--training.run_dir={folder / 'run'}", "--device=cpu", *options]
    try:
        script.main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def restart(folder: Path):
    shutil.rmtree(folder / "run", ignore_errors=True)
    if (folder / "start").exists():
        shutil.copytree(folder / "start", folder / "run")


def check_same(wanted, found):
    """Raise AssertionError where two states differ in anything but the seconds that they took."""
    assert type(wanted) is type(found)
    if isinstance(wanted, dict):
        assert list(wanted) == list(found)
        for name in wanted:
            if name not in SECONDS:
                check_same(wanted[name], found[name])
    elif isinstance(wanted, list):
        assert len(wanted) == len(found)
        for one, other in zip(wanted, found, strict=True):
            check_same(one, other)
    else:
        same = torch.equal(wanted, found) if isinstance(wanted, torch.Tensor) else wanted == found
        assert same, (wanted, found)


def files(folder: Path) -> set[str]:
    """All that is in a run folder and below it, by paths from there."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("events")]
    return {str(path.relative_to(folder)) for path in paths}


def kill_everywhere(folder: Path, script, options: list[str]) -> int:
    """The number of kills, each of which was mended; AssertionError where one was not."""
    restart(folder)
    assert train(script, folder, options, 0) == 0
    wanted = (folder / "run").rename(folder / "wanted")
    kills = 0
    while True:
        restart(folder)
        if train(script, folder, options, kills + 1) == 0:
            return kills
        assert (folder / "run/.lock").exists()
        assert train(script, folder, options, 0) == 0, f"not resumed after kill {kills + 1}"
        assert files(folder / "run") == files(wanted)
        for name in files(wanted) - OF_THEIR_TIME:
            assert (folder / "run" / name).read_bytes() == (wanted / name).read_bytes(), (name, kills + 1)
        check_same(*(torch.load(path / "last.pt", weights_only=True) for path in (wanted, folder / "run")))
        kills += 1


def main():
    outcomes = []
    for folder, script, options in json.loads(sys.argv[1]):
        try:
            outcomes.append(kill_everywhere(Path(folder), importlib.import_module(script), options))
        except AssertionError:
            outcomes.append(traceback.format_exc())
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
