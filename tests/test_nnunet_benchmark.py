"""benchmarks/nnunet.py, as far as it needs no nnU-Net: the data set it writes, what it refuses, how it measures."""

import importlib
import importlib.util
import json
import sys
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from implicitmeshnet.config import load_config
from implicitmeshnet.data.dataset import Case, find_cases
from implicitmeshnet.data.nifti import read_image, read_labels, write_volume
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
nnunet = importlib.import_module("nnunet")

SPACING_MM = (1.5, 1.5, 8.0)
SHAPE = (5, 6, 4)


def write_contradictory(path, data):
    """A file as ACDC's are: an sform of unit columns, and the true spacing in pixdim alone."""
    image = nib.Nifti1Image(data, np.eye(4))
    image.header["pixdim"][1:4] = SPACING_MM
    image.header["qform_code"] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


@pytest.fixture
def config(tmp_path):
    """A config of two structures, 7 before 3, and a folder of three cases."""
    values = np.random.default_rng(0)
    for name in "abc":
        labels = values.choice([0, 3, 5, 7], SHAPE).astype(np.uint8)
        write_contradictory(tmp_path / f"data/imagesTr/{name}.nii.gz", values.normal(size=SHAPE).astype(np.float32))
        write_contradictory(tmp_path / f"data/labelsTr/{name}.nii.gz", labels)
    tree = {"dir": str(tmp_path / "data"), "structures": {"outer": [7], "inner": [3]}, "validation_cases": 1}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": tree | {"intensity": "percentile"}}))
    return load_config(path)


def cases_of(config):
    return find_cases(config.data.dir, labelled=True)


def test_data_set_of_contradictory_headers_has_the_true_spacing_for_itk(config, tmp_path):
    nnunet.write_data_set(tmp_path / "raw", cases_of(config), config)
    for path in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        assert sitk.ReadImage(str(tmp_path / "raw" / path)).GetSpacing() == pytest.approx(SPACING_MM)


def test_data_set_keeps_voxels_and_numbers_labels_in_the_order_of_the_structures(config, tmp_path):
    nnunet.write_data_set(tmp_path / "raw", cases_of(config), config)
    source = cases_of(config)[1]
    image = read_image(tmp_path / "raw/imagesTr/b_0000.nii.gz")
    np.testing.assert_array_equal(image.data, read_image(source.image).data)
    classes = read_labels(tmp_path / "raw/labelsTr/b.nii.gz").data
    labels = read_labels(source.label).data
    np.testing.assert_array_equal(classes, np.select([labels == 7, labels == 3], [1, 2]))


def test_description_of_a_percentile_config_names_mr_and_consecutive_labels(config, tmp_path):
    nnunet.write_data_set(tmp_path / "raw", cases_of(config)[:2], config)
    assert json.loads((tmp_path / "raw/dataset.json").read_text()) == {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "outer": 1, "inner": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }


def test_files_of_a_data_set_that_are_there_are_not_written_again(config, tmp_path):
    nnunet.write_data_set(tmp_path / "raw", cases_of(config), config)
    files = sorted((tmp_path / "raw").rglob("*.nii.gz"))
    before = [path.stat().st_ino for path in files]
    nnunet.write_data_set(tmp_path / "raw", cases_of(config), config)
    assert [path.stat().st_ino for path in files] == before


