"""benchmarks/few_labels.py: trainings on few cases take as many steps as the one on all."""

import importlib
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
