"""benchmarks/few_labels.py: trainings on few cases take as many steps as the one on all."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from implicitmeshnet.config import Config, TrainingConfig, load_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
few_labels = importlib.import_module("few_labels")


@pytest.mark.parametrize("size", [5, 10, 20, 64])
def test_few_cases_are_trained_on_for_as_many_steps_as_all(size, tmp_path):
    config = Config(training=TrainingConfig(repeats=4, batch_size=2, epochs=30))
    (tmp_path / "config.json").write_text("{}")
    changed = load_config(tmp_path / "config.json", few_labels.schedule(config, 64, size))
    assert changed.data.training_cases == size
    assert changed.training.validate_every == 30
    steps = changed.training.steps_of_epoch(size)
    assert steps == pytest.approx(config.training.steps_of_epoch(64), abs=size / 4)


def test_validations_are_spread_over_the_epochs(tmp_path):
    config = Config(training=TrainingConfig(repeats=4, batch_size=2, epochs=30))
    (tmp_path / "config.json").write_text("{}")
    changed = load_config(tmp_path / "config.json", few_labels.schedule(config, 64, 5, validations=8))
    assert changed.training.validate_every == 3


def test_a_curve_counts_the_minutes_of_steps_that_were_not_validated_too(tmp_path):
    epochs = [
        {"seconds": 30.0, "scores": {}},
        {"seconds": 30.0, "scores": {"LV": 0.5, "RV": 0.7}},
        {"seconds": 60.0, "scores": {"LV": 0.8, "RV": 0.8}},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    assert few_labels.curve(tmp_path) == ([1.0, 2.0], [pytest.approx(0.6), pytest.approx(0.8)])


def test_sizes_are_numbers_or_all():
    assert few_labels.size_of("20") == 20
    assert min(few_labels.size_of("all"), 64) == 64
