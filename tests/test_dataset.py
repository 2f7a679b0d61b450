"""Folder layouts, the way of one case onto the network's grid, splits."""

import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from meshes import structures_of
from volumes import BOXES_AFFINE as AFFINE
from volumes import write_boxes

from implicitmeshnet.config import Config, DataConfig
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import (
    Case,
    check_labels,
    configured_split,
    find_cases,
    on_network_grid,
    read_case,
    read_labelled,
    split_cases,
    splits_of,
    training_sample,
)
from implicitmeshnet.data.inputs import input_cases
from implicitmeshnet.data.nifti import read_image, write_volume
from implicitmeshnet.data.training_set import TrainingSet
from implicitmeshnet.data.volume import Grid, Volume, network_grid
from implicitmeshnet.script import InputError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
HIPPOCAMPUS, HEART, ACDC = DATA / "Task04_Hippocampus", DATA / "heart_ct", DATA / "ACDC"
CONFIG = DataConfig(structures={"LV": [500], "LA": [420, 421]}, shape=(16, 16, 16), spacing_mm=1.7)


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(cases):
    return [(case.name, case.image.name, case.label and case.label.name) for case in cases]


def test_files_in_mm_whs_naming_become_cases_by_name(tmp_path):
    files = ["ct_train_1002_image.nii.gz", "ct_train_1002_label.nii.gz", "ct_train_1001_image.nii"]
    touch(tmp_path, *files, "ct_train_1001_label.nii.gz", "._ct_train_1001_image.nii.gz", "notes.txt")
    expected = [
        ("ct_train_1001", "ct_train_1001_image.nii", "ct_train_1001_label.nii.gz"),
        ("ct_train_1002", "ct_train_1002_image.nii.gz", "ct_train_1002_label.nii.gz"),
    ]
    assert names(find_cases(tmp_path, labelled=True)) == names(find_cases(tmp_path, labelled=False)) == expected


def test_mm_whs_images_without_labels_serve_evaluation(tmp_path):
    touch(tmp_path, "a_image.nii.gz", "b_image.nii.gz", "b_label.nii.gz")
    expected = [("a", "a_image.nii.gz", None), ("b", "b_image.nii.gz", "b_label.nii.gz")]
    assert names(find_cases(tmp_path, labelled=False)) == expected
    with pytest.raises(InputError, match=r"a_image\.nii\.gz: wanted a label for this image, found none"):
        find_cases(tmp_path, labelled=True)


@pytest.mark.parametrize("description", [None, {}, {"file_ending": ".nii.gz"}])
def test_the_decathlon_layout_becomes_cases_by_name(tmp_path, description):
    """Names of four digits, the first 0000 among them, are no channels where labels have the same names."""
    touch(tmp_path, *[f"{part}/case_000{i}.nii.gz" for part in ("imagesTr", "labelsTr") for i in (2, 0, 1)])
    touch(tmp_path, "imagesTr/._case_0001.nii.gz")
    if description is not None:
        (tmp_path / "dataset.json").write_text(json.dumps(description))
    expected = [(f"case_000{i}", *[f"case_000{i}.nii.gz"] * 2) for i in range(3)]
    assert names(find_cases(tmp_path, labelled=True)) == expected


