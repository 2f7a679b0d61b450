"""The loop of every training on a network of one weight: steps, epochs, checkpoints, what it says and writes."""

import importlib.metadata
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from implicitmeshnet.config import TrainingConfig
from implicitmeshnet.script import InputError, Stopped
from implicitmeshnet.training import loop, processes
from implicitmeshnet.training.history import Epoch, History, Unfinished
from implicitmeshnet.training.loop import Loop, Training, duration, line_of
from implicitmeshnet.training.processes import Place
from implicitmeshnet.training.provenance import fingerprint, record_start
from implicitmeshnet.training.run import adamw, resume, take_step
from implicitmeshnet.training.signals import Signals

SETTINGS = TrainingConfig(epochs=3, validate_every=2, checkpoint_minutes=1e6)
STEPS = 4


def training_in(
    folder: Path, settings: TrainingConfig = SETTINGS, bad_steps: tuple = (), stop_at: tuple = ()
) -> Training:
    """Steps towards 1, not finite at `bad_steps` and with a signal at `stop_at`, both (epoch, step)."""
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 1)
    optimizer = adamw(network, 0.1, 0.0)

    def begin_epoch(number: int):
        def step(index: int):
            loss = (network(torch.ones(1)) - 1).square().sum()
            if (number, index) in bad_steps:
                loss = loss * torch.nan
            if (number, index) in stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return {"total": loss}, take_step(loss, network, optimizer)

        return step

    def keep(events):
        (folder / "best.pt").write_text(str(network.weight.item()))

    return Training(
        folder,
        settings,
        {"network": network, "optimizer": optimizer},
        History(("dice",), goodness=lambda scores: scores["dice"]),
        STEPS,
        learning_rate=lambda epoch: 0.1 / (1 + epoch),
        epoch=begin_epoch,
        validate=lambda: {"dice": 0.5},
        keep=keep,
        look=lambda events: "looked",
    )


def run(training: Training, unfinished: Unfinished | None = None) -> torch.Tensor:
    signals = Signals()
    with signals.listening():
        Loop(training, signals).run(unfinished)
    return training.parts["network"].weight.detach().clone()


def state_of(folder: Path) -> dict:
    return torch.load(folder / "last.pt", weights_only=True)


def resumed(folder: Path, settings: TrainingConfig = SETTINGS) -> tuple[Training, Unfinished]:
    """The training in a folder as another process begins it, and its unfinished epoch."""
    training = training_in(folder, settings)
    state = state_of(folder)
    for name, part in training.parts.items():
        part.load_state_dict(state[name])
    unfinished = Unfinished(**state["unfinished"])
    training.history.load(state["history"], settings, unfinished)
    return training, unfinished


def test_an_epoch_is_a_line_with_losses_scores_rate_and_the_time_left(tmp_path, capsys):
    run(training_in(tmp_path))
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/3: total ")
    assert " | learning rate 5.71e-02 | " in first
    assert first.endswith(" s left")
    assert " | dice 0.500 | " in second
    assert third.endswith(" s, 0 s left")


def test_log_jsonl_has_a_line_an_epoch_that_equals_the_history(tmp_path):
    run(training_in(tmp_path))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == state_of(tmp_path)["history"]
    assert [json.loads(line)["learning_rate"] for line in lines] == pytest.approx(
        [0.1 / (1 + n - 0.25) for n in (1, 2, 3)]
    )


def test_a_step_that_is_not_finite_changes_nothing_and_is_named(tmp_path, capsys):
    whole = training_in(tmp_path / "a", replace(SETTINGS, epochs=1), bad_steps=[(1, 3)])
    short = replace(
        training_in(tmp_path / "b", replace(SETTINGS, epochs=1)),
        steps=STEPS - 1,
        learning_rate=lambda epoch: whole.learning_rate(epoch * (STEPS - 1) / STEPS),
    )
    for training in (whole, short):
        training.run_dir.mkdir()
    assert torch.equal(run(whole), run(short))
    said = capsys.readouterr().err
    assert said == "warning: epoch 1: wanted finite gradients, found none in 1 of 4 steps; these were skipped\n"
    losses = [json.loads((folder / "log.jsonl").read_text())["losses"] for folder in (whole.run_dir, short.run_dir)]
    assert losses[0] == losses[1]


def test_a_training_most_of_whose_steps_are_not_finite_has_diverged(tmp_path):
    with pytest.raises(
        InputError, match=r"^training diverged in epoch 2: wanted finite gradients, found none in 3 of 4 steps;"
    ):
        run(training_in(tmp_path, bad_steps=[(2, 0), (2, 1), (2, 3)]))


@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_a_signal_stops_it_after_the_step_and_it_goes_on_to_the_bit(tmp_path, step):
    wanted = run(training_in(tmp_path))
    before = state_of(tmp_path)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM; the same command resumes$"):
        run(training_in(tmp_path, stop_at=[(2, step)]))
    assert state_of(tmp_path)["unfinished"]["steps"] == step + 1
    assert torch.equal(run(*resumed(tmp_path)), wanted)
    losses = [[epoch["losses"] for epoch in state["history"]] for state in (before, state_of(tmp_path))]
    assert losses[0] == losses[1]


