"""The loop of every training: epochs of steps, validations, and checkpoints from which it goes on to the bit."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from implicitmeshnet.models.weights import save_checkpoint
from implicitmeshnet.script import InputError, atomic_path
from implicitmeshnet.training import processes
from implicitmeshnet.training.curves import training_overview
from implicitmeshnet.training.events import EventFile
from implicitmeshnet.training.history import Epoch, History, Settings, Unfinished, validation_is_due
from implicitmeshnet.training.run import Parts
from implicitmeshnet.training.signals import Signals

SHOWN_EVERY = 10  # steps from one look at the losses to the next, as a GPU must be waited for
FIRST_LOOK_S = 60.0  # into a run: people want to see early whether it learns
GO_ON, SAVE, STOP = range(3)  # what a process wishes after a step; the greatest wish is done by all
SKIPPED = "skipped"  # how many of an epoch's steps were left out, among its sums

Step = Callable[[int], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""Takes the step of a number, from 0 on: the losses by name, and 1 where it was left out as its gradients were not
finite, all scalars on the device."""


@dataclass(frozen=True)
class Training:
    """What one kind of training consists of; `keep` and `look` are called in the first process alone."""

    run_dir: Path
    settings: Settings
    parts: Parts
    history: History
    steps: int
    """Of an epoch."""
    learning_rate: Callable[[float], float]
    """That of the optimiser so many epochs after the start."""
    epoch: Callable[[int], Step]
    """Begins the epoch of a number."""
    validate: Callable[[], dict[str, float]]
    """The scores by name."""
    keep: Callable[[EventFile], None]
    """Writes the snapshot of the best epoch so far, and its preview."""
    look: Callable[[EventFile], str]
    """Writes a preview of what is learnt so far; says what it shows."""

    @property
    def optimizer(self) -> torch.optim.AdamW:
        optimizer = self.parts["optimizer"]
        assert isinstance(optimizer, torch.optim.AdamW), "every training's parts hold one of this name"
        return optimizer


