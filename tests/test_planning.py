"""From labelled cases to a config: what is measured, what is chosen, and that the script's config trains."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scripts import call
from volumes import ball_mask, write_case

import create_config
from implicitmeshnet.config import REPOSITORY, Config, DataConfig, LossConfig, NetworkConfig, load_config
from implicitmeshnet.data.dataset import find_cases
from implicitmeshnet.planning import ceiling, choices
from implicitmeshnet.planning.choices import (
    channels_of,
    choose_box,
    choose_encloses,
    choose_ignored,
    choose_intensity,
    choose_mesh,
    choose_orientation,
    choose_start,
    choose_structures,
    coarser_mm,
    finest_spacing_mm,
    tree_of,
)
from implicitmeshnet.planning.survey import CaseFacts, survey_case
from implicitmeshnet.script import InputError

SPACING_MM = np.array([1.0, 1.0, 2.0])


def facts(**changes) -> CaseFacts:
    """A heart of a ventricle, 500, in its myocardium, 205, 20 mm to one side, in a volume of 160 mm."""
    values = {
        "name": "a",
        "shape": (160, 160, 160),
        "spacing_mm": np.ones(3),
        "voxels": {500: 1000, 205: 2000},
        "boxes_mm": {
            500: np.array([[0.0, -20, -20], [40, 20, 20]]),
            205: np.array([[-10.0, -30, -30], [50, 30, 30]]),
        },
        "contacts_mm2": {(205, 500): 90.0, (0, 500): 10.0, (0, 205): 300.0},
        "unusable": (),
        "aligned": False,
        "lowest": -1000.0,
        "sampled_labels": np.array([205, 500] * 50),
        "sampled_intensities": np.linspace(-130.0, 410.0, 100)[None],
        "warnings": (),
    }
    return CaseFacts(**(values | changes))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A bar of label 7 of 4 x 3 x 2 voxels beside one of label 9, in a left-handed volume, away from its centre."""
    label = np.zeros((20, 18, 16), np.int16)
    label[2:6, 3:6, 4:6] = 7
    label[6:8, 3:6, 4:6] = 9
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    return write_case(tmp_path_factory.mktemp("survey"), "a", label.astype(np.float32) - 300, label, affine)


def test_a_survey_measures_voxels_boxes_contacts_and_intensities(case):
    found = survey_case(case)
    assert found.shape == (20, 18, 16)
    assert found.spacing_mm == pytest.approx(SPACING_MM)
    assert found.voxels == {7: 24, 9: 12}
    # Canonical axes run the other way along x: voxels 2 to 5 of 20 are 14 to 17, whose faces lie 4 and 8 mm off centre.
    assert found.boxes_mm[7] == pytest.approx(np.array([[4.0, -6.0, -8.0], [8.0, -3.0, -4.0]]))
    assert found.box_mm([7, 9]) == pytest.approx(np.array([[2.0, -6.0, -8.0], [8.0, -3.0, -4.0]]))
    assert found.box_mm([8]) is None
    assert found.contacts_mm2[7, 9] == 3 * 2 * 2.0  # 3 x 2 faces of 1 x 2 mm
    assert found.contacts_mm2[0, 7] == 2 * 4 * 3 * 1.0 + 2 * 4 * 2 * 2.0 + 3 * 2 * 2.0
    assert found.lowest == -300
    assert found.intensity_range([7], 0) == pytest.approx((-293, -293))
    assert found.intensity_range([7, 9], 0) == pytest.approx((-293, -291))
    assert found.intensity_range([8], 0) is None
    assert found.unusable == ()


def test_a_case_without_any_label_is_surveyed_too(tmp_path):
    empty = write_case(tmp_path, "a", np.ones((6, 6, 6), np.float32), np.zeros((6, 6, 6), np.int16), np.eye(4))
    found = survey_case(empty)
    assert (found.voxels, found.boxes_mm, found.contacts_mm2) == ({}, {}, {})


@pytest.mark.parametrize(
    ("description", "wanted"),
    [
        ({}, {"Myo": [205], "LV": [500]}),
        (
            {"labels": {"0": "background", "205": "wall", "500": "left ventricle"}},
            {"wall": [205], "left_ventricle": [500]},
        ),
        ({"labels": {"background": 0, "heart": [205, 500]}}, {"heart": [205, 500]}),
        ({"labels": {"background": 0, "LV": 500, "ignore": 205}}, {"LV": [500]}),
        ({"labels": ["LV"]}, {"Myo": [205], "LV": [500]}),
    ],
    ids=["MM-WHS", "Decathlon", "nnU-Net", "a value without name", "no object"],
)
def test_structures_have_the_names_of_the_data_set_or_of_mmwhs(description, wanted):
    choice, doubts = choose_structures([facts()], description, None)
    assert choice.value == wanted
    assert doubts == []