def test_a_signal_outside_of_steps_stops_it_at_once(tmp_path):
    training = training_in(tmp_path)
    interrupted = replace(training, validate=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        run(interrupted)
    assert state_of(tmp_path)["unfinished"]["steps"] == STEPS


def test_a_checkpoint_is_written_by_minutes_within_an_epoch(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, state: saved.append(state["unfinished"]))
    run(training_in(tmp_path, replace(SETTINGS, epochs=1, checkpoint_minutes=1e-9)))
    assert [state and state["steps"] for state in saved] == [1, 2, 3, 4, 4, None]


def test_people_see_a_preview_early_and_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "FIRST_LOOK_S", 0.0)
    run(training_in(tmp_path))
    assert capsys.readouterr().out.count("looked") == 1


def test_best_pt_of_a_finished_epoch_is_left_alone_by_a_run_that_resumes_in_the_next(tmp_path):
    settings = replace(SETTINGS, validate_every=1)
    with pytest.raises(Stopped):
        run(training_in(tmp_path, settings, stop_at=[(2, 1)]))
    before = (tmp_path / "best.pt").read_text()
    run(*resumed(tmp_path, settings))
    assert (tmp_path / "best.pt").read_text() == before


@pytest.mark.parametrize(
    "unfinished",
    [
        3,
        {},
        {"number": 1, "steps": 0, "sums": {}, "seconds": 0.0},
        {"number": 1, "steps": 5, "sums": {}, "seconds": 0.0},
        {"number": 2, "steps": 1, "sums": {}, "seconds": 0.0},
        {"number": 1, "steps": True, "sums": {}, "seconds": 0.0},
        {"number": 1, "steps": 1, "sums": {"total": "x"}, "seconds": 0.0},
    ],
)
def test_an_unfinished_epoch_that_cannot_be_is_one_sentence(tmp_path, unfinished):
    with pytest.raises(Stopped):
        run(training_in(tmp_path, stop_at=[(1, 1)]))
    torch.save(state_of(tmp_path) | {"unfinished": unfinished}, tmp_path / "last.pt")
    training = training_in(tmp_path)
    with pytest.raises(InputError, match=r"last\.pt: wanted a checkpoint of this network's training, found another: "):
        resume(tmp_path, SETTINGS, training.parts, training.history, STEPS)


def test_an_older_run_without_the_newer_times_resumes(tmp_path):
    run(training_in(tmp_path))
    state = state_of(tmp_path)
    old = [{name: epoch[name] for name in ("number", "losses", "scores", "seconds")} for epoch in state["history"]]
    history = History(("dice",), goodness=lambda scores: scores["dice"])
    history.load(old, SETTINGS)
    assert [epoch.learning_rate for epoch in history] == [0.0] * 3


def test_the_time_left_counts_steps_and_validations():
    history = History(("dice",), goodness=lambda scores: scores["dice"])
    for number in range(1, 5):
        scores = {"dice": 0.5} if number == 4 else {}
        history.append(Epoch(number, {"total": 1.0}, scores, 10.0, 100.0 if scores else 0.0))
    settings = TrainingConfig(epochs=10, validate_every=4)
    assert history.seconds_left(settings) == 6 * 10 + 2 * 100
    assert line_of(history, settings).endswith("110.0 s, 4 min left")


def test_a_duration_is_said_as_people_say_it():
    assert [duration(seconds) for seconds in (0.2, 29, 60, 3599, 3601, 90000)] == [
        "0 s",
        "29 s",
        "1 min",
        "1 h 0 min",
        "1 h 0 min",
        "25 h 0 min",
    ]


def test_each_start_is_recorded_and_other_data_are_said(tmp_path, capsys):
    file = tmp_path / "a.nii.gz"
    file.write_bytes(b"x" * 10000)
    record_start(tmp_path, 0, torch.device("cpu"), [file])
    record_start(tmp_path, 2, torch.device("cpu"), [file])
    assert capsys.readouterr().err == ""
    file.write_bytes(b"x" * 9999 + b"y")
    record_start(tmp_path, 3, torch.device("cpu"), [file])
    assert capsys.readouterr().err.endswith("wanted the data that the run began with, found other files\n")
    starts = json.loads((tmp_path / "provenance.json").read_text())["starts"]
    assert [start["finished_epochs"] for start in starts] == [0, 2, 3]
    assert starts[0]["data"] == starts[1]["data"] != starts[2]["data"]
    assert starts[0]["versions"]["torch"] == importlib.metadata.version("torch")


def test_a_fingerprint_holds_names_sizes_and_both_ends(tmp_path):
    (tmp_path / "a").write_bytes(bytes(20000))
    (tmp_path / "b").write_bytes(bytes(20000))
    both = [tmp_path / "a", tmp_path / "b"]
    found = {fingerprint(both[:1]), fingerprint(both[1:]), fingerprint(both)}
    (tmp_path / "a").write_bytes(bytes(20001))
    found.add(fingerprint([tmp_path / "a"]))
    (tmp_path / "a").write_bytes(bytes(20000) + b"z")
    found.add(fingerprint([tmp_path / "a"]))
    assert len(found) == 5
    assert fingerprint(both[::-1]) == fingerprint(both)


def test_a_process_without_a_gpu_of_its_own_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    sentence = r"^--device: wanted a GPU for each process on .*, found 1 for process 2 of them$"
    with pytest.raises(InputError, match=sentence):
        processes._device_of(Place(1, 1, 2), torch.device("cuda"))
    with pytest.raises(InputError, match=r"^--device: wanted cpu or cuda for 2 processes, found mps$"):
        processes._device_of(Place(1, 1, 2), torch.device("mps"))