def test_the_nnunet_layout_becomes_cases_by_name(tmp_path):
    touch(tmp_path, "imagesTr/b_0000.nii", "imagesTr/a_1001_0000.nii", "labelsTr/a_1001.nii", "labelsTr/b.nii")
    touch(tmp_path, "imagesTr/c_0000.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"file_ending": ".nii"}))
    expected = [("a_1001", "a_1001_0000.nii", "a_1001.nii"), ("b", "b_0000.nii", "b.nii")]
    assert names(find_cases(tmp_path, labelled=True)) == expected


CHANNELS = ["a_0001.nii", "a_0000.nii", "b_0000.nii", "b_0001.nii"]


@pytest.mark.parametrize("split", ["Tr", "Ts"])
def test_channels_of_a_data_set_are_the_files_of_one_case(tmp_path, split):
    touch(tmp_path, *(f"images{split}/{name}" for name in CHANNELS), f"labels{split}/a.nii", f"labels{split}/b.nii")
    cases = find_cases(tmp_path, labelled=True, split=split, channels=2)
    assert names(cases) == [("a", "a_0000.nii", "a.nii"), ("b", "b_0000.nii", "b.nii")]
    assert [path.name for path in cases[0].images] == ["a_0000.nii", "a_0001.nii"]


@pytest.mark.parametrize("labelled", [False, True])
def test_channels_may_lie_in_one_folder_with_their_labels(tmp_path, labelled):
    touch(tmp_path, *CHANNELS, "a_label.nii.gz", "b_label.nii.gz", "notes.nii")
    cases = find_cases(tmp_path, labelled, channels=2)
    assert names(cases) == [("a", "a_0000.nii", "a_label.nii.gz"), ("b", "b_0000.nii", "b_label.nii.gz")]
    assert [path.name for path in cases[1].others] == ["b_0001.nii"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["a_0000.nii.gz"], "a_0001.nii.gz: wanted this one of 2 channels, a file each, found no such file"),
        (["a_0001.nii"], "a_0000.nii: wanted this one of 2 channels, a file each, found no such file"),
        (["a.nii"], "a_0001.nii: wanted this one of 2 channels, a file each, found no such file"),
        (
            [*CHANNELS, "b_0002.nii"],
            "b_0002.nii: wanted 2 channels, one for each rule of data.intensity, found another",
        ),
        ([*CHANNELS, "a.nii"], "a_0000.nii: wanted one file for each channel, found a.nii beside it"),
    ],
)
def test_a_channel_too_few_or_too_many_is_one_sentence_that_names_its_file(tmp_path, files, sentence):
    touch(tmp_path, *(f"imagesTs/{name}" for name in files))
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path, labelled=False, split="Ts", channels=2)
    assert str(caught.value) == f"{tmp_path}/imagesTs/{sentence}"


def write_channels(folder):
    """Two channels and a label; the second is stored in another voxel order."""
    case = write_boxes(folder)
    data = read_image(case.image).data
    second = folder / "ct_second.nii.gz"
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = len(data) - 1
    noise = np.random.default_rng(0).normal(0, 20, data.shape)
    write_volume(second, (3 * data + noise).astype(np.float32)[::-1], AFFINE @ flip)
    return Case("ct", case.image, case.label, (second,))