class Sums:
    """Losses summed over an epoch's steps on the device, so that no step waits for it."""

    def __init__(self, before: dict[str, float]):
        """Go on from sums by name; none at an epoch's begin."""
        self.before = before
        self.names: list[str] = []
        self.values: torch.Tensor | None = None

    def add(self, losses: dict[str, torch.Tensor], skipped: torch.Tensor) -> None:
        """Count a step's losses, or only that it was skipped."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        counted = torch.where(skipped > 0, torch.zeros_like(values), values)
        row = torch.cat([counted, skipped[None]])
        if self.values is None:
            self.names = [*losses, SKIPPED]
            self.values = row.new_tensor([self.before.get(name, 0.0) for name in self.names])
        self.values = self.values + row

    def read(self) -> dict[str, float]:
        """The sums by name, each the mean over the processes; waits for the device."""
        if self.values is None:
            return self.before
        mean = processes.total(self.values) / processes.count()
        return dict(zip(self.names, mean.tolist(), strict=True))


class Loop:
    """A training in progress, as one of its processes sees it."""

    def __init__(self, training: Training, signals: Signals):
        self.training = training
        self.signals = signals
        self.is_first = processes.is_first()
        self.begun = time.perf_counter()
        self.saved = self.begun
        self.has_looked = training.history.best is not None  # whether anybody has seen how the run does

    def run(self, unfinished: Unfinished | None) -> None:
        """Epoch after epoch from where the history and the `unfinished` one end, to settings.epochs.

        Raises Stopped where a signal comes, the steps so far saved, and InputError where the training diverges or a
        file cannot be written.
        """
        training = self.training
        finished = len(training.history)
        self.events = EventFile(training.run_dir, finished) if self.is_first else None
        if not unfinished:  # whose first steps were saved only after this
            self._publish()
        for number in range(finished + 1, training.settings.epochs + 1):
            self._run_epoch(unfinished or Unfinished(number))
            unfinished = None
            self._publish()
        processes.wait()

    def _run_epoch(self, state: Unfinished) -> None:
        training = self.training
        due = validation_is_due(state.number, training.settings)
        with self.signals.held():
            self._take_steps(state)
            if not due:
                self._end_epoch(state, {}, 0.0)
                return
            self._save(state)  # so that nothing is lost where the validation is cut short
        start = time.perf_counter()
        scores = training.validate()
        self._end_epoch(state, scores, time.perf_counter() - start)

    def _take_steps(self, state: Unfinished) -> None:
        """The steps that are left of an epoch; `state` then holds all. Stopped where a signal came, once saved."""
        training = self.training
        sums = Sums(state.sums)
        start = time.perf_counter() - state.seconds
        step = training.epoch(state.number)
        progress = tqdm(
            initial=state.steps,
            total=training.steps,
            desc=f"epoch {state.number}/{training.settings.epochs}",
            leave=False,
            disable=None if self.is_first else True,  # None: where stderr is no terminal
        )
        for index in range(state.steps, training.steps):
            self._set_learning_rate(state.number, index)
            sums.add(*step(index))
            state.steps += 1
            progress.update()
            if not progress.disable and index % SHOWN_EVERY == 0:
                progress.set_postfix(total=f"{means(sums.read(), state.steps)['total']:.3f}")
            agreed = processes.largest(self._wish())
            if agreed != GO_ON:
                state.sums = sums.read()
                state.seconds = time.perf_counter() - start
                self._save(state)
            if agreed == STOP:
                processes.wait()  # until the first one has saved, as srun and torchrun may kill it when another ends
                self.signals.stop()
            self._look_once()
        progress.close()
        state.sums = sums.read()
        state.seconds = time.perf_counter() - start
        check_skipped(state, training.settings)

    def _set_learning_rate(self, number: int, step: int) -> float:
        """Give the optimiser its learning rate of a step in the epoch of a number."""
        training = self.training
        rate = training.learning_rate(number - 1 + step / training.steps)
        training.optimizer.param_groups[0]["lr"] = rate
        return rate

    def _wish(self) -> int:
        """What this process wants done after a step: GO_ON, SAVE or STOP."""
        if self.signals.heard:
            return STOP
        is_due = time.perf_counter() - self.saved > 60 * self.training.settings.checkpoint_minutes
        return SAVE if is_due and self.is_first else GO_ON

    def _look_once(self) -> None:
        """The first preview of a run, once it is as old as that."""
        if self.has_looked or not self.events or time.perf_counter() - self.begun < FIRST_LOOK_S:
            return
        self.has_looked = True
        tqdm.write(self.training.look(self.events))
        for part in self.training.parts.values():
            if isinstance(part, torch.nn.Module):
                part.train()

    def _save(self, unfinished: Unfinished | None) -> None:
        """Write last.pt, from which all else can be made again; with the state of an unfinished epoch, if there is one.

        All processes hold the same, and the first one writes it.
        """
        self.saved = time.perf_counter()
        if not self.is_first:
            return
        training = self.training
        states = {name: part.state_dict() for name, part in training.parts.items()}
        begun = asdict(unfinished) if unfinished else None
        save_checkpoint(
            training.run_dir / "last.pt", states | {"history": training.history.state(), "unfinished": begun}
        )

    def _end_epoch(self, state: Unfinished, scores: dict[str, float], validation_s: float) -> None:
        """Append an epoch to the history, log it and save."""
        training = self.training
        losses = means(state.sums, state.steps)
        rate = self._set_learning_rate(state.number, training.steps - 1)  # again: a run may have resumed after it
        epoch = Epoch(state.number, losses, scores, state.seconds, validation_s, rate)
        training.history.append(epoch)
        if self.events:
            log(self.events, epoch)
        self._save(None)
        print(line_of(training.history, training.settings), flush=True)

    def _publish(self) -> None:
        """What people want of the epochs in last.pt: log.jsonl, where the last was validated overview.png, and where it
        is the best the snapshot.

        Called after each epoch, and first of all in a run that resumes, as the one before may have been killed on the
        way here.
        """
        training = self.training
        history = training.history
        if not (self.events and history.epochs):
            return
        if history.ends_at_its_best:
            training.keep(self.events)
        if history.ends_validated:
            training_overview(training.run_dir / "overview.png", history)
        lines = [json.dumps(epoch) + "\n" for epoch in history.state()]
        with atomic_path(training.run_dir / "log.jsonl") as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


def means(sums: dict[str, float], steps: int) -> dict[str, float]:
    """The mean of each loss over so many steps but those skipped."""
    counted = max(steps - sums[SKIPPED], 1)
    return {name: value / counted for name, value in sums.items() if name != SKIPPED}


def check_skipped(state: Unfinished, settings: Settings) -> None:
    """A warning where steps of an epoch were skipped; InputError where most of them were."""
    skipped = round(state.sums[SKIPPED])
    if not skipped:
        return
    found = f"none in {skipped} of {state.steps} steps"
    if 2 * skipped > state.steps:
        raise InputError(
            f"training diverged in epoch {state.number}: wanted finite gradients, found {found}; a learning rate"
            f" below {settings.learning_rate:g} or smaller loss weights may help"
        )
    print(f"warning: epoch {state.number}: wanted finite gradients, found {found}; these were skipped", file=sys.stderr)


def log(events: EventFile, epoch: Epoch) -> None:
    """One epoch's numbers to TensorBoard."""
    for name, value in epoch.losses.items():
        events.add_scalar(f"loss/{name}", value, epoch.number)
    for name, value in epoch.scores.items():
        events.add_scalar(f"validation/{name}", value, epoch.number)
    events.add_scalar("learning_rate", epoch.learning_rate, epoch.number)
    events.add_scalar("seconds/steps", epoch.seconds, epoch.number)
    if epoch.scores:
        events.add_scalar("seconds/validation", epoch.validation_seconds, epoch.number)


def line_of(history: History, settings: Settings) -> str:
    """The last epoch on one line, with the time that is left for the whole run."""
    epoch = history.epochs[-1]
    losses = ", ".join(f"{name} {value:.4g}" for name, value in epoch.losses.items())
    scores = ", ".join(f"{name} {value:.3f}" for name, value in epoch.scores.items())
    took = f"{epoch.seconds + epoch.validation_seconds:.1f} s, {duration(history.seconds_left(settings))} left"
    rate = f"learning rate {epoch.learning_rate:.2e}"
    shown = [f"epoch {epoch.number}/{settings.epochs}: {losses}", scores, rate, took]
    return " | ".join(part for part in shown if part)


def duration(seconds: float) -> str:
    """A time as people say it: 40 s, 12 min, 3 h 5 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"
