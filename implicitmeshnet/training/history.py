"""What a training remembers of its epochs, which of them was the best, and how long the rest will take."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields

from implicitmeshnet.config import DrnTrainingConfig, TrainingConfig

Settings = TrainingConfig | DrnTrainingConfig
RECENT = 10  # epochs whose times say how long later ones will take


@dataclass(frozen=True)
class Epoch:
    """A finished epoch."""

    number: int
    """From 1 on."""
    losses: dict[str, float]
    """Mean over its steps, by name."""
    scores: dict[str, float]
    """Of its validation, by name; empty where it ended without one."""
    seconds: float
    """Of its steps."""
    validation_seconds: float = 0.0
    """Of its validation."""
    learning_rate: float = 0.0
    """In its last step."""


@dataclass
class Unfinished:
    """An epoch that has begun, as far as it is."""

    number: int
    """From 1 on."""
    steps: int = 0
    """Taken so far."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of each loss, over the steps so far; under SKIPPED how many of them were left out."""
    seconds: float = 0.0


def validation_is_due(number: int, settings: Settings) -> bool:
    """Whether an epoch of this number, from 1 on, ends with a validation: every so many, and the last."""
    return number == settings.epochs or number % settings.validate_every == 0


class History:
    """The epochs of a training in order, of which the validated one with the greatest goodness is the best."""

    def __init__(self, score_names: tuple[str, ...], goodness: Callable[[dict[str, float]], float]):
        """`score_names` are what each validation yields; `goodness` makes one number of its scores, more is better."""
        self.score_names = score_names
        self.goodness = goodness
        self.epochs: list[Epoch] = []

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def append(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)

    @property
    def best(self) -> Epoch | None:
        """The best validated epoch, the first of equals; None where none was validated."""
        best = None
        for epoch in self.epochs:
            if not epoch.scores:
                continue
            if best is None or self.goodness(epoch.scores) > self.goodness(best.scores):
                best = epoch
        return best

    @property
    def ends_validated(self) -> bool:
        """Whether the last epoch was validated."""
        return bool(self.epochs) and bool(self.epochs[-1].scores)

    @property
    def ends_at_its_best(self) -> bool:
        """Whether the last epoch is the best."""
        return bool(self.epochs) and self.epochs[-1] is self.best

    def seconds_left(self, settings: Settings) -> float:
        """How long the epochs that are left will take, as long as the last ones: their steps and their validations."""
        numbers = range(len(self) + 1, settings.epochs + 1)
        validations = sum(validation_is_due(number, settings) for number in numbers)
        validated = [epoch.validation_seconds for epoch in self.epochs if epoch.scores]
        steps_s = [epoch.seconds for epoch in self.epochs[-RECENT:]]
        return len(numbers) * _median(steps_s) + validations * _median(validated[-RECENT:])

    def state(self) -> list[dict]:
        """The epochs as plain values, for a checkpoint."""
        return [asdict(epoch) for epoch in self.epochs]

    def load(self, state: object, settings: Settings, unfinished: Unfinished | None = None) -> None:
        """Take over the epochs of a `state` from a file; ValueError, in words, where it is none of this training.

        The first epoch may have been `unfinished` when the file was written.
        """
        if not (isinstance(state, list) and (state or unfinished)):
            raise ValueError("wanted a history of epochs")
        epochs = []
        for number, record in enumerate(state, 1):
            self._check(record, number, settings)
            epochs.append(Epoch(**record))
        if unfinished and unfinished.number != len(epochs) + 1:
            raise ValueError(f"wanted an unfinished epoch {len(epochs) + 1}, found epoch {unfinished.number}")
        self.epochs = epochs

    def _check(self, record: object, number: int, settings: Settings) -> None:
        fields_of_epochs = fields(Epoch)
        known = {field.name for field in fields_of_epochs}
        needed = {field.name for field in fields_of_epochs if field.default is MISSING}  # older runs have no others
        if not (isinstance(record, dict) and needed <= set(record) <= known):
            raise ValueError(f"wanted {', '.join(sorted(known))} of epoch {number} in its history, found others")
        scores = record["scores"]
        numbers = [value for name, value in record.items() if name not in ("losses", "scores")]
        sound = (
            all(map(_is_number, numbers))
            and record["number"] == number
            and _are_numbers(record["losses"])
            and record["losses"]
            and _are_numbers(scores)
            and set(scores) in (set(), set(self.score_names))
        )
        if not sound:
            raise ValueError(f"wanted numbers of epoch {number} in its history, found others")
        if not scores and number == settings.epochs:  # of others training.validate_every may have been changed since
            raise ValueError(f"wanted the validation of epoch {number} in its history, found it missing")


def unfinished_from(state: object, steps: int) -> Unfinished | None:
    """An unfinished epoch of at most so many `steps` from a file, None for None; ValueError where it is none."""
    if state is None:
        return None
    names = {field.name for field in fields(Unfinished)}
    if not (isinstance(state, dict) and set(state) == names):
        raise ValueError(f"wanted {', '.join(sorted(names))} of an unfinished epoch, found others")
    counts = (state["number"], state["steps"])
    sound = all(type(count) is int for count in counts) and _is_number(state["seconds"]) and _are_numbers(state["sums"])
    if not (sound and 0 < state["steps"] <= steps and state["number"] > 0):
        raise ValueError(f"wanted an unfinished epoch of up to {steps} steps, found another")
    return Unfinished(**state)


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0