def test_each_channel_of_a_sample_is_what_a_sample_of_its_file_alone_is(tmp_path):
    case = write_channels(tmp_path)
    config = replace(CONFIG, intensity=["window", "percentile"], region="found")
    sample = training_sample(case, config, margin=2)
    assert sample.image.shape == (2, 20, 20, 20)
    for number, path in enumerate(case.images):
        alone = training_sample(
            Case("ct", path, case.label), replace(config, intensity=config.intensity[number]), margin=2
        )
        torch.testing.assert_close(sample.image[number], alone.image[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(sample.overview.image[number], alone.overview.image[0], atol=1e-5, rtol=0)
        np.testing.assert_allclose(sample.facts.quantiles[number], alone.facts.quantiles[0], atol=1e-5)
    samples = TrainingSet([case], config, 0, tmp_path / "cache")
    assert [statistics.cases for statistics in samples.intensity_statistics] == [1, 1]


def test_a_channel_must_lie_on_the_first(tmp_path):
    case = write_channels(tmp_path)
    (second,) = case.others
    moved = AFFINE.copy()
    moved[2, 3] += 1
    write_volume(second, read_image(case.image).data, moved)
    with pytest.raises(InputError) as caught:
        read_case(case)
    assert str(caught.value) == f"{second}: wanted the first channel's affine, found one that lies 0.5 voxels off"


def test_an_image_of_another_number_of_channels_is_refused(tmp_path):
    case = write_channels(tmp_path)
    with pytest.raises(InputError) as caught:
        training_sample(case, CONFIG)
    assert str(caught.value) == f"{case.image}: wanted 1 channels, as data.intensity has rules, found 2"


def test_any_volumes_serve_evaluation(tmp_path):
    touch(tmp_path, "b_0000.nii.gz", "a.nii", "._a.nii", "readme.md")
    assert names(find_cases(tmp_path, labelled=False)) == [("a", "a.nii", None), ("b", "b_0000.nii.gz", None)]


MIX = ["p1_image.nii.gz", "p1_label.nii.gz", "p2.nii.gz", "p2_label.nrrd", "p3_0000.nii", "p4.mha"]


def test_other_volumes_beside_images_serve_evaluation_and_no_training(tmp_path):
    touch(tmp_path, *MIX)
    first = ("p1", "p1_image.nii.gz", "p1_label.nii.gz")
    others = [("p2", "p2.nii.gz", "p2_label.nrrd"), ("p3", "p3_0000.nii", None), ("p4", "p4.mha", None)]
    assert names(find_cases(tmp_path, labelled=False)) == [first, *others]
    assert names(find_cases(tmp_path, labelled=True)) == [first]
    (tmp_path / "p1.nii.gz").touch()
    with pytest.raises(
        InputError, match=r"p1\.nii\.gz: wanted one file for each case, found p1_image\.nii\.gz beside it"
    ):
        find_cases(tmp_path, labelled=False)


def test_names_of_four_digits_before_image_are_no_channels(tmp_path):
    touch(tmp_path, "ct_0000_image.nii.gz", "ct_0001_image.nii.gz", "other.nii.gz")
    assert [case.name for case in find_cases(tmp_path, labelled=False)] == ["ct_0000", "ct_0001", "other"]


def test_label_maps_are_no_images_and_those_that_belong_to_no_case_are_named(tmp_path, capsys):
    """As ACDC names them, as others do, and this program's own; tissues belong to a phantom."""
    touch(tmp_path, *MIX, "p1_tissues.nii.gz")
    found = names(find_cases(tmp_path, labelled=False))
    assert len(input_cases(tmp_path)) == 4
    assert capsys.readouterr().err == ""
    touch(tmp_path, "p1_frame01_gt.nii.gz", "p5_label.nii", "p6_SEG.nii", "p2_unet_segmentation.nii.gz")
    touch(tmp_path, "p2_mesh_labelmap.nii.gz")
    assert names(input_cases(tmp_path)) == found
    listed = "p1_frame01_gt.nii.gz, p2_mesh_labelmap.nii.gz, p2_unet_segmentation.nii.gz, ..."
    line = f"{tmp_path}: left out, as label maps by name: {listed}\n"
    assert capsys.readouterr().err == line


def test_a_folder_of_label_maps_alone_has_no_cases(tmp_path):
    touch(tmp_path, "p1_label.nii.gz", "p1_gt.nii.gz")
    with pytest.raises(InputError, match=r"wanted NAME_image\.nii\.gz files .* found none"):
        input_cases(tmp_path)


def test_the_test_split_of_a_data_set_becomes_cases_with_labels_where_there_are_some(tmp_path):
    """Decathlon has no labels there, nnU-Net may."""
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz", "imagesTs/c_0000.nii.gz")
    touch(tmp_path, "labelsTs/c.nii.gz")
    assert splits_of(tmp_path) == ["Ts", "Tr"]
    expected = [("b", "b_0000.nii.gz", None), ("c", "c_0000.nii.gz", "c.nii.gz")]
    assert names(find_cases(tmp_path, labelled=False, split="Ts")) == expected
    assert names(find_cases(tmp_path, labelled=True)) == [("a", "a.nii.gz", "a.nii.gz")]


def test_a_label_in_another_voxel_order_is_brought_to_its_images(tmp_path):
    case = write_boxes(tmp_path)
    image, labels = read_case(case)
    assert (labels.grid.affine == image.grid.affine).all()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product([1, -1], repeat=3):
            data = labels.data.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            turn = np.eye(4)[[*order, 3]].T
            flip = np.diag([*signs, 1.0])
            flip[:3, 3] = [n - 1 if sign < 0 else 0 for n, sign in zip(data.shape, signs, strict=True)]
            write_volume(case.label, data, AFFINE @ turn @ flip)
            found = read_case(case)[1]
            np.testing.assert_array_equal(found.data, labels.data)
            assert found.grid.shape == image.grid.shape


@pytest.mark.skipif(not ACDC.is_dir(), reason="ACDC is not at ../shared/data")
def test_real_hearts_have_their_true_volume(capsys):
    """Left ventricles of 40 to 400 ml, not of a few; the doubtful header is named once a case."""
    config = DataConfig(
        structures={"LV": [3]}, region="found", shape=(48, 48, 40), spacing_mm=3.0, intensity="percentile"
    )
    for case in find_cases(ACDC, labelled=True)[::12]:
        sample = training_sample(case, config)
        assert 40 < sample.label.count_nonzero() * 0.027 < 400
        assert sample.facts.shares_outside.max() < 0.01
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all("pixdim says" in line for line in lines)


@pytest.mark.parametrize(
    ("files", "ending", "labelled", "sentence"),
    [
        (None, None, True, "wanted a folder of cases, found none"),
        ([], None, True, "wanted NAME_image.nii.gz files"),
        ([], None, False, "wanted NAME_image.nii.gz files"),
        (["a.nii.gz"], None, True, "wanted NAME_image.nii.gz files"),
        (["imagesTr/notes.txt"], None, True, "wanted images in imagesTr, found none"),
        (["a_image.nii.gz", "a_image.nii"], None, False, "wanted one file for each case, found a_image.nii beside it"),
        (["imagesTr/a.nii", "imagesTr/b.nii", "labelsTr/a.nii"], None, True, "b.nii: wanted a label for this image"),
        (["imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii"], None, True,
         "wanted single-channel images, found another channel a_0000.nii"),
        (["a_0000.nii", "a_0001.nii"], None, False,
         "a_0001.nii: wanted single-channel images, found another channel a_0000.nii"),
        (["imagesTr/a.nii"], '{"file_ending": ".mgz"}', False, "wanted file_ending .nii.gz or .nii or .nrrd"),
        (["imagesTr/a.nii"], "[1]", False, "wanted a description of a data set"),
        (["imagesTr/a.nii"], "{", False, "wanted a description of a data set"),
    ],
)  # fmt: skip
def test_a_bad_folder_is_one_sentence_that_names_it(tmp_path, files, ending, labelled, sentence):
    folder = tmp_path / "data"
    if files is not None:
        folder.mkdir()
        touch(folder, *files)
    if ending:
        (folder / "dataset.json").write_text(ending)
    with pytest.raises(InputError) as caught:
        find_cases(folder, labelled)
    assert str(caught.value).startswith(str(folder))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_split_depends_on_names_and_seed_alone():
    cases = [Case(f"{i:02}", Path(f"{i}"), None) for i in range(20)]
    training, validation = split_cases(cases, 4, seed=3)
    assert len(validation) == 4
    assert sorted(training + validation, key=lambda case: case.name) == cases
    assert split_cases(cases[::-1], 4, seed=3) == (training, validation)
    assert len({tuple(split_cases(cases, 4, seed)[1]) for seed in range(10)}) > 5
    with pytest.raises(InputError, match="wanted fewer than the 20 cases of the folder, found 20"):
        split_cases(cases, 20, 0)


@pytest.mark.parametrize(("seed", "names"), [(0, ["02", "04", "06", "19"]), (3, ["08", "12", "16", "18"])])
def test_the_split_of_a_seed_is_pinned_so_that_runs_compare_between_versions(seed, names):
    cases = [Case(f"{number:02}", Path(f"{number}"), None) for number in range(20)]
    _, validation = split_cases(cases, 4, seed)
    assert [case.name for case in validation] == names


@pytest.mark.parametrize(("count", "folds"), [(20, 5), (23, 5), (5, 5), (7, 2)])
def test_folds_hold_out_every_case_once_and_are_of_equal_size_to_one(count, folds):
    cases = [Case(f"{number:02}", Path(f"{number}"), None) for number in range(count)]
    held_out = []
    for fold in range(folds):
        training, validation = split_cases(cases[::-1], 4, 3, (fold, folds))
        assert sorted(training + validation, key=lambda case: case.name) == cases
        held_out.append(validation)
    assert sorted(itertools.chain(*held_out), key=lambda case: case.name) == cases
    sizes = [len(validation) for validation in held_out]
    assert max(sizes) - min(sizes) <= 1


def test_the_folds_of_a_seed_are_pinned_and_those_of_another_differ():
    cases = [Case(f"{number:02}", Path(f"{number}"), None) for number in range(20)]
    config = Config(data=DataConfig(fold=1, folds=5))
    names = [case.name for case in configured_split(cases, config)[1]]
    assert names == ["03", "12", "14", "19"]
    assert split_cases(cases, 4, 3, (1, 5))[1] != configured_split(cases, config)[1]
    config.data.fold = None
    assert configured_split(cases, config) == split_cases(cases, 4, 0)


def test_fewer_cases_than_folds_are_one_sentence():
    cases = [Case(str(number), Path(str(number)), None) for number in range(4)]
    with pytest.raises(InputError, match=r"^data\.folds: wanted at most the 4 cases of the folder, found 5$"):
        split_cases(cases, 1, 0, (0, 5))


def test_a_case_on_the_networks_grid(tmp_path):
    case = write_boxes(tmp_path)
    sample = training_sample(case, CONFIG)
    assert sample.image.shape == (1, 16, 16, 16)
    assert sample.label.shape == sample.grid.shape == (16, 16, 16)
    assert sample.image.dtype == torch.float32
    assert sample.label.dtype == torch.uint8
    assert sample.image.min() >= -1
    assert sample.image.max() == pytest.approx(0.4)
    for index, corner in ((1, (4, 4, 4)), (2, (4, 14, 4))):
        box = (sample.label == index).nonzero().double().mean(0).numpy()
        centre = transform(AFFINE, np.array(corner) + 3.5)
        np.testing.assert_allclose(transform(sample.grid.affine, box), centre, atol=0.6)
    np.testing.assert_allclose(sample.image[0][sample.label == 0][0], -0.5, atol=1e-6)


def test_a_margin_surrounds_the_same_voxels(tmp_path):
    case = write_boxes(tmp_path)
    sample, padded = training_sample(case, CONFIG), training_sample(case, CONFIG, margin=3)
    inner = (slice(3, -3),) * 3
    assert padded.image.shape == (1, 22, 22, 22)
    assert padded.grid.shape == (16, 16, 16)
    assert torch.allclose(padded.image[0][inner], sample.image[0], atol=1e-5)
    assert torch.equal(padded.label[inner], sample.label)
    assert (padded.grid.affine == sample.grid.affine).all()
    assert (padded.image[..., :3] > -0.9).any()  # the margin holds real data


def test_a_label_maps_by_value_not_by_rank(tmp_path):
    only_la = training_sample(write_boxes(tmp_path, values=(421,)), CONFIG)
    assert only_la.label.unique().tolist() == [0, 2]


def test_both_orientations_of_a_file_give_the_same_sample(tmp_path):
    case = write_boxes(tmp_path)
    sample = training_sample(case, CONFIG)
    image = read_image(case.image)
    for order in itertools.permutations(range(3)):
        permutation = np.eye(4)[[*order, 3]].T
        turned = write_boxes(tmp_path, "turned")
        for path, data in ((turned.image, image.data), (turned.label, read_image(case.label).data)):
            flipped = data.transpose(order)[::-1]
            flip = np.diag([-1.0, 1, 1, 1])
            flip[0, 3] = flipped.shape[0] - 1
            write_volume(path, flipped, AFFINE @ permutation @ flip)
        other = training_sample(turned, CONFIG)
        assert torch.allclose(other.image, sample.image, atol=1e-5)
        assert torch.equal(other.label, sample.label)


def test_a_label_must_fit_its_image(tmp_path):
    case = write_boxes(tmp_path)
    labels = read_image(case.label).data
    write_volume(case.label, labels[:-1], AFFINE)
    with pytest.raises(InputError) as caught:
        training_sample(case, CONFIG)
    assert str(caught.value) == f"{case.label}: wanted the image's shape (20, 30, 16), found (19, 30, 16)"
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    write_volume(case.label, labels, moved)
    with pytest.raises(InputError) as caught:
        training_sample(case, CONFIG)
    assert str(caught.value) == f"{case.label}: wanted the image's affine, found one that lies 0.5 voxels off"
    moved[0, 3] = AFFINE[0, 3] + 1e-4  # rounding of other tools
    write_volume(case.label, labels, moved)
    assert training_sample(case, CONFIG).label.any()


def test_a_label_needs_a_configured_value(tmp_path):
    case = write_boxes(tmp_path, values=(600, 205))
    with pytest.raises(InputError) as caught:
        training_sample(case, CONFIG)
    assert str(caught.value) == f"{case.label}: wanted some of the label values 420, 421, 500, found 0, 205, 600"


@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="Task04_Hippocampus is not at ../shared/data")
def test_hippocampus_volumes_survive_the_networks_grid():
    cases = find_cases(HIPPOCAMPUS, labelled=True)
    config = DataConfig(
        structures={"anterior": [1], "posterior": [2]}, shape=(64, 64, 64), spacing_mm=1.0, intensity="percentile"
    )
    assert len(cases) == 200
    assert all(case.label for case in cases)
    for case in cases[::8]:
        sample = training_sample(case, config)
        original = read_image(case.label).data
        for index in (1, 2):
            assert (sample.label == index).sum() == (original == index).sum()
        assert sample.image.min() == -1
        assert sample.image.max() == 1
        assert 0.2 < sample.image.std() < 0.8


@pytest.mark.skipif(not HEART.is_dir(), reason="heart_ct is not at ../shared/data")
def test_the_heart_stays_where_it_is():
    (case,) = find_cases(HEART, labelled=True)
    sample = training_sample(case, DataConfig(structures={"heart": [1]}, shape=(160, 128, 144), spacing_mm=2.3))
    original = np.argwhere(read_image(case.label).data == 1)
    heart = sample.label.nonzero().double().numpy()
    assert len(heart) * 2.3**3 == pytest.approx(len(original) * 1.5**3, rel=0.02)
    world = transform(read_image(case.image).grid.affine, original.mean(0))
    np.testing.assert_allclose(transform(sample.grid.affine, heart.mean(0)), world, atol=0.2)


@pytest.mark.parametrize(("count", "ending"), [(20, "18, 19"), (21, "18, 19, ...")])
def test_of_many_label_values_the_first_twenty_are_named(count, ending):
    labels = Volume(np.arange(count).reshape(count, 1, 1), Grid((count, 1, 1), np.eye(4)), name="heart")
    with pytest.raises(InputError) as caught:
        check_labels(labels, structures_of(500))
    assert str(caught.value).startswith("heart: wanted some of the label values 500, found 0, 1, 2, ")
    assert str(caught.value).endswith(f"17, {ending}")


def test_beyond_the_volume_a_sample_is_as_dark_as_can_be_and_background(tmp_path):
    config = DataConfig(structures={"LV": [500], "LA": [420, 421]}, shape=(48, 48, 48), spacing_mm=1.7)
    sample = training_sample(write_boxes(tmp_path), config)
    voxels = np.stack(np.indices(sample.grid.shape), -1).astype(float)
    source = transform(np.linalg.inv(AFFINE) @ sample.grid.affine, voxels)
    outside = ((source < -0.51) | (source > np.array([20, 30, 16]) - 0.49)).any(-1)
    assert outside.any() and not outside.all()
    assert (sample.image[0].numpy()[outside] == -1).all()
    assert (sample.label.numpy()[outside] == 0).all()
    assert sample.image[0].numpy()[~outside].min() > -0.6
    assert sample.label.any()


def test_what_is_doubtful_about_both_files_of_a_case_is_printed_once(tmp_path, capsys):
    case = Case("a", tmp_path / "a_image.nii", tmp_path / "a_label.nii")
    for path, value in ((case.image, -50), (case.label, 500)):
        image = nib.Nifti1Image(np.full((20, 20, 20), value, np.int16), None)
        image.header.set_zooms((2, 2, 2))
        nib.save(image, path)
    image, labels = read_case(case)
    assert len(image.warnings) == 1
    assert labels.warnings == ()
    read_labelled(case, CONFIG)
    captured = capsys.readouterr()
    assert captured.err == f"warning: {image.warnings[0]}\n"
    assert captured.out == ""


def test_one_case_may_be_left_for_training():
    cases = [Case(name, Path(name), None) for name in "cab"]
    training, validation = split_cases(cases, 2, seed=0)
    assert len(training) == 1
    assert len(validation) == 2
    assert validation == sorted(validation, key=lambda case: case.name)


def test_a_name_that_ends_in_four_digits_or_beside_a_channel_is_not_cut(tmp_path):
    touch(tmp_path, "a_0000.nii.gz", "a_left.nii.gz", "b_1234.nii.gz", "c.nii.gz")
    expected = [("a", "a_0000"), ("a_left", "a_left"), ("b_1234", "b_1234"), ("c", "c")]
    found = find_cases(tmp_path, labelled=False)
    assert names(found) == [(name, f"{stem}.nii.gz", None) for name, stem in expected]


@pytest.mark.parametrize("labelled", [False, True])
def test_without_a_margin_a_sample_is_as_large_as_its_grid(labelled):
    volume = Volume(np.ones((12, 12, 12), np.float32), Grid((12, 12, 12), np.eye(4)))
    labels = Volume(np.full((12, 12, 12), 5, np.int32), volume.grid) if labelled else None
    grid = network_grid(volume.grid, (8, 6, 4), 1.0)
    sample = on_network_grid(volume, labels, grid, structures_of(5))
    assert sample.image.shape == (1, 8, 6, 4)
    assert grid.shape == (8, 6, 4)
    assert sample.grid is grid
    assert (sample.label is not None) == labelled
    assert not labelled or (sample.label == 1).all()


def test_what_is_doubtful_about_the_label_map_alone_is_said_too(tmp_path):
    case = Case("a", tmp_path / "a_image.nii", tmp_path / "a_label.nii")
    data = np.full((20, 20, 20), 500, np.int16)
    write_volume(case.image, data, np.eye(4))
    write_volume(case.label, data, np.diag([2.0, 2, 2, 1]))
    header = bytearray(case.label.read_bytes())
    struct.pack_into("<3f", header, 80, 1, 1, 1)  # pixdim, which is believed
    struct.pack_into("<h", header, 252, 0)  # qform_code: the sform alone, whose columns say 2 mm
    case.label.write_bytes(header)
    image, labels = read_case(case)
    assert image.warnings == ()
    (warning,) = labels.warnings
    assert warning.startswith(f"{case.label}: pixdim says 1 x 1 x 1 mm")


def test_so_many_training_cases_are_drawn_and_fewer_are_among_more():
    cases = [Case(f"case_{number:02}", Path("a"), None) for number in range(20)]
    config = Config(DataConfig(validation_cases=4))
    everything, held_out = configured_split(cases, config)
    before = set()
    for count in (1, 5, 16):
        config.data.training_cases = count
        training, validation = configured_split(cases, config)
        names = [case.name for case in training]
        assert validation == held_out
        assert len(names) == count
        assert names == sorted(names)
        assert before <= set(names)
        before = set(names)
    assert training == everything
    config.data.training_cases = 17
    with pytest.raises(InputError, match=r"data\.training_cases: wanted at most the 16 .*, found 17"):
        configured_split(cases, config)