def test_label_values_that_nobody_names_name_themselves():
    choice, _ = choose_structures(
        [facts(voxels={1: 5, 3: 5}, boxes_mm={1: np.ones((2, 3)), 3: np.ones((2, 3))})], {}, None
    )
    assert choice.value == {"label_1": [1], "label_3": [3]}


def test_structures_that_are_asked_for_are_those_or_new_ones():
    choice, _ = choose_structures([facts()], {}, ["LV", "wall=205"])
    assert choice.value == {"LV": [500], "wall": [205]}
    for text in ("RV", "LV=501", "LV=", "LV=x"):
        with pytest.raises(InputError, match="--structures: wanted"):
            choose_structures([facts()], {}, [text])


def test_a_structure_that_few_cases_have_is_named():
    other = facts(voxels={500: 10}, boxes_mm={500: facts().boxes_mm[500]}, name="b")
    _, doubts = choose_structures([facts(), other, other], {}, None)
    assert doubts == ["Myo: is labelled in only a"]


def test_no_label_at_all_is_one_sentence():
    with pytest.raises(InputError, match="wanted label values of structures, 1 to 32767, in any case, found none"):
        choose_structures([facts(voxels={}, boxes_mm={})], {}, None)


def test_what_touches_most_of_anothers_surface_encloses_it():
    structures = {"LV": [500], "Myo": [205]}
    assert choose_encloses([facts()], structures, {}).value == {"Myo": ["LV"]}
    beside = facts(contacts_mm2={(205, 500): 50.0, (0, 500): 50.0, (0, 205): 300.0})
    assert choose_encloses([beside], structures, {}).value == {}


@pytest.mark.parametrize("order", [("heart", "LV"), ("LV", "heart")])
def test_a_region_of_nnunet_that_holds_another_encloses_it(order):
    regions = {"heart": [205, 500], "LV": 500}
    description = {"labels": {"background": 0, **{name: regions[name] for name in order}}}
    choice, doubts = choose_structures([facts()], description, None)
    assert choice.value == {"heart": [205], "LV": [500]}
    assert doubts == [
        "heart: dataset.json's region holds 205 500, of which LV have values of their own: its label is 205; "
        "data.encloses says what its mesh holds, and what is held itself holds nothing"
    ]
    beside = facts(contacts_mm2={(0, 500): 50.0, (0, 205): 300.0})
    assert choose_encloses([beside], choice.value, description).value == {"heart": ["LV"]}


def test_a_region_of_others_alone_is_named_and_left_out():
    description = {"labels": {"background": 0, "Myo": 205, "LV": 500, "heart": [205, 500]}}
    choice, doubts = choose_structures([facts()], description, None)
    assert choice.value == {"Myo": [205], "LV": [500]}
    assert doubts == ["heart: dataset.json's region holds 205 500, of which Myo, LV have all: no structure of its own"]


@pytest.mark.parametrize(
    ("description", "lowest", "wanted"),
    [
        ({"channel_names": {"0": "T1", "1": "T2"}}, 0.0, {"intensity": ["percentile", "percentile"]}),
        ({"modality": {"0": "MRI"}}, -1000.0, {"intensity": "percentile"}),
        ({"channel_names": {"0": "CT"}}, 0.0, {"intensity": "window", "window_hu": 1100.0, "level_hu": 150.0}),
        ({}, -1000.0, {"intensity": "window", "window_hu": 1100.0, "level_hu": 150.0}),
        ({}, -5.0, {"intensity": "percentile"}),
    ],
    ids=["two channels", "MR says the data set", "CT says the data set", "values of CT", "values of MR"],
)
def test_intensities_follow_the_modality(description, lowest, wanted):
    choices = choose_intensity([facts(lowest=lowest)], channels_of(description), {"heart": [205, 500]})
    assert tree_of(choices)["data"] == wanted


