"""Tissue maps on the network's grid: shares of tissues, what a map may not hold, where the heart lies."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults.project import NETWORK
from scripts import call
from volumes import tissue_heart, write_boxes, write_tissues

import implicitmeshnet_train
from implicitmeshnet.config import DataConfig, load_config
from implicitmeshnet.data import training_set
from implicitmeshnet.data.dataset import find_cases, tissue_sample, training_sample
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.data.tissue_maps import PARTS, WHOLE, anatomy_of, tissue_parts
from implicitmeshnet.data.training_set import TrainingSet, check_cases, image_of_tissues
from implicitmeshnet.data.volume import Grid, Volume, network_grid
from implicitmeshnet.script import InputError
from implicitmeshnet.structures import Structures
from implicitmeshnet.tissues import Tissue
from implicitmeshnet.training.losses import kept_voxels

CONFIG = DataConfig(
    structures={"LV": [500], "RV": [600], "LA": [420], "Myo": [205]},
    encloses={"Myo": ["LV"]},
    region="found",
    shape=(16, 16, 16),
    spacing_mm=8.0,
    overview_spacing_mm=12.0,
    intensity="percentile",
    outside_view="ignored",
)
AFFINE = np.diag([4.0, 4, 4, 1])


def test_parts_are_the_shares_that_tissues_fill_of_a_voxel_and_none_beyond_the_volume():
    tissues = np.full((12, 8, 8), Tissue.FAT, np.uint8)
    tissues[6:] = Tissue.LV
    volume = Volume(tissues, Grid((12, 8, 8), np.eye(4)))
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-3.5, 0.5, 0.5]  # voxels lie half-way between the volume's, every second one on the border
    parts = tissue_parts(volume, Grid((8, 3, 3), affine))
    tissue, share = parts[:PARTS], parts[PARTS:].astype(int)
    assert share[:, :2].sum() == 0
    assert (share[:, 2:].sum(0) == WHOLE).all()
    assert (tissue[0, 2] == Tissue.FAT).all()
    assert (share[0, 2] == WHOLE).all()
    assert (tissue[0, -1] == Tissue.LV).all()
    middle = 4  # at 4.5 mm, where a triangle of 2 mm reaches over the border at 5.5 mm
    assert set(np.unique(tissue[:2, middle])) == {Tissue.FAT, Tissue.LV}
    assert 0.05 * WHOLE < share[1, middle].mean() < 0.3 * WHOLE


def test_the_largest_shares_come_first_and_the_rest_is_left_out():
    tissues = np.zeros((6, 6, 6), np.uint8)
    tissues[:] = np.arange(1, 7)[:, None, None]
    coarse = np.diag([6.0, 6, 6, 1])
    coarse[:3, 3] = 2.5
    parts = tissue_parts(Volume(tissues, Grid((6, 6, 6), np.eye(4))), Grid((1, 1, 1), coarse))
    share = parts[PARTS:, 0, 0, 0].astype(int)
    assert share.sum() == WHOLE
    assert (np.diff(share) <= 0).all()


def test_the_anatomy_tells_where_the_heart_lies_and_how_it_is_turned():
    tissues, labels = tissue_heart()
    structures = Structures.of(CONFIG)
    grid = Grid(tissues.shape, AFFINE)
    anatomy = anatomy_of(structures.class_map(labels), tissues, structures, grid)
    middle = (np.array(tissues.shape) - 1) / 2
    np.testing.assert_allclose(anatomy.centres_mm[2], ([20, 18, 6] - middle) * 4, atol=4)
    np.testing.assert_allclose(anatomy.centres_mm[3], ([19, 18, 16] - middle) * 4, atol=1)
    assert anatomy.axes[0, 0] > 0.99  # to the right ventricle
    assert anatomy.axes[2, 2] > 0.99  # away from the atrium
    assert np.linalg.det(anatomy.axes) == pytest.approx(1)
    assert anatomy.lv_mm[3] == pytest.approx(4 * 18 / 2.5, abs=4)
    other = network_grid(grid, (8, 8, 8), 16.0, centre_mm=(0, 0, 0))
    place = anatomy.seen_from(grid, other).centres_mm[0] + other.affine[:3, :3] @ np.full(3, 3.5) + other.affine[:3, 3]
    np.testing.assert_allclose(place, np.array([19, 18, 16]) * 4, atol=1)


def test_without_a_ventricle_nothing_is_known_of_the_hearts_turn():
    tissues = np.full((6, 6, 6), Tissue.LA, np.uint8)
    structures = Structures.of(CONFIG)
    anatomy = anatomy_of(np.full((6, 6, 6), 3, np.uint8), tissues, structures, Grid((6, 6, 6), np.eye(4)))
    assert np.isnan(anatomy.lv_mm).all()
    assert np.isnan(anatomy.centres_mm[0]).all()
    assert np.isfinite(anatomy.centres_mm[2]).all()


def test_a_tissue_sample_is_the_same_before_and_after_it_lies_on_disk(tmp_path):
    cases = [write_tissues(tmp_path, "a")]
    assert find_cases(tmp_path, labelled=True, kind="tissues") == cases
    alone = tissue_sample(cases[0], CONFIG, margin=4)
    kept = [TrainingSet(cases, CONFIG, 4, tmp_path / "cache", "tissues")[0] for _ in range(2)]
    for found in kept:
        assert torch.equal(found.image, alone.image)
        assert torch.equal(found.label, alone.label)
        assert torch.equal(found.overview.image, alone.overview.image)
        for name, value in vars(alone.anatomy).items():
            np.testing.assert_array_equal(vars(found.anatomy)[name], value)
        assert found.overview.anatomy is not None
    assert alone.image.shape == (2 * PARTS, 24, 24, 24)
    assert alone.image.dtype == torch.uint8
    outside = alone.image[PARTS:].int().sum(0) == 0
    assert torch.equal(alone.label == Structures.of(CONFIG).ignored_class, outside)
    assert outside.any()


def test_outside_the_volume_is_background_unless_it_is_ignored(tmp_path):
    case = write_tissues(tmp_path, "a")
    sample = tissue_sample(case, replace(CONFIG, outside_view="background"), margin=4)
    assert sample.label.max() == 4


def test_the_image_of_a_tissue_map_is_the_same_each_time_and_its_label_lies_on_it(tmp_path, monkeypatch):
    case = write_tissues(tmp_path, "a")
    check_cases([case], CONFIG, tmp_path / "cache", "tissues")
    monkeypatch.setattr(training_set, "read_tissues", None)  # from here on it is kept
    image, labels = image_of_tissues(case, CONFIG, tmp_path / "cache")
    again, _ = image_of_tissues(case, CONFIG, tmp_path / "cache")
    assert np.array_equal(image.data, again.data)
    assert image.data.shape == labels.data.shape == image.grid.shape
    assert set(np.unique(labels.data)) <= {0, 500, 600, 420, 205}
    assert (labels.data == 205).sum() > 20


def test_a_value_that_is_no_tissue_is_one_sentence(tmp_path):
    case = write_tissues(tmp_path, "a")
    tissues, _ = tissue_heart()
    tissues[0, 0, 0] = 26
    write_volume(case.image, tissues, AFFINE)
    with pytest.raises(InputError, match=r"a_tissues\.nii\.gz: wanted the values 0 to 25 of a tissue map, found 26"):
        tissue_sample(case, CONFIG)


def test_around_an_image_voxels_are_ignored_where_the_config_says_so(tmp_path):
    case = write_boxes(tmp_path)
    config = DataConfig(structures={"LV": [500], "LA": [420]}, shape=(32, 32, 32), spacing_mm=2.0)
    plain = training_sample(case, config)
    sample = training_sample(case, replace(config, outside_view="ignored"))
    outside = sample.label == 3
    assert 0.3 < outside.float().mean() < 0.9
    assert (sample.image[0][outside] == -1).all()
    assert (plain.label[outside] == 0).all()
    assert torch.equal(sample.label[~outside], plain.label[~outside])
    structures = Structures.of(replace(config, outside_view="ignored"))
    assert kept_voxels(plain.label[None], Structures.of(config)) is None
    assert torch.equal(kept_voxels(sample.label[None], structures)[0, 0] == 0, outside)


@pytest.mark.slow
def test_a_training_on_tissue_maps_alone_learns_and_finds_no_intensity_unlike_its_own(tmp_path):
    for name in "abc":
        write_tissues(tmp_path / "data", name)
    config = {
        "data": {
            "dir": str(tmp_path / "data"),
            "structures": CONFIG.structures,
            "encloses": CONFIG.encloses,
            "region": "found",
            "shape": [16, 16, 16],
            "spacing_mm": 8.0,
            "overview_spacing_mm": 12.0,
            "intensity": "percentile",
            "outside_view": "ignored",
            "validation_cases": 1,
        },
        "network": NETWORK,
        "training": {
            "run_dir": str(tmp_path / "run"),
            "appearance": "random",
            "epochs": 3,
            "repeats": 8,
            "learning_rate": 1e-3,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    call(implicitmeshnet_train, f"--config={tmp_path / 'config.json'}", "--device=cpu")
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert log[-1]["losses"]["segmentation"] < log[0]["losses"]["segmentation"]
    assert load_config(tmp_path / "run/config.json").data.intensity_statistics is None
