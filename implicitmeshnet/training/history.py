"""What a training remembers of its finished epochs, and which of them was the best."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields

from implicitmeshnet.config import DrnTrainingConfig, TrainingConfig

Settings = TrainingConfig | DrnTrainingConfig


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

    def state(self) -> list[dict]:
        """The epochs as plain values, for a checkpoint."""
        return [asdict(epoch) for epoch in self.epochs]

    def load(self, state: object, settings: Settings) -> None:
        """Take over the epochs of a `state` from a file; ValueError, in words, where it is none of this training."""
        if not (isinstance(state, list) and state):
            raise ValueError("wanted a history of epochs")
        epochs = []
        for number, record in enumerate(state, 1):
            self._check(record, number, settings)
            epochs.append(Epoch(**record))
        self.epochs = epochs

    def _check(self, record: object, number: int, settings: Settings) -> None:
        wanted = {field.name for field in fields(Epoch)}
        if not (isinstance(record, dict) and set(record) == wanted):
            raise ValueError(f"wanted {', '.join(sorted(wanted))} of epoch {number} in its history, found others")
        scores = record["scores"]
        sound = (
            _is_number(record["number"])
            and record["number"] == number
            and _is_number(record["seconds"])
            and _are_numbers(record["losses"])
            and record["losses"]
            and _are_numbers(scores)
            and set(scores) in (set(), set(self.score_names))
        )
        if not sound:
            raise ValueError(f"wanted numbers of epoch {number} in its history, found others")
        if not scores and validation_is_due(number, settings):
            raise ValueError(f"wanted the validation of epoch {number} in its history, found it missing")


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
