"""The scripts end to end on coarse phantoms: train, resume, evaluate, and one sentence for bad input."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from faults.project import DISTANCE_NETWORK, NETWORK
from meshes import structures_of
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation
from scripts import call, run
from volumes import write_case

import implicitmeshnet_eval
import implicitmeshnet_train
import pretrain_drn
from implicitmeshnet.config import load_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.dataset import find_cases
from implicitmeshnet.data.nifti import read_grid, read_image, read_labels, write_volume
from implicitmeshnet.data.volume import Grid, network_grid
from implicitmeshnet.evaluation.tables import print_summary
from implicitmeshnet.models.weights import load_checkpoint, load_network, save_snapshot
from implicitmeshnet.phantom.case import create_case
from implicitmeshnet.predict import Predictor, segmentation_on_grid
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.files import read_mesh
from implicitmeshnet.surfaces.labelmap import mesh_to_mask
from implicitmeshnet.surfaces.soundness import euler_characteristic, is_closed
from implicitmeshnet.training.loop import Loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four coarse phantoms in MM-WHS naming, and a config that trains on them in seconds."""
    path = tmp_path_factory.mktemp("scripts")
    for case in range(1, 5):
        image, label, _, affine = create_case(0, case, spacing_mm=5.0)
        write_case(path / "data", f"ct_train_{1000 + case}", image, label, affine)
    config = {
        "data": {"dir": str(path / "data"), "shape": [16, 16, 16], "spacing_mm": 8.0, "validation_cases": 1},
        "network": NETWORK,
        "training": {"run_dir": str(path / "run"), "epochs": 3, "repeats": 1, "validate_every": 1},
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_structure_that_no_validation_case_has_is_named_and_not_scored(folder, tmp_path, capsys):
    shutil.copytree(folder / "data", tmp_path / "data")
    cases = find_cases(tmp_path / "data", labelled=True)
    labels = read_labels(cases[1].label)
    labels.data[labels.data == 600] = 9
    write_volume(cases[1].label, labels.data, labels.grid.affine)
    config = load_config(folder / "config.json", [f"--data.cache_dir={tmp_path / 'cache'}"])
    config.data.structures = {"LV": [500], "spleen": [9]}
    _, validated = implicitmeshnet_train.read_cases(config, cases[1:], cases[:1])
    assert validated == ("LV",)
    assert "warning: no validation case has spleen, so no Dice tells how well that is found" in capsys.readouterr().err


def interrupt_second_epoch(monkeypatch) -> list[int]:
    """Let a training's first attempt at epoch 2 fail; the epochs that it tries from now on."""
    original, epochs = Loop._take_steps, []

    def interrupted(loop, state):
        epochs.append(state.number)
        if epochs == [1, 2]:
            raise KeyboardInterrupt
        original(loop, state)

    monkeypatch.setattr(Loop, "_take_steps", interrupted)
    return epochs


@pytest.fixture(scope="module")
def trained(folder):
    call(implicitmeshnet_train, f"--config={folder / 'config.json'}", "--device=cpu")
    return folder


def test_training_writes_what_evaluation_and_a_person_need(trained):
    names = {path.name for path in (trained / "run").iterdir()}
    assert {"config.json", "best.pt", "last.pt", "preview.png", "overview.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = json.loads((trained / "run/config.json").read_text())
    assert np.shape(config["network"]["template_centres"]) == np.shape(config["network"]["template_radii"]) == (2, 3)


@pytest.mark.slow
def test_the_config_that_training_began_with_can_name_the_snapshot(trained):
    of_the_run = load_config(trained / "run/config.json")
    before = load_config(trained / "config.json")
    templates = [load_network(config, trained / "run/best.pt").decoder.template for config in (of_the_run, before)]
    assert torch.equal(*templates)


@pytest.mark.slow
def test_training_can_start_from_another_networks_weights(trained, capsys):
    arguments = [f"--config={trained / 'config.json'}", "--device=cpu", "--training.epochs=1"]
    new = [f"--training.run_dir={trained / 'started'}", f"--training.init_from={trained / 'run/best.pt'}"]
    call(implicitmeshnet_train, *arguments, *new)
    taken = re.search(
        r"training\.init_from: took (\d+) of (\d+) weights from \S+best\.pt$", capsys.readouterr().out, re.M
    )
    assert taken is not None
    assert taken[1] == taken[2]
    history = [torch.load(trained / run / "last.pt", weights_only=True)["history"][0] for run in ("run", "started")]
    assert history[1]["losses"]["segmentation"] < history[0]["losses"]["segmentation"]
    missing = [f"--training.run_dir={trained / 'other'}", f"--training.init_from={trained / 'none.pt'}"]
    with pytest.raises(InputError, match=r"none\.pt: wanted trained weights, found no such file"):
        call(implicitmeshnet_train, *arguments, *missing)
    assert not (trained / "other").exists()


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_weights(trained, monkeypatch):
    epochs = interrupt_second_epoch(monkeypatch)
    arguments = [f"--config={trained / 'config.json'}", f"--training.run_dir={trained / 'again'}", "--device=cpu"]
    with pytest.raises(KeyboardInterrupt):
        call(implicitmeshnet_train, *arguments)
    call(implicitmeshnet_train, *arguments)
    assert epochs == [1, 2, 2, 3]
    once, twice = (torch.load(trained / run / "last.pt", weights_only=True) for run in ("run", "again"))
    for name, value in once["network"].items():
        assert torch.equal(value, twice["network"][name]), name


def test_a_run_folder_with_another_config_is_refused(trained):
    with pytest.raises(ValueError, match=r"holds a run with training\.learning_rate = 0\.0001, wanted 0\.5"):
        call(implicitmeshnet_train, f"--config={trained / 'config.json'}", "--training.learning_rate=0.5")


def test_a_finished_run_can_be_lengthened(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    call(
        implicitmeshnet_train,
        f"--config={trained / 'config.json'}",
        "--training.epochs=4",
        "--training.validate_every=4",  # may differ, as it changes no weights
        f"--training.run_dir={tmp_path / 'run'}",
        "--device=cpu",
    )
    assert len(load_checkpoint(tmp_path / "run/last.pt")["history"]) == 4
    resumed = load_config(tmp_path / "run/config.json").training
    assert (resumed.epochs, resumed.validate_every) == (4, 4)
    with pytest.raises(ValueError, match=r"holds a run with training\.epochs = 4, wanted 3"):
        call(
            implicitmeshnet_train,
            f"--config={trained / 'config.json'}",
            "--training.epochs=3",
            f"--training.run_dir={tmp_path / 'run'}",
            "--device=cpu",
        )


def test_a_run_folder_without_its_best_or_its_last_checkpoint_is_refused_and_left_alone(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    arguments = [f"--config={trained / 'config.json'}", f"--training.run_dir={tmp_path / 'run'}", "--device=cpu"]
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    state["history"][0]["scores"] = {"LV": 1.0, "LA": 1.0}  # better than the last, whose weights are in last.pt too
    torch.save(state, tmp_path / "run/last.pt")
    (tmp_path / "run/best.pt").rename(tmp_path / "best.pt")
    with pytest.raises(ValueError, match=r"best\.pt: wanted the best epoch's weights beside last\.pt"):
        call(implicitmeshnet_train, *arguments)
    (tmp_path / "best.pt").rename(tmp_path / "run/best.pt")
    (tmp_path / "run/last.pt").write_bytes((tmp_path / "run/best.pt").read_bytes())
    with pytest.raises(ValueError, match=r"last\.pt: wanted a checkpoint of this network's training"):
        call(implicitmeshnet_train, *arguments)
    (tmp_path / "run/last.pt").unlink()
    before = (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(ValueError, match=r"found .*best\.pt without last\.pt"):
        call(implicitmeshnet_train, *arguments)
    assert (tmp_path / "run/config.json").read_bytes() == before


@pytest.fixture(scope="module")
def pretrained(folder):
    """A DeepRepresentationNetwork for the folder's template, pretrained for a moment."""
    config = {
        "network": DISTANCE_NETWORK,
        "training": {
            "run_dir": str(folder / "drn"),
            "epochs": 3,
            "shapes": 8,
            "validation_shapes": 3,
            "validate_every": 1,
        },
    }
    (folder / "drn.json").write_text(json.dumps(config))
    call(pretrain_drn, f"--config={folder / 'drn.json'}", "--device=cpu")
    return folder


def test_pretraining_writes_its_config_weights_and_pictures(pretrained):
    names = {path.name for path in (pretrained / "drn").iterdir()}
    assert {"config.json", "best.pt", "last.pt", "preview.png", "overview.png"} <= names
    history = torch.load(pretrained / "drn/last.pt", weights_only=True)["history"]
    assert len(history) == 3
    assert set(history[-1]["losses"]) == {"total"}
    assert set(history[-1]["scores"]) == {"error_voxels", "sign", "dice"}


@pytest.mark.slow
def test_pretraining_keeps_the_weights_with_the_least_error_near_the_surface(pretrained, monkeypatch):
    errors, kept = iter([0.5, 0.2, 0.3, 0.1]), []
    monkeypatch.setattr(pretrain_drn, "validate", lambda *_: {"error_voxels": next(errors), "sign": 1.0, "dice": 0.9})
    monkeypatch.setattr(pretrain_drn, "save_snapshot", lambda path, drn: (kept.append(1), save_snapshot(path, drn)))
    call(
        pretrain_drn,
        f"--config={pretrained / 'drn.json'}",
        "--device=cpu",
        "--training.epochs=4",
        f"--training.run_dir={pretrained / 'drn_best'}",
    )
    assert len(kept) == 3
    best, last = (
        torch.load(pretrained / "drn_best" / name, weights_only=True)["network"] for name in ("best.pt", "last.pt")
    )
    assert all(torch.equal(value, last[name].half()) for name, value in best.items())


@pytest.mark.slow
def test_an_interrupted_pretraining_resumes_to_the_same_weights(pretrained, monkeypatch):
    epochs = interrupt_second_epoch(monkeypatch)
    arguments = f"--config={pretrained / 'drn.json'}", f"--training.run_dir={pretrained / 'drn_again'}", "--device=cpu"
    with pytest.raises(KeyboardInterrupt):
        call(pretrain_drn, *arguments)
    call(pretrain_drn, *arguments)
    assert epochs == [1, 2, 2, 3]
    states = [torch.load(pretrained / name / "last.pt", weights_only=True)["network"] for name in ("drn", "drn_again")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def deep(folder, run, *more):
    return (
        f"--config={folder / 'config.json'}",
        "--loss.route=deep",
        f"--training.run_dir={folder / run}",
        "--training.epochs=2",
        "--device=cpu",
        *(more or [f"--loss.drn_config={folder / 'drn/config.json'}"]),
    )


@pytest.mark.slow
def test_the_deep_route_trains_both_networks_and_resumes_both(pretrained, monkeypatch):
    call(implicitmeshnet_train, *deep(pretrained, "deep"))
    state = torch.load(pretrained / "deep/last.pt", weights_only=True)
    assert {"network", "optimizer", "drn", "drn_optimizer", "history"} <= set(state)
    assert all(row["losses"]["drn"] > 0 for row in state["history"])
    start = torch.load(pretrained / "drn/best.pt", weights_only=True)["network"]
    assert any(not torch.equal(value, start[name].float()) for name, value in state["drn"].items())

    interrupt_second_epoch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        call(implicitmeshnet_train, *deep(pretrained, "deep_again"))
    call(implicitmeshnet_train, *deep(pretrained, "deep_again"))
    again = torch.load(pretrained / "deep_again/last.pt", weights_only=True)
    for part in ("network", "drn"):
        assert all(torch.equal(value, again[part][name]) for name, value in state[part].items())


def test_a_drn_that_does_not_fit_is_refused_before_anything_is_written(pretrained):
    for name, change, sentence in (
        ("none", None, r"none\.json: cannot be read as a config"),
        ("finer", {"template_subdivisions": 2}, r"template_subdivisions 1, as the meshes have, found 2"),
        ("wider", {"channels": [32, 16]}, r"best\.pt: does not fit the config"),
    ):
        if change:
            tree = json.loads((pretrained / "drn/config.json").read_text())
            tree["network"] |= change
            tree["snapshot"] = str(pretrained / "drn/best.pt")
            (pretrained / f"{name}.json").write_text(json.dumps(tree))
        with pytest.raises(ValueError, match=sentence):
            call(
                implicitmeshnet_train,
                *deep(pretrained, "refused", f"--loss.drn_config={pretrained / name}.json"),
            )
        assert not (pretrained / "refused").exists()


@pytest.fixture(scope="module")
def evaluated(trained):
    call(
        implicitmeshnet_eval,
        f"--implicitmeshnet_config={trained / 'run/config.json'}",
        f"--test_dir_in={trained / 'data'}",
        f"--test_dir_out={trained / 'out'}",
    )
    return trained


def test_evaluation_writes_each_file_on_the_images_own_grid(evaluated):
    for case in range(1001, 1005):
        image = read_grid(evaluated / "data" / f"ct_train_{case}_image.nii.gz")
        stem = f"ct_train_{case}"
        for kind in ("mesh_labelmap", "unet_segmentation"):
            result = read_labels(evaluated / "out" / f"{stem}_{kind}.nii.gz")
            assert result.grid.shape == image.shape
            np.testing.assert_allclose(result.grid.affine, image.affine, atol=1e-5)
            assert set(np.unique(result.data)) <= {0, 500, 420}
        assert (evaluated / "out" / f"{stem}_preview.png").stat().st_size > 10_000


def test_meshes_are_closed_spheres_inside_the_image_in_world_millimetres(evaluated):
    image = read_grid(evaluated / "data/ct_train_1001_image.nii.gz")
    for structure in ("LV", "LA"):
        vertices, faces = read_mesh(evaluated / "out" / f"ct_train_1001_{structure}_mesh.ply")
        assert is_closed(faces)
        assert euler_characteristic(faces) == 2
        voxels = transform(np.linalg.inv(image.affine), vertices)
        assert (voxels > 0).all()
        assert (voxels < np.array(image.shape) - 1).all()


def test_metrics_have_a_row_per_case_and_structure_and_agree_with_the_label_maps(evaluated):
    rows = list(csv.DictReader((evaluated / "out/metrics.csv").open()))
    assert [(row["case"], row["structure"]) for row in rows] == [
        (f"ct_train_{case}", name) for case in range(1001, 1005) for name in ("LV", "LA")
    ]
    prediction = read_labels(evaluated / "out/ct_train_1001_mesh_labelmap.nii.gz").data == 500
    truth = read_labels(evaluated / "data/ct_train_1001_label.nii.gz").data == 500
    dice = 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum())
    assert float(rows[0]["dice"]) == pytest.approx(dice, abs=1e-5)
    assert float(rows[0]["label_volume_ml"]) == pytest.approx(truth.sum() * 0.125, rel=1e-3)


def test_validation_measures_what_evaluation_measures(evaluated):
    """The region by the coarse pass or the centre, the repair, the image's own grid."""
    predictor = Predictor.from_config(evaluated / "run/config.json")
    cases = find_cases(evaluated / "data", labelled=True)
    rows = list(csv.DictReader((evaluated / "out/metrics.csv").open()))
    for name, value in implicitmeshnet_train.validate(predictor, cases).items():
        wanted = np.mean([float(row["dice"]) for row in rows if row["structure"] == name])
        assert value == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_a_validation_in_which_nothing_is_found_counts_as_zero(whole_heart):
    predictor = Predictor.from_config(whole_heart / "config.json")
    with torch.no_grad():
        predictor.network.localiser.unet.head.bias.copy_(torch.tensor([1e3, -1e3]))
    cases = find_cases(whole_heart.parent / "data", labelled=True)[:1]
    assert implicitmeshnet_train.validate(predictor, cases) == {"LV": 0, "Myo": 0, "Rest": 0}


def test_the_run_keeps_what_its_intensities_were(evaluated, tmp_path, capsys):
    """An image that is stored with 1024 more than HU is written, with a warning on the screen and in the table."""
    statistics = load_config(evaluated / "run/config.json").data.intensity_statistics
    assert statistics.cases == 3
    assert np.shape(statistics.covariance) == (9, 9)
    image = read_image(evaluated / "data/ct_train_1001_image.nii.gz")
    write_volume(tmp_path / "in/a_image.nii.gz", image.data + 1024, image.grid.affine)
    call(
        implicitmeshnet_eval,
        f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
        f"--test_dir_in={tmp_path / 'in'}",
        f"--test_dir_out={tmp_path / 'out'}",
    )
    sentence = "a_image.nii.gz: the image is unlike the training's"
    assert sentence in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert all(sentence in row["warnings"] for row in rows)
    assert all(row["dice"] == row["label_volume_ml"] == "" and float(row["mesh_volume_ml"]) > 0 for row in rows)


def test_of_the_files_there_those_alone_go_that_an_earlier_run_wrote_of_the_cases(evaluated, tmp_path):
    """Meshes in another format go; a user's own stay, whatever they are called, and another case's."""
    source = evaluated / "data/ct_train_1001_image.nii.gz"
    (tmp_path / "in").mkdir()
    shutil.copy(source, tmp_path / "in/a_image.nii.gz")
    out = tmp_path / "out"
    out.mkdir()
    kept = ["a_LV_corrected_mesh.ply", "a_RV_mesh.ply", "a_b_LV_mesh.ply", "ab_mesh.ply", "notes.txt"]
    for name in kept:
        (out / name).touch()
    (out / "metrics.csv").write_text("case,structure\nold,LV\n")
    arguments = [
        f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
        f"--test_dir_in={tmp_path / 'in'}",
        f"--test_dir_out={out}",
    ]
    call(implicitmeshnet_eval, *arguments, "--mesh_format=vtp")
    stale = {path.name for path in out.glob("a_*.vtp")}
    assert stale
    call(implicitmeshnet_eval, *arguments)
    found = {path.name for path in out.iterdir()}
    assert set(kept) <= found
    assert not stale & found
    assert {row["case"] for row in csv.DictReader((out / "metrics.csv").open())} == {"a"}


@pytest.mark.parametrize(
    ("options", "cases", "said"),
    [([], ["s"], "took imagesTs; --split=Tr takes imagesTr"), (["--split=Tr"], ["r"], ""), (["--split=Ts"], ["s"], "")],
)
def test_a_data_sets_root_means_its_test_images(evaluated, tmp_path, capsys, options, cases, said):
    for folder, name in (("imagesTr", "r_0000"), ("imagesTs", "s_0000"), ("labelsTs", "s")):
        kind = "label" if "label" in folder else "image"
        (tmp_path / "in" / folder).mkdir(parents=True)
        shutil.copy(evaluated / f"data/ct_train_1001_{kind}.nii.gz", tmp_path / f"in/{folder}/{name}.nii.gz")
    call(
        implicitmeshnet_eval,
        f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
        *options,
        f"--test_dir_in={tmp_path / 'in'}",
        f"--test_dir_out={tmp_path / 'out'}",
    )
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert [row["case"] for row in rows[::2]] == cases
    assert bool(rows[0]["dice"]) == (cases == ["s"])
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split=Ts"], "--split: wanted a folder imagesTs in --test_dir_in, found none"),
        (["--split=Tr", "--validation_split"], "--split: wanted "),
    ],
)
def test_a_split_that_is_not_there_is_one_sentence(evaluated, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(
            implicitmeshnet_eval,
            f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
            *options,
            f"--test_dir_in={evaluated / 'data'}",
            f"--test_dir_out={tmp_path / 'out'}",
        )


def test_a_fault_of_our_own_ends_after_the_table_is_written(evaluated, tmp_path, monkeypatch, capsys):
    def faulty(self, view):
        if "1002" in view.name:
            raise ZeroDivisionError("of our own")
        return original(self, view)

    original = Predictor.surfaces_of
    monkeypatch.setattr(Predictor, "surfaces_of", faulty)
    with pytest.raises(SystemExit) as ended:
        call(
            implicitmeshnet_eval,
            f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
            f"--test_dir_in={evaluated / 'data'}",
            f"--test_dir_out={tmp_path / 'out'}",
        )
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "ct_train_1002_image.nii.gz: Traceback" in printed.err
    assert "ZeroDivisionError: of our own" in printed.err
    assert "3 of 4 cases written" in printed.out
    rows = csv.DictReader((tmp_path / "out/metrics.csv").open())
    assert {row["case"] for row in rows} == {"ct_train_1001", "ct_train_1003", "ct_train_1004"}


def test_a_box_that_leaves_most_of_a_structure_out_is_refused_before_training(folder, tmp_path):
    with pytest.raises(ValueError, match=r"data\.shape: wanted a box that holds L[VA], found \d+% of its label"):
        call(
            implicitmeshnet_train,
            f"--config={folder / 'config.json'}",
            "--data.spacing_mm=0.5",
            f"--training.run_dir={tmp_path / 'run'}",
            "--device=cpu",
        )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["cache"]


def test_a_box_that_cuts_a_structure_is_named_before_training(folder, tmp_path, capsys):
    call(
        implicitmeshnet_train,
        f"--config={folder / 'config.json'}",
        "--data.spacing_mm=6",
        f"--training.run_dir={tmp_path / 'run'}",
        "--device=cpu",
        "--training.epochs=1",
    )
    assert re.search(r"L[VA]: \d+% of the label outside the box in \d of 3 cases", capsys.readouterr().out)


def test_the_validation_split_alone_is_the_case_that_training_held_out(evaluated, capsys):
    call(
        implicitmeshnet_eval,
        f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
        f"--test_dir_in={evaluated / 'data'}",
        f"--test_dir_out={evaluated / 'held_out'}",
        "--validation_split",
    )
    assert "1 of 1 cases written" in capsys.readouterr().out


def test_several_configs_are_averaged_over_the_cases_that_all_hold_out(evaluated, tmp_path, monkeypatch, capsys):
    configs = []
    for fold in (0, 1):
        tree = json.loads((evaluated / "run/config.json").read_text())
        tree["snapshot"] = str(evaluated / "run/best.pt")
        configs.append(tmp_path / f"{fold}.json")
        configs[-1].write_text(json.dumps(tree))
    arguments = ["--implicitmeshnet_config", *configs, f"--test_dir_in={evaluated / 'data'}", "--device=cpu"]
    arguments += [f"--test_dir_out={tmp_path / 'out'}", "--validation_split"]
    call(implicitmeshnet_eval, *arguments)
    assert "1 of 1 cases written" in capsys.readouterr().out
    (case,) = {path.name for path in (tmp_path / "out").glob("*_LV_mesh.ply")}
    ours, _ = read_mesh(tmp_path / "out" / case)
    alone, _ = read_mesh(evaluated / "out" / case)
    np.testing.assert_allclose(ours, alone, atol=1e-3)
    for fold, path in enumerate(configs):
        tree["data"] |= {"fold": fold, "folds": 2}
        path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="--validation_split: wanted cases that every config holds out, found none"):
        call(implicitmeshnet_eval, *arguments)


def test_a_training_that_ignores_a_structure_learns_and_leaves_it_out_of_the_table(folder, tmp_path, monkeypatch):
    call(
        implicitmeshnet_train,
        f"--config={folder / 'config.json'}",
        f"--training.run_dir={tmp_path / 'run'}",
        '--data.structures={"LV": [500]}',
        "--data.ignore=[205]",  # the wall around it: the mesh may end anywhere in it
        "--data.region=found",
        "--training.epochs=1",
        "--device=cpu",
    )
    assert load_config(tmp_path / "run/config.json").data.ignore == [205]
    for name, override in (("ignoring", [205]), ("counting", [])):
        tree = json.loads((tmp_path / "run/config.json").read_text())
        tree["data"] |= {"ignore": override, "region": "centre"}
        (tmp_path / "run" / f"{name}.json").write_text(json.dumps(tree))
        call(
            implicitmeshnet_eval,
            f"--implicitmeshnet_config={tmp_path / 'run' / name}.json",
            f"--test_dir_in={folder / 'data'}",
            f"--test_dir_out={tmp_path / name}",
            "--validation_split",
        )
    (ignoring,), (counting,) = (
        list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("ignoring", "counting")
    )
    assert float(ignoring["dice"]) > float(counting["dice"])
    assert ignoring["label_volume_ml"] == counting["label_volume_ml"]


def test_images_of_two_channels_are_trained_on_and_evaluated(folder, tmp_path, monkeypatch):
    data = tmp_path / "data"
    for case in find_cases(folder / "data", labelled=True):
        image = read_image(case.image)
        for number, values in enumerate((image.data, 100 - image.data)):
            write_volume(data / f"imagesTr/{case.name}_{number:04}.nii.gz", values, image.grid.affine)
        (data / "labelsTr").mkdir(exist_ok=True)
        shutil.copy(case.label, data / f"labelsTr/{case.name}.nii.gz")
    call(
        implicitmeshnet_train,
        f"--config={folder / 'config.json'}",
        f"--data.dir={data}",
        f"--training.run_dir={tmp_path / 'run'}",
        '--data.intensity=["window", "percentile"]',
        "--data.region=found",
        "--training.epochs=1",
        "--device=cpu",
    )
    config = load_config(tmp_path / "run/config.json")
    assert [statistics.cases for statistics in config.data.channel_statistics] == [3, 3]
    shapes = {name: value.shape for name, value in load_network(config, tmp_path / "run/best.pt").state_dict().items()}
    assert shapes["unet.encoder.0.body.0.weight"][1] == shapes["localiser.unet.encoder.0.body.0.weight"][1] == 2
    tree = json.loads((tmp_path / "run/config.json").read_text())
    tree["data"]["region"] = "centre"  # an epoch finds no hearts
    (tmp_path / "run/centre.json").write_text(json.dumps(tree))
    arguments = [f"--implicitmeshnet_config={tmp_path / 'run/centre.json'}", f"--test_dir_in={data}"]
    arguments += [f"--test_dir_out={tmp_path / 'out'}", "--validation_split", "--device=cpu"]
    call(implicitmeshnet_eval, *arguments)
    rows = list(csv.DictReader((tmp_path / "out/metrics.csv").open()))
    assert [row["structure"] for row in rows] == ["LV", "LA"]
    missing = data / f"imagesTr/{rows[0]['case']}_0001.nii.gz"
    missing.unlink()
    with pytest.raises(ValueError, match=f"^{missing}: wanted this one of "):
        call(implicitmeshnet_eval, *arguments)


def test_the_segmentation_is_the_largest_of_the_interpolated_probabilities():
    """Against plain interpolation at every voxel, for a permuted, flipped, oblique image partly outside the box."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [5, -4, 8], degrees=True).as_matrix() @ np.array(
        [[0, 0, -1.6], [1.1, 0, 0], [0, 1.1, 0]]
    )
    grid = Grid((45, 50, 30), affine)
    box = network_grid(grid, (12, 16, 14), 2.5, transform(affine, np.array([10.0, 25, 15])))
    noise = np.random.default_rng(0).normal(size=(4, 12, 16, 14))
    logits = torch.from_numpy(np.stack([gaussian_filter(channel, 2) for channel in noise])) * 20
    segmentation = segmentation_on_grid(logits, box, structures_of(7, 5, 9), grid)
    voxels = transform(np.linalg.inv(box.affine) @ affine, np.argwhere(np.ones(grid.shape)).astype(float))
    others = [
        map_coordinates(channel, voxels.T, order=1, mode="grid-constant") for channel in logits.softmax(0)[1:].numpy()
    ]
    wanted = np.array([0, 7, 5, 9])[np.argmax([1 - np.sum(others, 0), *others], axis=0)].reshape(grid.shape)
    assert set(np.unique(wanted)) == {0, 5, 7, 9}
    assert np.mean(segmentation != wanted) < 1e-4  # rounding decides between equal probabilities


@pytest.fixture(scope="module")
def whole_heart(folder):
    """A network of a wall, the cavity in it and all else, whose region a coarse pass finds, trained and evaluated."""
    run = folder / "whole"
    call(
        implicitmeshnet_train,
        f"--config={folder / 'config.json'}",
        f"--training.run_dir={run}",
        '--data.structures={"LV": [500], "Myo": [205], "Rest": [820, 420, 550, 600, 850]}',
        '--data.encloses={"Myo": ["LV"]}',
        "--data.region=found",
        "--network.localiser_channels=[16, 32, 64]",
        "--training.epochs=8",
        "--training.repeats=6",
        "--training.learning_rate=0.005",
        "--training.validate_every=8",
        "--loss.laplacian_end=1",
        "--loss.laplacian_start=10",
    )
    call(
        implicitmeshnet_eval,
        f"--implicitmeshnet_config={run / 'config.json'}",
        f"--test_dir_in={folder / 'data'}",
        f"--test_dir_out={run / 'out'}",
    )
    return run


@pytest.mark.slow
def test_a_mesh_around_another_leaves_it_its_voxels(whole_heart):
    labelmap = read_labels(whole_heart / "out/ct_train_1001_mesh_labelmap.nii.gz")
    masks = {
        name: mesh_to_mask(*read_mesh(whole_heart / f"out/ct_train_1001_{name}_mesh.ply"), labelmap.grid)
        for name in ("LV", "Myo", "Rest")
    }
    assert not (masks["LV"] & (labelmap.data == 205)).any()
    assert (labelmap.data[masks["Myo"] & ~masks["LV"] & ~masks["Rest"]] == 205).all()
    assert (masks["LV"] & masks["Myo"]).sum() > 0.8 * masks["LV"].sum()
    rows = {row["structure"]: row for row in csv.DictReader((whole_heart / "out/metrics.csv").open())}
    assert float(rows["Myo"]["dice"]) > 0.3


@pytest.mark.slow
def test_the_region_follows_the_heart(whole_heart, tmp_path):
    """The same image in a volume that is 100 mm longer: the same meshes, where a crop at the centre would miss them."""
    image = read_image(whole_heart.parent / "data/ct_train_1002_image.nii.gz")
    longer = np.pad(image.data, ((20, 0), (0, 0), (0, 0)), constant_values=-1000)
    affine = image.grid.affine.copy()
    affine[:3, 3] -= 20 * affine[:3, 0]
    write_volume(tmp_path / "in/ct_train_1002_image.nii.gz", longer, affine)
    call(
        implicitmeshnet_eval,
        f"--implicitmeshnet_config={whole_heart / 'config.json'}",
        f"--test_dir_in={tmp_path / 'in'}",
        f"--test_dir_out={tmp_path / 'out'}",
    )
    for name in ("LV", "Myo", "Rest"):
        before, after = (
            read_mesh(path / f"out/ct_train_1002_{name}_mesh.ply")[0].mean(0) for path in (whole_heart, tmp_path)
        )
        assert np.linalg.norm(after - before) < 15


def test_a_bad_case_is_named_and_the_others_go_on(evaluated, tmp_path):
    for name in ("ct_train_1001_image", "ct_train_1002_image"):
        data = (evaluated / "data" / f"{name}.nii.gz").read_bytes()
        (tmp_path / f"{name}.nii.gz").write_bytes(data[: len(data) // 2] if "1001" in name else data)
    with pytest.raises(ValueError, match=r"1 of 2 cases failed: .*ct_train_1001_image\.nii\.gz"):
        call(
            implicitmeshnet_eval,
            f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
            f"--test_dir_in={tmp_path}",
            f"--test_dir_out={tmp_path / 'out'}",
        )
    assert (tmp_path / "out/ct_train_1002_LV_mesh.ply").exists()
    assert not list((tmp_path / "out").glob("*1001*"))


def test_results_may_not_go_where_the_images_are(evaluated):
    with pytest.raises(ValueError, match="--test_dir_out: wanted another folder than --test_dir_in"):
        call(
            implicitmeshnet_eval,
            f"--implicitmeshnet_config={evaluated / 'run/config.json'}",
            f"--test_dir_in={evaluated / 'data'}",
            f"--test_dir_out={evaluated / 'data'}",
        )


def test_the_summary_leaves_out_cases_in_which_a_structure_is_not_labelled(capsys):
    row = {"structure": "LV", "assd_mm": 1.0, "hd95_mm": 2.0, "unet_dice": 0.5, "faces": 9}
    row |= {
        "self_intersecting_faces": 0,
        "faces_crossing_others": 0,
        "move_mean_mm": 0.1,
        "agreement": 0.9,
        "case": "a",
        "warnings": "",
    }
    rows = [row | {"dice": 0.8, "label_volume_ml": 1.0}, row | {"dice": 0.0, "label_volume_ml": 0.0}]
    print_summary(rows, ["LV"])
    assert "0.800 +- 0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["implicitmeshnet_eval.py", "--implicitmeshnet_config=none.json", "--test_dir_in=a", "--test_dir_out=b"],
            "none.json: cannot be read as a config",
        ),
        (
            ["implicitmeshnet_eval.py", "--implicitmeshnet_config={run}", "--test_dir_in=none", "--test_dir_out=b"],
            "none: wanted a folder",
        ),
        (
            [
                "implicitmeshnet_eval.py",
                "--implicitmeshnet_config={run}",
                "--test_dir_in=.",
                "--test_dir_out=b",
                "--device=tpu",
            ],
            "--device: wanted auto or one of",
        ),
        (["implicitmeshnet_train.py", "--config={config}", "--training.epochs=none"], "training.epochs: wanted int"),
        (
            [
                "implicitmeshnet_train.py",
                "--config={config}",
                '--data.structures={{"LV": [7]}}',
                "--training.run_dir=other",
            ],
            "_label.nii.gz",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_status_2(trained, tmp_path, monkeypatch, capsys, arguments, sentence):
    script, *options = arguments
    names = {"run": trained / "run/config.json", "config": trained / "config.json"}
    monkeypatch.chdir(tmp_path)
    status = run(script, *(option.format(**names) for option in options))
    said = capsys.readouterr().err
    last = said.strip().splitlines()[-1]
    assert status == 2
    assert last.startswith(f"{script}: ")
    assert sentence in last
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())
