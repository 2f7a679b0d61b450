"""benchmarks/randomness.py: each kind of randomness is left out once, and its config trains the UNet alone."""

import importlib
import sys
from pathlib import Path
from typing import get_args

import pytest

from implicitmeshnet.config import Variation, load_config
from implicitmeshnet.script import read_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
randomness = importlib.import_module("randomness")


def test_each_kind_is_left_out_once():
    kinds = [kind for left_out in randomness.LEFT_OUT.values() for kind in left_out]
    assert sorted(kinds) == sorted(get_args(Variation))


def test_its_trainings_have_no_meshes():
    config = load_config(randomness.CONFIGS / "whole_heart_any.json", list(randomness.UNET_ALONE))
    assert not config.loss.has_meshes
    assert config.loss.segmentation > 0


def test_a_structure_counts_where_a_case_has_it(tmp_path, monkeypatch):
    dice = {"a": {"LA": 0.5}, "b": {"LV": 0.8, "RV": 0.2, "Myo": 0.4}, "c": {"LV": 0.6, "Myo": 0.6}}
    monkeypatch.setattr(randomness.Predictor, "from_config", lambda *_, **__: None)
    monkeypatch.setattr(randomness, "find_cases", lambda folder, labelled: list(folder))
    monkeypatch.setattr(randomness, "segmentation_dice", lambda _, case: dice[case])
    arguments = randomness.argparse.Namespace(left_atria="a", ventricles="bc", every=1)
    randomness.measure(tmp_path, arguments)
    found = read_json(tmp_path / "result.json", "a result")
    assert found == pytest.approx({"LA": 0.5, "LV": 0.7, "RV": 0.2, "Myo": 0.5})