def test_the_window_is_that_of_the_structures_in_the_channel_of_ct():
    intensities = np.stack([np.full(100, 7.0), np.where(np.arange(100) % 2, 100.0, -900.0)])
    one = facts(sampled_labels=np.array([3, 500] * 50), sampled_intensities=intensities)
    without = facts(sampled_labels=np.array([3] * 100), sampled_intensities=intensities)
    data = tree_of(choose_intensity([one, without], ["PET", "CT"], {"LV": [500]}))["data"]
    assert data == {"intensity": ["percentile", "window"], "window_hu": 50.0, "level_hu": 100.0}


def test_labels_that_are_left_out_are_named():
    description = {"labels": {"LV": 500, "Myo": 205, "RV": 600, "background": 0}}
    _, doubts = choose_structures([facts(unusable=(-3, 40000))], description, None)
    assert doubts == [
        "RV: dataset.json says 600, and no case has it",
        "label values -3, 40000: not from 1 to 32767, so left out",
    ]
    with pytest.raises(InputError, match="wanted label values of structures"):
        choose_structures([facts(voxels={9: 10})], {"labels": {"LV": 500, "ignore": 9}}, None)
    with pytest.raises(InputError, match="--structures: wanted each name once, found LA twice"):
        choose_structures([facts()], {}, ["LA=205", "LA=500"])


def test_the_finest_spacing_is_the_images_own_and_thick_slices_keep_theirs():
    even = [facts(spacing_mm=np.array([0.9, 1.0, 1.2]))]
    spacing_mm, _ = finest_spacing_mm(even)
    assert spacing_mm == pytest.approx([1.08 ** (1 / 3)] * 3)
    thick = [facts(spacing_mm=np.array([1.5, 1.5, slices])) for slices in (5.0, 10.0, 10.0, 10.0)]
    spacing_mm, reason = finest_spacing_mm(thick)
    assert spacing_mm[:2] == pytest.approx([1.5, 1.5])
    assert 5 <= spacing_mm[2] < 10
    assert "thick" in reason


def test_a_coarser_grid_grows_where_it_is_finest():
    assert coarser_mm(np.ones(3), 1.25**3) == pytest.approx([1.25] * 3)
    assert coarser_mm(np.array([1.5, 1.5, 5.0]), 1.44) == pytest.approx([1.8, 1.8, 5.0])
    assert coarser_mm(np.array([4.5, 4.5, 5.0]), 1e9) == pytest.approx([5.625] * 3)
    assert coarser_mm(np.ones(3), 1.0) == pytest.approx([1.05] * 3)


def box_of(cases, spacing_mm):
    return tree_of(choose_box(cases, [500, 205], np.array(spacing_mm)))


def test_a_box_around_the_volumes_centre_holds_every_label_where_that_costs_little():
    tree = box_of([facts()], [1.0, 1.0, 1.0])
    assert tree["data"]["region"] == "found"  # 100 x 60 x 60 mm around the centre, 60 mm around the heart
    near = facts(boxes_mm={500: np.array([[-28.0, -30, -30], [32, 30, 30]])})
    data = box_of([near], [1.0, 1.0, 1.0])["data"]
    assert data["region"] == "centre"
    assert data["spacing_mm"] == 1.0
    assert "flat_levels" not in tree["network"]
    assert all(size >= wanted for size, wanted in zip(data["shape"], (66, 62, 62), strict=True))
    assert max(data["shape"]) <= 72


def test_a_box_that_is_found_is_wider_than_the_labels_by_what_the_coarse_pass_may_be_off():
    tree = box_of([facts()], [1.5, 1.5, 5.0])
    assert tree["network"]["flat_levels"] == [0, 0, 1]
    data = tree["data"]
    assert data["spacing_mm"] == [1.5, 1.5, 5.0]
    sides_mm = np.multiply(data["shape"], data["spacing_mm"])
    assert (sides_mm >= 60 + 12 + 3).all()
    assert data["shape"][2] < data["shape"][0]


@pytest.mark.parametrize("side_mm", [8.0, 20.0, 47.0, 130.0, 300.0])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.5, 1.5, 8.0), (2.6, 2.6, 2.6)])
def test_every_box_makes_a_config_that_is_valid(side_mm, spacing_mm):
    half = side_mm / 2
    one = facts(
        shape=(320,) * 3, boxes_mm={500: np.array([[-half] * 3, [half] * 3])}, contacts_mm2={(0, 500): 6 * side_mm**2}
    )
    structures, _ = choose_structures([one], {}, ["LV"])
    box = choose_box([one], [500], np.array(spacing_mm))
    shape = tree_of(box)["data"]["shape"]
    mesh = choose_mesh([one], structures.value, shape, np.array(spacing_mm))
    config = create_config.config_of([structures, *box, *mesh])
    assert (np.multiply(config.data.shape, config.data.spacing_mm) >= side_mm).all()


