"""Runs as machines treat them: killed anywhere, short of disk, two in one folder, begun with what does not fit."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from faults.project import DISTANCE_NETWORK, NETWORK
from matplotlib.figure import Figure
from scripts import call
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from volumes import write_two_blobs

import implicitmeshnet_train
import pretrain_drn
from implicitmeshnet.config import DrnConfig, load_config
from implicitmeshnet.data.nifti import read_labels, write_volume
from implicitmeshnet.script import InputError, locked
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.loop import Loop

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three cases of two blobs, a config that trains on them in a second, and one for a distance network."""
    path = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    for case in range(3):
        write_two_blobs(path / "data", case, generator)
    config = {
        "data": {"dir": str(path / "data"), "shape": [8, 8, 8], "spacing_mm": 8.0, "validation_cases": 1},
        "network": NETWORK,
        "training": {"run_dir": str(path / "run"), "epochs": 2, "repeats": 2, "validate_every": 1},
    }
    (path / "config.json").write_text(json.dumps(config))
    config = {
        "network": DISTANCE_NETWORK,
        "training": {
            "run_dir": str(path / "drn"),
            "epochs": 2,
            "shapes": 4,
            "validation_shapes": 2,
            "validate_every": 1,
        },
    }
    (path / "drn.json").write_text(json.dumps(config))
    return path


SCRIPTS = [(implicitmeshnet_train, "config.json"), (pretrain_drn, "drn.json")]
both = pytest.mark.parametrize(("script", "config"), SCRIPTS, ids=[script.__name__ for script, _ in SCRIPTS])


def train(script, *arguments):
    call(script, *arguments, "--device=cpu")


@pytest.fixture(scope="module")
def finished(folder):
    """The folder with a run of both scripts, two epochs each."""
    for script, config in SCRIPTS:
        train(script, f"--config={folder / config}")
    return folder


def run_of(script, folder: Path) -> Path:
    return folder / ("run" if script is implicitmeshnet_train else "drn")


@pytest.fixture(scope="module")
def killed(finished):
    """What became of kills, by (script, start): of runs anew, and of finished ones that are lengthened."""
    jobs = {}
    for script, config in SCRIPTS:
        for start in ("anew", "lengthened"):
            place = finished / f"killed_{script.__name__}_{start}"
            place.mkdir()
            every_step = "--training.checkpoint_minutes=1e-9"
            options = [f"--config={finished / config}", every_step]
            if start == "lengthened":
                shutil.copytree(run_of(script, finished), place / "start")
                options.append("--training.epochs=3")
            jobs[script, start] = [str(place), script.__name__, options]
    run = subprocess.run(
        [sys.executable, ROOT / "tests/killed_runs.py", json.dumps(list(jobs.values()))],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(jobs, json.loads(run.stdout.splitlines()[-1]), strict=True)), run.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("script", [script for script, _ in SCRIPTS], ids=lambda script: script.__name__)
@pytest.mark.parametrize(("start", "fewest"), [("anew", 12), ("lengthened", 6)])
def test_a_run_killed_anywhere_ends_with_the_same_files(killed, script, start, fewest):
    """Before each of its files is put in place, the last.pt of each step among them; then the same command."""
    kills, said = killed
    assert isinstance(kills[script, start], int), f"{kills[script, start]}\n{said}"
    assert kills[script, start] >= fewest


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run folder, without those of its cache, to which each start may add."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def read_no_cases(monkeypatch):
    monkeypatch.setattr(implicitmeshnet_train, "find_cases", lambda *_, **__: pytest.fail("cases were read"))


