"""What a training remembers, and the picture of it."""

import pytest
from matplotlib.image import imread

from implicitmeshnet.config import TrainingConfig
from implicitmeshnet.training.cosine import cosine
from implicitmeshnet.training.curves import training_overview
from implicitmeshnet.training.history import Epoch, History, validation_is_due


def history_of(*dice: float | None) -> History:
    """Epochs with these Dice of one structure, None for one that was not validated."""
    history = History(("LV",), goodness=lambda scores: scores["LV"])
    for number, value in enumerate(dice, 1):
        losses = {"total": 2 / number, "occupancy": 1 / number}
        history.append(Epoch(number, losses, {} if value is None else {"LV": value}, 3.0))
    return history


@pytest.mark.parametrize(
    ("dice", "best"), [((), None), ((None,), None), ((None, 0.5, 0.7, None, 0.7), 3), ((0.0, None), 1)]
)
def test_the_best_epoch_is_the_first_of_the_greatest_goodness(dice, best):
    found = history_of(*dice).best
    assert (found and found.number) == best


def test_a_history_knows_whether_it_ends_validated_and_at_its_best():
    histories = [history_of(*dice) for dice in ((), (0.5, None), (0.5, 0.4), (0.4, 0.5))]
    ends = [(history.ends_validated, history.ends_at_its_best) for history in histories]
    assert ends == [(False, False), (False, False), (True, False), (True, True)]


def test_a_history_comes_back_from_its_state():
    before = history_of(None, 0.5, None, 0.4)
    after = history_of()
    after.load(before.state(), TrainingConfig(epochs=4, validate_every=2))
    assert after.epochs == before.epochs


def test_a_missing_validation_of_the_last_epoch_is_found_out_even_where_every_number_is_sound():
    with pytest.raises(ValueError, match="wanted the validation of epoch 2 in its history, found it missing"):
        history_of().load(history_of(0.5, None).state(), TrainingConfig(epochs=2, validate_every=2))


def test_epochs_may_now_be_validated_more_often_than_they_were():
    before = history_of(None, None, None)
    after = history_of()
    after.load(before.state(), TrainingConfig(epochs=9, validate_every=2))
    assert after.epochs == before.epochs


def test_every_so_many_epochs_and_the_last_are_validated():
    settings = TrainingConfig(epochs=7, validate_every=3)
    assert [number for number in range(1, 8) if validation_is_due(number, settings)] == [3, 6, 7]


def test_the_cosine_falls_from_start_to_end_and_stays_there():
    assert [cosine(3.0, 1.0, progress) for progress in (0, 0.5, 1, 2)] == pytest.approx([3, 2, 1, 1])


def test_training_overview_draws_losses_and_scores(tmp_path):
    history = history_of(None, None, 0.8, None, None, 0.75)
    figure = training_overview(tmp_path / "overview.png", history)
    losses, scores = figure.axes
    assert [line.get_label() for line in losses.lines] == ["total", "occupancy"]
    assert list(losses.lines[0].get_ydata()) == [epoch.losses["total"] for epoch in history]
    assert scores.lines[0].get_label() == "LV, 0.800"
    assert list(scores.lines[0].get_xdata()) == [3, 6]
    assert scores.get_title() == "validation, best epoch 3"
    assert imread(tmp_path / "overview.png").shape[:2] == (450, 1200)
    training_overview(tmp_path / "overview.png", history_of(None))