def test_a_mesh_has_edges_of_two_voxels_and_weights_that_follow_its_size():
    box = choose_box([facts()], [500, 205], np.ones(3))
    shape = tree_of(box)["data"]["shape"]
    structures = {"LV": [500], "Myo": [205]}
    small = tree_of(
        choose_mesh([facts(contacts_mm2={(0, 500): 400.0, (0, 205): 600.0})], structures, shape, np.ones(3))
    )
    large = tree_of(choose_mesh([facts(contacts_mm2={(0, 500): 9e3, (0, 205): 2e4})], structures, shape, np.ones(3)))
    assert small["network"]["template_subdivisions"] == 2
    assert large["network"]["template_subdivisions"] == 4
    assert small["loss"]["laplacian_start"] > small["loss"]["laplacian_end"]
    half_side = (np.prod(np.subtract(shape, 1)) ** (1 / 3)) / 2
    assert small["loss"]["temperature"] == pytest.approx(1.9 * half_side, rel=0.01)


@pytest.mark.slow
def test_the_ceiling_of_a_ball_is_near_one_and_falls_with_the_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "STEPS", 30)
    label = 500 * ball_mask((20, 20, 20), (9, 10, 9), 6).astype(np.int16)
    one = write_case(tmp_path, "a", label.astype(np.float32), label, np.eye(4))
    data = DataConfig(structures={"LV": [500], "LA": [420]}, shape=(16, 16, 16), spacing_mm=1.0)
    network = NetworkConfig(template_subdivisions=2)
    loss = LossConfig(temperature=15.0, laplacian_start=100.0, laplacian_end=5.0, laplacian_epochs=80)
    fine = ceiling.ceiling_of(one, Config(data, network, loss))
    assert fine.grid_dice == {"LV": 1.0}
    assert list(fine.mesh_dice) == ["LV"]
    assert 0.93 < fine.mesh_dice["LV"] <= 1.0
    coarse = ceiling.ceiling_of(one, Config(replace(data, shape=(8, 8, 8), spacing_mm=3.0), network, loss))
    assert 0.5 < coarse.grid_dice["LV"] < fine.grid_dice["LV"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four cases of a ventricle in its wall, 3 mm slices."""
    path = tmp_path_factory.mktemp("hearts")
    generator = np.random.default_rng(0)
    for number in range(4):
        shape = (24, 24, 16)
        centre = np.array([11, 12, 8]) + generator.integers(-1, 2, 3)
        label = 205 * ball_mask(shape, centre, 6).astype(np.int16)
        label[ball_mask(shape, centre, 3)] = 500
        image = (label + generator.normal(0, 30, shape)).astype(np.float32)
        write_case(path, f"heart_{number}", image, label, np.diag([3.0, 3.0, 3.0, 1.0]))
    return path


@pytest.mark.slow
def test_the_script_writes_a_config_its_reasons_and_a_picture(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ceiling, "STEPS", 3)
    out = tmp_path / "hearts.json"
    call(create_config, f"--data_dir={folder}", f"--out={out}", "--minutes=0.5", "--device=cpu")
    config = load_config(out)
    assert config.data.structures == {"Myo": [205], "LV": [500]}
    assert config.data.encloses == {"Myo": ["LV"]}
    assert config.data.intensity == "percentile"
    assert config.data.validation_cases == 1
    assert config.training.run_dir.endswith("runs/hearts")
    assert config.training.init_from == str(REPOSITORY / choices.HEARTS)
    assert config.training.epochs >= 1
    table = (tmp_path / "hearts.txt").read_text()
    assert table.rstrip() in capsys.readouterr().out
    assert all(key in table for key in ("data.shape", "network.template_subdivisions", "loss.temperature", "LV"))
    assert (tmp_path / "hearts.png").read_bytes().startswith(b"\x89PNG")
    before = out.read_bytes()
    assert "--minutes=0.5 hold" in table
    with pytest.raises(InputError, match=r"--out: wanted new files, found .*json"):
        call(create_config, f"--data_dir={folder}", f"--out={out}")
    assert out.read_bytes() == before
    out.unlink()
    with pytest.raises(InputError, match=r"--out: wanted new files, found .*txt"):
        call(create_config, f"--data_dir={folder}", f"--out={out}")
    assert (tmp_path / "hearts.txt").read_text() == table


def test_bad_arguments_and_folders_are_one_sentence_and_leave_nothing(folder, tmp_path):
    out = tmp_path / "new.json"
    for wrong, message in (
        ([f"--out={tmp_path / 'new.txt'}"], "--out: wanted a name that ends in .json"),
        ([f"--out={tmp_path / 'none/new.json'}"], "--out: wanted a file in a folder that is there"),
        ([f"--out={out}", "--minutes=0"], "--minutes: wanted a number above 0"),
        ([f"--out={out}", "--memory_gib=nan"], "--memory_gib: wanted a number above 0"),
        ([f"--out={out}", "--structures", "kidney"], "--structures: wanted names among Myo, LV"),
    ):
        with pytest.raises(InputError, match=message):
            call(create_config, f"--data_dir={folder}", *wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_no_training_would_take_is_named_at_once(tmp_path):
    (tmp_path / "data").mkdir()
    for number, value in enumerate((500, 500, 205)):
        label = value * ball_mask((24, 24, 16), (11, 12, 8), 6).astype(np.int16)
        write_case(tmp_path / "data", f"heart_{number}", label.astype(np.float32), label, np.diag([3.0, 3, 3, 1]))
    arguments = (f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'a.json'}", "--structures", "LV")
    with pytest.raises(InputError, match=r"heart_2\S*: wanted some of the label values 500, found 205"):
        call(create_config, *arguments)


@pytest.mark.slow
def test_a_structure_of_one_case_alone_is_planned_for_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "STEPS", 2)
    (tmp_path / "data").mkdir()
    for number in range(4):
        label = 205 * ball_mask((24, 24, 16), (11, 12, 8), 6).astype(np.int16)
        if number == 3:
            label[ball_mask((24, 24, 16), (11, 12, 8), 3)] = 500
        write_case(tmp_path / "data", f"heart_{number}", label.astype(np.float32), label, np.diag([3.0, 3, 3, 1]))
    call(
        create_config,
        f"--data_dir={tmp_path / 'data'}",
        f"--out={tmp_path / 'a.json'}",
        "--minutes=0.5",
        "--device=cpu",
    )
    assert set(load_config(tmp_path / "a.json").data.structures) == {"Myo", "LV"}
    assert "LV: is labelled in only heart_3" in (tmp_path / "a.txt").read_text()


def test_the_ceiling_leaves_out_what_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "STEPS", 1)
    label = 500 * ball_mask((16, 16, 16), (8, 8, 8), 5).astype(np.int16)
    label[:, :, 8:] = 205
    one = write_case(tmp_path, "a", label.astype(np.float32), label, np.eye(4))
    data = DataConfig(structures={"LV": [500]}, ignore=[205], shape=(16, 16, 16), spacing_mm=1.0)
    network = NetworkConfig(template_subdivisions=1)
    found = ceiling.ceiling_of(one, Config(data, network, LossConfig(segmentation_dice=1.0)))
    assert found.grid_dice == {"LV": 1.0}


def test_one_case_is_too_few(tmp_path):
    ones = np.ones((6, 6, 6), np.int16)
    (tmp_path / "one").mkdir()
    write_case(tmp_path / "one", "a", ones, ones, np.eye(4))
    with pytest.raises(InputError, match="wanted at least 2 labelled cases, one of them for validation, found 1"):
        call(create_config, f"--data_dir={tmp_path / 'one'}", f"--out={tmp_path / 'new.json'}")


def test_the_epochs_fill_the_time(folder):
    choices = create_config.config_of
    cases = find_cases(folder, labelled=True)
    found = [survey_case(case) for case in cases]
    structures, _ = choose_structures(found, {}, None)
    box = choose_box(found, [205, 500], np.full(3, 3.0))
    chosen = [structures, *box, create_config.Choice("data.validation_cases", 20, "")]
    assert choices(chosen).data.validation_cases == 20
    cost = create_config.Cost(step_s=0.5, validation_s=2.0)
    tree = tree_of(create_config.choose_schedule(chosen, 100, cost, 7200.0))["training"]
    steps = tree["epochs"] * tree["repeats"] * 40
    validations = tree["epochs"] // tree["validate_every"]
    assert 0.85 * 7200 < steps * 0.5 + validations * 20 * 2.0 < 7200
    assert 40 <= tree["epochs"] <= 200
    assert json.dumps(tree)


def test_few_cases_get_as_many_steps_as_many(folder):
    found = [survey_case(case) for case in find_cases(folder, labelled=True)]
    structures, _ = choose_structures(found, {}, None)
    box = choose_box(found, [205, 500], np.full(3, 3.0))
    chosen = [structures, *box, create_config.Choice("data.validation_cases", 1, "")]
    cost = create_config.Cost(step_s=1.0, validation_s=1.0)
    for count in (2, 4, 6, 101):
        choices = create_config.choose_schedule(chosen, count, cost, 7200.0)
        settings = create_config.config_of([*chosen, *choices]).training
        assert settings.steps_of_epoch(count - 1) * settings.epochs == pytest.approx(0.88 * 7200, rel=0.02)
        assert choices[0].reason == f"{settings.steps_of_epoch(count - 1)} steps an epoch"


def test_the_repair_of_an_untrained_networks_meshes_does_not_count(folder, monkeypatch):
    def predictor_of(network, config):
        return lambda image: SimpleNamespace(seconds={"repair": 1e6, "network": 1.0})

    monkeypatch.setattr(create_config, "Predictor", predictor_of)
    (case, *_) = find_cases(folder, labelled=True)
    assert create_config.validation_seconds(None, Config(), case) < -9e5


def test_a_value_that_the_data_set_ignores_is_no_structure():
    description = {"labels": {"background": 0, "LV": 500, "ignore": 205}}
    assert tree_of(choose_ignored(description)) == {"data": {"ignore": [205]}}
    structures, _ = choose_structures([facts()], description, None)
    assert structures.value == {"LV": [500]}
    assert choose_ignored({}) == choose_ignored({"labels": {"ignore": "x"}}) == []


@pytest.mark.parametrize(
    ("spacing", "aligned", "intensity", "is_lost"),
    [
        ((1.5, 1.5, 10), True, "percentile", True),
        ((1.5, 1.5, 10), False, "percentile", False),
        ((1.5, 1.5, 10), True, "window", False),
        ((1.5, 1.5, 10), True, ["percentile", "window"], False),
        ((1.5, 1.5, 2), True, "percentile", False),
    ],
)
def test_stacks_without_a_direction_are_trained_for_any(spacing, aligned, intensity, is_lost):
    cases = [facts(spacing_mm=np.array(spacing), aligned=True), facts(spacing_mm=np.array(spacing), aligned=aligned)]
    chosen = [(choice.key, choice.value) for choice in choose_orientation(cases, intensity)]
    assert chosen == ([("training.orientation", "any"), ("network.template", "oblique")] if is_lost else [])


def test_structures_of_the_heart_start_from_weights_that_know_them(tmp_path, monkeypatch):
    (start,) = choose_start(["LA", "thrombus"])
    assert (start.key, start.value) == ("training.init_from", str(REPOSITORY / choices.HEARTS))
    assert "know LA in" in start.reason
    assert choose_start(["anterior", "posterior"]) == []
    monkeypatch.setattr(choices, "REPOSITORY", tmp_path)  # an installed package without the clone's weights
    assert choose_start(["LA"]) == []


def test_a_survey_tells_whether_axes_are_the_patients(case, tmp_path):
    assert survey_case(case).aligned
    label = np.zeros((20, 18, 16), np.int16)
    label[5:9, 5:9, 5:9] = 7
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 5, degrees=True).as_matrix()
    assert not survey_case(write_case(tmp_path, "b", label.astype(np.float32), label, affine)).aligned


def test_a_survey_finds_the_slices_wherever_they_lie(tmp_path):
    """Slices nearest to the sagittal plane, whose header has their direction."""
    label = np.zeros((20, 18, 12), np.int16)
    label[4:10, 4:12, 4:7] = 7
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("y", 60, degrees=True).as_matrix() * np.array([1, 1, 5])
    found = survey_case(write_case(tmp_path, "c", label.astype(np.float32), label, affine))
    assert found.spacing_mm == pytest.approx([1, 1, 5])
    assert np.ptp(found.box_mm([7]), axis=0) == pytest.approx([6, 8, 15])