def test_without_nnunet_one_sentence_says_how_to_get_it_and_nothing_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["nnunet.py", "--config=none.json", f"--out={tmp_path / 'out'}", "--minutes=1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(InputError, match=r"^nnunetv2: wanted .*pip install nnunetv2"):
        nnunet.main()
    assert not (tmp_path / "out").exists()


def test_a_folder_begun_with_other_minutes_is_refused(config, tmp_path):
    nnunet.keep_to(tmp_path, nnunet.comparison(config, cases_of(config), 2, 1))
    nnunet.keep_to(tmp_path, nnunet.comparison(config, cases_of(config), 2, 1))
    with pytest.raises(InputError, match=r"^--out: .*same --minutes"):
        nnunet.keep_to(tmp_path, nnunet.comparison(config, cases_of(config), 3, 1))


def test_a_prediction_is_measured_by_structure_with_the_true_spacing(config, tmp_path):
    truth = np.zeros((8, 8, 6), np.uint8)
    truth[2:6, 2:6, 1:3] = 7
    truth[2:6, 2:6, 3:5] = 3
    predicted = truth.copy()
    predicted[2:6, 2:6, 3] = 7  # a slice of 8 mm from the one to the other
    write_contradictory(tmp_path / "image.nii.gz", truth.astype(np.float32))
    write_contradictory(tmp_path / "label.nii.gz", truth)
    image = read_image(tmp_path / "image.nii.gz")
    write_volume(tmp_path / "predicted.nii.gz", predicted, image.grid.affine, image.grid.header)
    case = Case("case", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    outer, inner = nnunet.measure(case, tmp_path / "predicted.nii.gz", Structures.of(config.data))
    assert outer["dice"] == pytest.approx(2 * 2 / 5)
    assert inner["dice"] == pytest.approx(2 * 1 / 3)
    assert outer["hd95_mm"] == inner["hd95_mm"] == pytest.approx(8.0)
    assert outer["volume_ml"] == pytest.approx(1.5 * outer["label_volume_ml"])


def test_a_segmentation_has_the_voxel_order_of_the_image_and_the_predictor_that_of_itk(config):
    image = read_image(cases_of(config)[0].image)

    class Predictor:
        def predict_single_npy_array(self, array, properties):
            assert array.shape == (1, *SHAPE[::-1])
            assert properties["spacing"] == pytest.approx(SPACING_MM[::-1])
            return (array[0] > 0).astype(np.uint8)

    np.testing.assert_array_equal(nnunet.segment(Predictor(), image), image.data > 0)


class Trainer:
    """What a training asks of nnU-Net's trainer; a step lasts ten seconds of a clock of its own."""

    initial_lr = 0.01

    def __init__(self, clock, interrupted_at=None):
        self.clock = clock
        self.interrupted_at = interrupted_at
        self.network = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1.0)
        self.rates = []

    def get_dataloaders(self):
        return repeat(torch.ones(1, 1)), None

    def train_step(self, batch):
        if len(self.rates) == self.interrupted_at:
            raise KeyboardInterrupt
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        loss = self.network(batch).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.clock.now += 10
        return {"loss": loss.item()}


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    read = lambda: clock.now  # noqa: E731
    monkeypatch.setattr(nnunet, "time", SimpleNamespace(perf_counter=read, process_time=read))
    monkeypatch.setattr(nnunet, "SAVE_EVERY_S", 10)
    return clock


RATES = [0.01 * share**0.9 for share in (1, 0.75, 0.5, 0.25)]
"""Of four steps of ten seconds in a training of forty."""


def test_the_learning_rate_follows_the_elapsed_share_of_the_time(clock, tmp_path):
    trainer = Trainer(clock)
    progress = nnunet.train(trainer, tmp_path / "checkpoint.pt", 40, seed=0)
    assert trainer.rates == pytest.approx(RATES)
    assert (progress.steps, progress.seconds, progress.processor_seconds) == (4, 40, 40)


def test_an_interrupted_training_goes_on_with_its_weights_and_the_time_that_is_left(clock, tmp_path):
    first = Trainer(clock, interrupted_at=2)
    with pytest.raises(KeyboardInterrupt):
        nnunet.train(first, tmp_path / "checkpoint.pt", 40, seed=0)
    clock.now += 500  # until somebody starts it again
    second = Trainer(clock)
    nnunet.load(second, tmp_path / "checkpoint.pt")
    torch.testing.assert_close(second.network.state_dict(), first.network.state_dict())
    progress = nnunet.train(second, tmp_path / "checkpoint.pt", 40, seed=0)
    assert second.rates == pytest.approx(RATES[2:])
    assert (progress.steps, progress.seconds) == (4, 40)


def test_a_finished_training_takes_no_further_step(clock, tmp_path):
    done = nnunet.train(Trainer(clock), tmp_path / "checkpoint.pt", 40, seed=0)
    again = Trainer(clock)
    assert nnunet.train(again, tmp_path / "checkpoint.pt", 40, seed=0) == done
    assert not again.rates