@both
def test_a_config_that_does_not_fit_the_run_folder_is_refused_before_cases_are_read(
    finished, monkeypatch, script, config
):
    read_no_cases(monkeypatch)
    before = contents(run_of(script, finished))
    for override, sentence in (
        ("learning_rate=0.01", r"holds a run with training\.learning_rate = .*, wanted 0\.01"),
        ("epochs=1", r"holds a run with training\.epochs = 2, wanted 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            train(script, f"--config={finished / config}", f"--training.{override}")
    assert contents(run_of(script, finished)) == before


def test_a_template_of_other_data_is_refused_once_it_is_known(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    arguments = [
        f"--config={folder / 'config.json'}",
        f"--training.run_dir={tmp_path / 'run'}",
        f"--data.dir={tmp_path / 'data'}",
    ]
    train(implicitmeshnet_train, *arguments, "--training.epochs=1")
    before = contents(tmp_path / "run")
    for case in range(3):
        path = tmp_path / "data" / f"ct_{case}_label.nii.gz"
        labels = read_labels(path)
        write_volume(path, np.roll(labels.data, 2, axis=0), labels.grid.affine)
    with pytest.raises(InputError, match=r"holds a run with network\.template_centres = \(\("):
        train(implicitmeshnet_train, *arguments, "--training.epochs=2")
    assert contents(tmp_path / "run") == before


def test_the_config_of_a_run_resumes_it_too_with_its_data_elsewhere(finished, tmp_path, capsys):
    """It holds the template that the run began with, which is compared with that of the data."""
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.copytree(finished / "data", tmp_path / "data")
    train(
        implicitmeshnet_train,
        f"--config={tmp_path / 'run/config.json'}",
        "--training.epochs=3",
        f"--training.run_dir={tmp_path / 'run'}",
        f"--data.dir={tmp_path / 'data'}",
    )
    assert "other files" not in capsys.readouterr().err
    assert len(torch.load(tmp_path / "run/last.pt", weights_only=True)["history"]) == 3


@both
def test_a_second_process_in_a_run_folder_is_one_sentence_before_cases_are_read(finished, monkeypatch, script, config):
    read_no_cases(monkeypatch)
    with locked(run_of(script, finished), "x"):
        before = contents(run_of(script, finished))
        with pytest.raises(
            InputError,
            match=r"training\.run_dir: wanted a folder that no other process uses, found .*"
            rf"used by process {os.getpid()} on",
        ):
            train(script, f"--config={finished / config}")
        assert contents(run_of(script, finished)) == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that no user can write in, as /proc")
@both
def test_a_run_folder_that_cannot_be_written_is_one_sentence_before_cases_are_read(folder, monkeypatch, script, config):
    read_no_cases(monkeypatch)
    with pytest.raises(InputError, match=r"training\.run_dir: /proc/self cannot be written to \(.+\)"):
        train(script, f"--config={folder / config}", "--training.run_dir=/proc/self")


@both
def test_what_killed_runs_left_half_written_goes_and_nothing_else(finished, tmp_path, script, config):
    shutil.copytree(run_of(script, finished), tmp_path / "run")
    half = [f".{name}.partial-somewhere-1-abcd_123.pt" for name in ("last.pt", "best.pt", "config.json", "preview.png")]
    others = [".notes.partial-somewhere-1-abcd_123.txt", ".keep"]
    for name in half + others:
        (tmp_path / "run" / name).touch()
    train(script, f"--config={finished / config}", f"--training.run_dir={tmp_path / 'run'}")
    assert {name for name in contents(tmp_path / "run") if name.startswith(".")} == set(others)


def circle() -> list:
    """A list that holds itself."""
    value = []
    value.append(value)
    return value


HISTORIES = {
    "none": lambda rows: None,
    "a number": lambda rows: 3,
    "a dictionary": lambda rows: dict(enumerate(rows)),
    "empty": lambda rows: [],
    "of numbers": lambda rows: [1, 2],
    "of none": lambda rows: [None, *rows[1:]],
    "of empty records": lambda rows: [{}, {}],
    "without a number": lambda rows: [{k: v for k, v in row.items() if k != "number"} for row in rows],
    "another epoch": lambda rows: rows[1:],
    "a number that is a tensor": lambda rows: [row | {"number": torch.ones(2)} for row in rows],
    "a word": lambda rows: [row | {"seconds": "long"} for row in rows],
    "another entry": lambda rows: [row | {"dice": 1.0} for row in rows],
    "a list": lambda rows: [row | {"losses": {"total": [1.0]}} for row in rows],
    "numbers by name for a number": lambda rows: [row | {"losses": {"total": {}}} for row in rows],
    "a list without end": lambda rows: [row | {"losses": {"total": circle()}} for row in rows],
    "a number without end": lambda rows: [row | {"losses": {"total": 10**400}} for row in rows],
    "no losses": lambda rows: [row | {"losses": {}} for row in rows],
    "a word for scores": lambda rows: [row | {"scores": "good"} for row in rows],
    "a word for a score": lambda rows: [row | {"scores": dict.fromkeys(row["scores"], "good")} for row in rows],
    "another score": lambda rows: [row | {"scores": {"other": 1.0}} for row in rows],
    "no scores where they are due": lambda rows: [row | {"scores": {}} for row in rows],
    "no numbers for scores": lambda rows: [row | {"scores": None} for row in rows],
}


@both
@pytest.mark.parametrize("kind", HISTORIES)
def test_a_malformed_history_is_one_sentence_that_names_the_file(finished, tmp_path, script, config, kind):
    shutil.copytree(run_of(script, finished), tmp_path / "run")
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    torch.save(state | {"history": HISTORIES[kind](state["history"])}, tmp_path / "run/last.pt")
    before = contents(tmp_path / "run")
    with pytest.raises(InputError, match=r"last\.pt: wanted a checkpoint of this network's training, found") as error:
        train(script, f"--config={finished / config}", f"--training.run_dir={tmp_path / 'run'}")
    assert len(str(error.value)) < 800
    assert contents(tmp_path / "run") == before


@both
@pytest.mark.parametrize(
    "change",
    [
        lambda state: [state],
        lambda state: {},
        lambda state: {"history": state["history"]},
        lambda state: state | {"network": None},
        lambda state: state | {"network": state["optimizer"]},
        lambda state: state | {"optimizer": None},
        lambda state: state | {"optimizer": {"state": {0: {}}}},
        lambda state: state | {"network": {name: value.to("meta") for name, value in state["network"].items()}},
    ],
    ids=range(8),
)
def test_another_checkpoint_is_one_sentence_that_names_the_file(finished, tmp_path, script, config, change):
    shutil.copytree(run_of(script, finished), tmp_path / "run")
    torch.save(change(torch.load(tmp_path / "run/last.pt", weights_only=True)), tmp_path / "run/last.pt")
    with pytest.raises(InputError, match=r"last\.pt: wanted a checkpoint of this network's training, found another: "):
        train(script, f"--config={finished / config}", f"--training.run_dir={tmp_path / 'run'}")


@pytest.mark.slow
@both
def test_a_disk_that_fills_up_is_one_sentence_and_the_last_checkpoint_stays(
    folder, tmp_path, monkeypatch, script, config
):
    """No file may be longer than half a last.pt here; of a full disk the system speaks in the same way."""
    arguments = [f"--config={folder / config}", f"--training.run_dir={tmp_path}", "--training.validate_every=2"]
    monkeypatch.setattr(Loop, "_publish", interrupt_after_an_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(script, *arguments)
    before = contents(tmp_path)
    limit = len(before["last.pt"]) // 2
    code = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        f"runpy.run_path({f'{script.__name__}.py'!r}, run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--device=cpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].endswith(f"{tmp_path / 'last.pt'}: cannot be written (File too large)")
    after = contents(tmp_path)
    assert after["last.pt"] == before["last.pt"]
    assert not any(name.startswith(".") for name in after)


def interrupt_after_an_epoch(loop):
    if loop.training.history.epochs:
        raise KeyboardInterrupt


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_records_on_a_full_disk_are_one_sentence_and_nothing_more(tmp_path, capfd):
    events = EventFile(tmp_path, 0)
    events.path = Path("/dev/full")
    with pytest.raises(InputError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        events.add_scalar("loss", 1.0, 1)
    gc.collect()
    assert capfd.readouterr().err == ""


def test_tensorboard_shows_each_epoch_once(tmp_path):
    """Also those that a killed process had recorded and not saved; and a finished epoch's stay."""
    for finished, epochs in ((0, (1, 2, 3)), (2, (3, 4))):
        events = EventFile(tmp_path, finished)
        for epoch in epochs:
            events.add_scalar("loss/total", 10.0 * finished + epoch, epoch)
    figure = Figure(figsize=(2, 1), dpi=100)
    events.add_figure("preview", figure, 4)
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in accumulator.Scalars("loss/total")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 23.0),
        (4, 24.0),
    ]
    (image,) = accumulator.Images("preview")
    assert (image.step, image.width, image.height) == (4, 200, 100)
    assert image.encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_run_folder_whose_name_is_not_utf_8_is_trained_in(folder, tmp_path):
    run_dir = tmp_path / os.fsdecode(b"caf\xe9")
    run = subprocess.run(
        [
            sys.executable,
            "pretrain_drn.py",
            f"--config={folder / 'drn.json'}",
            "--device=cpu",
            f"--training.run_dir={run_dir}",
            "--training.epochs=1",
        ],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        check=False,
    )
    assert (run.returncode, run.stderr.count(b"Traceback")) == (0, 0)
    assert b"caf\\udce9: 1 epochs" in run.stdout
    assert {"config.json", "last.pt", "best.pt", "preview.png"} <= {path.name for path in run_dir.iterdir()}
    assert load_config(run_dir / "config.json", kind=DrnConfig).training.run_dir == str(run_dir)
