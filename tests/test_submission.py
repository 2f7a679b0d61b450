"""The MM-WHS submission: merged label maps, 1 mm copies, and scores with and without wine."""

import csv
import gzip
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scripts import call
from volumes import block_mask, grid_around, spoil, write_case

import implicitmeshnet_eval
import mmwhs_create_submission
from implicitmeshnet.config import REPOSITORY, load_config, save_config
from implicitmeshnet.coordinates import transform
from implicitmeshnet.data.nifti import read_grid, read_labels, write_volume
from implicitmeshnet.data.volume import Grid, Volume, resample_nearest, resample_nearest_onto
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.models.weights import save_snapshot
from implicitmeshnet.phantom.case import create_case
from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.metrics import dice

CASES = ["ct_test_2001", "ct_test_2018", "mr_test_2018"]
KEY = 0x2A55  # of stand_in_scorer.c
AFFINE = np.array([[0, -1.5, 0, 30], [0.8, 0, 0, -12], [0, 0, 2.0, 5], [0, 0, 0, 1.0]])  # axes permuted, one flipped
SHAPE = (30, 24, 16)
WINE = f"""#!{sys.executable}
# A wine that runs one program: the stand-in scorer compiled for this machine, on the paths behind drive Z.
import os, sys
program, *arguments = sys.argv[1:]
assert program == "zxhCardWhsEvaluate.exe" and os.path.exists(program), "not in the scorer's folder"
with open(os.environ["CALLS"], "a") as file:
    file.write(" ".join(arguments[4:]) + "\\n")
if os.environ.get("FAILS") == arguments[5] + arguments[6]:
    sys.exit("the scorer fell over")
if os.environ.get("NONSENSE") == arguments[5] + arguments[6]:
    open(arguments[4][2:].replace("\\\\", "/"), "w").write("nonsense\\n")
    sys.exit(0)
arguments = [text[2:].replace("\\\\", "/") if text.startswith("Z:") else text for text in arguments]
os.execv(os.environ["SCORER"], ["scorer", *arguments])
"""


def box(low, high, value):
    return np.where(block_mask(SHAPE, low, high), value, 0).astype(np.int16)


@pytest.fixture
def inputs(tmp_path):
    """Label maps of LV and LA that overlap by two layers, in two folders."""
    for number, case in enumerate(CASES):
        write_volume(tmp_path / f"lv/{case}_mesh_labelmap.nii.gz", box((4, 4, 2), (20, 20, 10 + number), 500), AFFINE)
        write_volume(tmp_path / f"la/{case}_mesh_labelmap.nii.gz", box((6, 6, 8), (18, 18, 15), 420), AFFINE)
    return tmp_path


def submit(*arguments):
    call(mmwhs_create_submission, *arguments)


def both(inputs):
    return [f"--input_dir_lv={inputs / 'lv'}", f"--input_dir_la={inputs / 'la'}", inputs / "out"]


def rows(path):
    return list(csv.DictReader(path.open()))


def test_two_label_maps_become_one_and_the_deeper_claim_wins(inputs):
    submit(*both(inputs))
    assert sorted(path.name for path in (inputs / "out").iterdir()) == sorted(
        f"{case}_label{kind}.nii.gz" for case in CASES for kind in ("", "_1mm")
    )
    image = nib.load(inputs / "out/ct_test_2001_label.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    label = np.asarray(image.dataobj)
    assert set(np.unique(label)) == {0, 420, 500}
    assert (label[10, 10] == [0, 0, *[500] * 7, *[420] * 6, 0]).all()  # voxel 8 is as deep in both: the first has it


@pytest.mark.slow
def test_the_papers_two_evaluations_and_its_submission_run_one_after_the_other(tmp_path):
    """The commands of the README; untrained weights leave the template, a ball of half the box's side across."""
    image, labels, _, affine = create_case(0, 991, spacing_mm=4.0)
    write_case(tmp_path / "test", "ct_test_2001", image, labels, affine)
    for stem, out in (("2025-03-31_13-45-41", "test_out_lv"), ("2025-03-30_10-03-29", "test_out_la")):
        config = load_config(REPOSITORY / f"configs_implicitmeshnet/{stem}.json")
        config.snapshot = str(tmp_path / f"{stem}.pt")
        save_snapshot(config.snapshot, build_network(config))
        save_config(config, tmp_path / f"{stem}.json")
        call(
            implicitmeshnet_eval,
            f"--implicitmeshnet_config={tmp_path / stem}.json",
            f"--test_dir_in={tmp_path / 'test'}",
            f"--test_dir_out={tmp_path / out}",
            "--device=cpu",
        )
    submit(
        f"--input_dir_lv={tmp_path / 'test_out_lv'}",
        f"--input_dir_la={tmp_path / 'test_out_la'}",
        tmp_path / "test_out",
    )
    label = read_labels(tmp_path / "test_out/ct_test_2001_label_1mm.nii.gz").data
    ball_mm3 = 4 / 3 * np.pi * (0.5 * 127 / 2 * 1.3) ** 3
    assert np.count_nonzero(label == 500) == pytest.approx(ball_mm3, rel=0.02)
    assert not (label == 420).any()  # the same ball: all of it went to the first


def test_the_copy_at_1_mm_covers_the_same_field_by_nearest_neighbour(inputs):
    submit(*both(inputs))
    coarse, fine = (read_labels(inputs / f"out/ct_test_2001_label{kind}.nii.gz") for kind in ("", "_1mm"))
    assert fine.data.shape == (24, 36, 32)  # 30 x 0.8, 24 x 1.5 and 16 x 2 mm
    np.testing.assert_allclose(fine.grid.spacing_mm, 1, atol=1e-6)
    for corner in (-0.5, 0.5):
        ends = [
            volume.grid.affine[:3, :3] @ (np.sign(corner) * np.array(volume.data.shape) / 2)
            + volume.grid.affine[:3, :3] @ ((np.array(volume.data.shape) - 1) / 2)
            + volume.grid.affine[:3, 3]
            for volume in (coarse, fine)
        ]
        np.testing.assert_allclose(*ends, atol=1e-4)
    voxels = np.argwhere(np.ones(fine.data.shape, bool))
    world = voxels @ fine.grid.affine[:3, :3].T + fine.grid.affine[:3, 3]
    source = (world - AFFINE[:3, 3]) @ np.linalg.inv(AFFINE[:3, :3]).T
    clear = (np.abs(source - np.floor(source) - 0.5) > 1e-3).all(1)  # half-way voxels may go either way
    nearest = source[clear].round().astype(int)
    assert (coarse.data[tuple(nearest.T)] == fine.data[tuple(voxels[clear].T)]).all()


def in_itk(volume: Volume):
    """The same volume as SimpleITK has it: axes reversed in its array, world in LPS."""
    affine = np.diag([-1, -1, 1, 1]) @ volume.grid.affine
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(volume.grid.spacing_mm.tolist())
    image.SetDirection((affine[:3, :3] / volume.grid.spacing_mm).ravel().tolist())
    return image


@st.composite
def grids(draw):
    """Grids of a few voxels, at any angle, flipped or not, whose middles lie within 12 mm of the world's."""
    shape = tuple(draw(st.tuples(*[st.integers(2, 14)] * 3)))
    spacing_mm = draw(st.tuples(*[st.floats(0.4, 4)] * 3))
    turn = Rotation.random(random_state=draw(st.integers(0, 2**31))).as_matrix()
    directions = turn * draw(st.sampled_from([-1, 1])) * spacing_mm
    return grid_around(draw(st.tuples(*[st.floats(-12, 12)] * 3)), shape, directions)


@settings(max_examples=100, deadline=None)
@given(grids(), grids(), st.integers(0, 2**31))
def test_onto_any_grid_by_nearest_neighbour_as_itk_does_it(source, target, seed):
    volume = Volume(np.random.default_rng(seed).integers(1, 900, source.shape, np.int16), source)
    found = resample_nearest_onto(volume, target)
    like = in_itk(Volume(np.zeros(target.shape, np.int16), target))
    wanted = SimpleITK.Resample(in_itk(volume), like, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
    wanted = SimpleITK.GetArrayFromImage(wanted).T
    assert found.data.dtype == np.int16
    assert found.grid is target
    differing = np.argwhere(found.data != wanted)  # rounding decides only half-way between two voxels
    position = transform(np.linalg.inv(source.affine) @ target.affine, differing.astype(float))
    assert (np.abs(position - np.floor(position) - 0.5).min(1, initial=1) < 1e-5).all()


def test_onto_a_grid_of_the_same_voxels_in_another_order():
    volume = Volume(np.arange(1, 61, dtype=np.int16).reshape(3, 4, 5), Grid((3, 4, 5), np.diag([0.7, 0.7, 2, 1.0])))
    order = np.array([[0, 0, -1, 2], [1, 0, 0, 0], [0, -1, 0, 4], [0, 0, 0, 1.0]])  # (i, j, k) is (2 - k, i, 4 - j)
    found = resample_nearest_onto(volume, Grid((4, 5, 3), volume.grid.affine @ order))
    assert (found.data == volume.data.transpose(1, 2, 0)[:, ::-1, ::-1]).all()


@pytest.fixture
def challenge(inputs, monkeypatch):
    """The challenge's folder with a ground truth for every case, and a stand-in wine on the PATH."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    scorer = inputs / "stand_in"
    source = Path(__file__).with_name("stand_in_scorer.c")
    built = compiler and subprocess.run([compiler, "-O1", source, "-o", scorer, "-lz"], check=False).returncode == 0
    if not built:
        pytest.skip("the stand-in scorer needs a C compiler and zlib's headers (Debian: apt install gcc zlib1g-dev)")
    wine = inputs / "bin/wine"
    wine.parent.mkdir()
    wine.write_text(WINE)
    wine.chmod(wine.stat().st_mode | stat.S_IXUSR)
    (inputs / "challenge").mkdir()
    (inputs / "challenge/zxhCardWhsEvaluate.exe").touch()
    monkeypatch.setenv("PATH", f"{wine.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SCORER", str(scorer))
    monkeypatch.setenv("CALLS", str(inputs / "calls"))
    return encrypted_truths(inputs)


def encrypted_truths(inputs):
    """Ground truths at 1 mm, LV and LA apart, under the stand-in's cipher."""
    truth = np.zeros((24, 36, 32), np.int16)
    truth[3:16, 6:30, 4:18], truth[5:14, 9:27, 18:30] = 500, 420
    affine = resample_nearest(Volume(np.zeros(SHAPE, np.int16), Grid(SHAPE, AFFINE)), 1).grid.affine
    for case in CASES:
        write_volume(inputs / f"challenge/nii/{case}_label_encrypt_1mm.nii.gz", truth ^ KEY, affine)
    return truth


def calls(inputs):
    return (inputs / "calls").read_text().splitlines() if (inputs / "calls").exists() else []


def check_scores(inputs, truth):
    found = rows(inputs / "out/scores_wine.csv")
    wanted = [(case, name) for case in CASES for name in ("LV", "LA")]
    assert [(row["case"], row["structure"]) for row in found] == wanted
    for row in found:
        label = read_labels(inputs / f"out/{row['case']}_label_1mm.nii.gz").data
        value = {"LV": 500, "LA": 420}[row["structure"]]
        assert float(row["dice"]) == pytest.approx(dice(label == value, truth == value), abs=1e-5)
    summary = {row["structure"]: row for row in rows(inputs / "out/summary_wine.csv")}
    assert list(summary) == ["LV", "LA"]
    lv = [float(row["dice"]) for row in found if row["structure"] == "LV"]
    assert float(summary["LV"]["dice_mean"]) == pytest.approx(np.mean(lv), abs=1e-5)
    assert float(summary["LV"]["dice_std"]) == pytest.approx(np.std(lv), abs=1e-5)


def test_the_scorer_is_called_once_a_case_and_its_rows_are_read(inputs, challenge, capsys):
    submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    assert [" ".join(line.split()[1:]) for line in calls(inputs)] == [
        "ct 2001 --decodeseg2",
        "ct 2018 --decodeseg2",
        "mr 2018 --decodeseg2",
    ]
    check_scores(inputs, challenge)
    assert "LV" in capsys.readouterr().out


def test_a_case_is_scored_again_only_where_it_changed_or_when_asked(inputs, challenge):
    arguments = [*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}"]
    submit(*arguments)
    submit(*arguments)
    assert len(calls(inputs)) == 3
    write_volume(inputs / "lv/ct_test_2018_mesh_labelmap.nii.gz", box((4, 4, 2), (16, 20, 10), 500), AFFINE)
    submit(*arguments)
    assert len(calls(inputs)) == 4
    check_scores(inputs, challenge)
    submit(*arguments, "--rescore")
    assert len(calls(inputs)) == 7


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("FAILS", "ct_test_2018: wanted one row from .*exit status 1; it said: the scorer fell over"),
        ("NONSENSE", "ct_test_2018: wanted 8 Dice values and the case's name .* found 'nonsense'"),
    ],
)
def test_a_failed_case_is_named_and_the_others_go_on(inputs, challenge, monkeypatch, kind, sentence):
    monkeypatch.setenv(kind, "ct2018")
    with pytest.raises(InputError, match=f"1 of 3 cases failed: {sentence}"):
        submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    assert {row["case"] for row in rows(inputs / "out/scores_wine.csv")} == {"ct_test_2001", "mr_test_2018"}
    monkeypatch.delenv(kind)
    submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    assert len(calls(inputs)) == 4
    check_scores(inputs, challenge)


def test_no_score_is_lost_and_none_goes_stale(inputs, challenge, monkeypatch):
    arguments = [*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}"]
    submit(*arguments)
    table = inputs / "out/scores_wine.csv"
    before = table.read_text()
    monkeypatch.setenv("FAILS", "ct2018")
    with pytest.raises(InputError):
        submit(*arguments, "--rescore")
    assert table.read_text() == before  # nothing changed, so the failed case's old score stands
    write_volume(inputs / "lv/ct_test_2018_mesh_labelmap.nii.gz", box((4, 4, 2), (16, 20, 10), 500), AFFINE)
    with pytest.raises(InputError):
        submit(*arguments)
    assert {row["case"] for row in rows(table)} == {"ct_test_2001", "mr_test_2018"}
    monkeypatch.delenv("FAILS")
    table.write_text("".join(before.splitlines(True)[:-1]))  # one structure of the last case is gone
    submit(*arguments)
    check_scores(inputs, challenge)
    table.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=r"scores_wine\.csv: wanted a table that this script wrote"):
        submit(*arguments)
    assert table.read_bytes() == b"\xff\n"


@pytest.mark.parametrize(
    "row",
    [
        "0.1\t0.2\t0.3\t0.4\t0.5\t0.6\t0.7\t0.8\t0.9\tct2018\t--decodeseg2",
        "0.1\t0.2\t0.3\t0.4\t0.5\t0.6\t0.7\t0.8\t\tct20189\t--decodeseg2",
        "0.1\t0.2\t0.3\t0.4\t0.5\t0.6\t0.7\t1.8\t\tct2018\t--decodeseg2",
        "0.1\t0.2\t0.3\t0.4\t0.5\t0.6\t0.7\tnan\t\tct2018\t--decodeseg2",
        "0.1\t0.2\t0_3\t0.4\t0.5\t0.6\t0.7\t0.8\t\tct2018\t--decodeseg2",
    ],
)
def test_a_row_that_is_not_this_cases_is_refused(row):
    with pytest.raises(InputError, match="wanted 8 Dice values and the case's name"):
        mmwhs_create_submission.parse_row(row, "ct_test_2018", ["LV", "LA"])


def test_a_row_is_read_by_its_columns():
    row = "0.1\t0.2\t0.3\t0.4\t0.5\t0.6\t0.7\t8e-1\t\tct2018\t--decodeseg2\r"
    assert mmwhs_create_submission.parse_row(row, "ct_test_2018", ["LV", "LA"]) == [
        {"structure": "LV", "dice": 0.1},
        {"structure": "LA", "dice": 0.4},
    ]
    whole = mmwhs_create_submission.parse_row(row, "ct_test_2018", list(mmwhs_create_submission.VALUES))
    assert {entry["structure"]: entry["dice"] for entry in whole}["AO"] == 0.6
    assert whole[-1] == {"structure": "whole heart", "dice": 0.8}


def test_nobodys_labels_are_written_over(inputs):
    for case in CASES:
        write_volume(inputs / f"truth/{case}_label.nii.gz", box((4, 4, 2), (20, 20, 9), 500), AFFINE)
    before = (inputs / "truth/ct_test_2001_label.nii.gz").read_bytes()
    with pytest.raises(InputError, match="wanted another folder than those that are read"):
        submit(*both(inputs)[:2], inputs / "truth", f"--gt_dir={inputs / 'truth'}")
    write_volume(inputs / "truth/ct_test_2001_image.nii.gz", box((4, 4, 2), (20, 20, 9), 500), AFFINE)
    with pytest.raises(InputError, match="wanted a folder without images"):
        submit(*both(inputs)[:2], inputs / "truth")
    assert (inputs / "truth/ct_test_2001_label.nii.gz").read_bytes() == before


def test_a_truth_without_any_structure_is_refused(inputs):
    for case in CASES:
        write_volume(inputs / f"truth/{case}_label.nii.gz", box((4, 4, 2), (20, 20, 9), 1), AFFINE)
    with pytest.raises(InputError, match=r"3 of 3 cases failed: .*wanted some of the label values 500, .* found none"):
        submit(*both(inputs), f"--gt_dir={inputs / 'truth'}")


MIDDLE_MM = transform(AFFINE, (np.array(SHAPE) - 1.0) / 2)


def around_the_middle(shape, directions):
    """A grid whose middle is the inputs', a little aside so that no voxel lies half-way between two of theirs."""
    return grid_around(MIDDLE_MM + 0.13, shape, directions)


TURNED = Rotation.from_euler("xyz", (25, -10, 40), degrees=True).as_matrix()
OWN_GRIDS = [
    around_the_middle((25, 37, 33), AFFINE[:3, :3] / [0.8, 1.5, 2]),  # the same field of view, rounded up
    around_the_middle((23, 35, 31), AFFINE[:3, :3] / [0.8, 1.5, 2]),  # and down
    around_the_middle((36, 24, 32), np.diag([1.0, 1, 1])),  # axes in another order and direction
    around_the_middle((60, 60, 60), TURNED),
    around_the_middle((30, 40, 20), -TURNED * [1, 1.5, 2]),  # left-handed
]


def truth_on(grid: Grid):
    """The left ventricle of the first input case, a block of the world, on any grid."""
    source = transform(np.linalg.inv(AFFINE) @ grid.affine, np.argwhere(np.ones(grid.shape)).astype(float))
    inside = ((source > [3.5, 3.5, 1.5]) & (source < [19.5, 19.5, 9.5])).all(1)
    return np.where(inside, 500, 0).astype(np.int16).reshape(grid.shape)


def write_first_truth(inputs, grid: Grid):
    path = inputs / "challenge/nii/ct_test_2001_label_encrypt_1mm.nii.gz"
    write_volume(path, truth_on(grid) ^ KEY, grid.affine)
    return path


def write_atrium_apart(inputs):
    """The first case's left atrium without what the left ventricle claims too."""
    write_volume(inputs / "la/ct_test_2001_mesh_labelmap.nii.gz", box((6, 6, 10), (18, 18, 15), 420), AFFINE)


@pytest.mark.parametrize("grid", OWN_GRIDS)
def test_the_prediction_goes_onto_the_encrypted_truths_own_grid(inputs, challenge, capsys, grid):
    write_first_truth(inputs, grid)
    write_atrium_apart(inputs)
    submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    label = read_labels(inputs / "out/ct_test_2001_label_1mm.nii.gz")
    assert label.grid.shape == grid.shape
    np.testing.assert_allclose(label.grid.affine, grid.affine, atol=1e-5)
    row = rows(inputs / "out/scores_wine.csv")[0]
    assert (row["case"], row["structure"]) == ("ct_test_2001", "LV")
    assert float(row["dice"]) == pytest.approx(dice(label.data == 500, truth_on(grid) == 500), abs=1e-5)
    assert float(row["dice"]) > 0.99
    assert ("outside the image" in capsys.readouterr().out) == (grid.shape[0] in (30, 60))  # the wider ones


def test_an_encrypted_truth_whose_header_cannot_be_read_is_compared_at_1_mm(inputs, challenge, capsys):
    path = inputs / "challenge/nii/ct_test_2001_label_encrypt_1mm.nii.gz"
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:344] + b"zxh\0" + content[348:]))  # which the stand-in scorer does not mind
    submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    check_scores(inputs, challenge)
    said = capsys.readouterr().out
    assert f"{path}: wanted a NIfTI volume" in said
    assert "so the prediction is scored at 1 mm over the image's own field of view" in said


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"\x8b" * 500])
def test_what_the_scorer_cannot_read_is_its_to_say(inputs, challenge, damage):
    path = inputs / "challenge/nii/ct_test_2018_label_encrypt_1mm.nii.gz"
    noise = np.random.default_rng(0).integers(-(2**15), 2**15, (24, 36, 32)).astype(np.int16)
    write_volume(path, noise, read_grid(path).affine)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"1 of 3 cases failed: ct_test_2018: wanted one row .* said: (no|cannot)"):
        submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    assert read_grid(inputs / "out/ct_test_2018_label_1mm.nii.gz").shape == (24, 36, 32)
    assert {row["case"] for row in rows(inputs / "out/scores_wine.csv")} == {"ct_test_2001", "mr_test_2018"}


def test_fields_of_view_that_miss_each_other_are_said(inputs, challenge, capsys):
    path = write_first_truth(inputs, around_the_middle((36, 12, 32), np.diag([1.0, 1, 1])))
    submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    said = [line for line in capsys.readouterr().out.splitlines() if "outside" in line]
    voxels = np.argwhere(read_labels(inputs / "out/ct_test_2001_label.nii.gz").data)
    cut = (np.abs((voxels[:, 0] - 14.5) * 0.8 - 0.13) > 6).mean()  # along the axis of 0.8 mm; the truth has 12 mm of it
    assert 0.1 < cut < 0.3
    assert said == [f"{path}: {cut:.0%} of what is predicted lies outside this ground truth's grid and is not scored"]
    nowhere = around_the_middle((10, 10, 10), np.eye(3))
    nowhere.affine[:3, 3] += 500
    write_first_truth(inputs, nowhere)
    submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    said = capsys.readouterr().out
    assert f"{path}: 100% of what is predicted lies outside this ground truth's grid and is not scored" in said
    assert f"{path}: 100% of this ground truth's grid lies outside the image and counts as background" in said


@pytest.mark.parametrize("grid", OWN_GRIDS)
def test_a_plain_truth_is_compared_on_its_own_grid(inputs, grid):
    for case in CASES:
        write_volume(inputs / f"truth/{case}_label.nii.gz", truth_on(grid), grid.affine)
    write_atrium_apart(inputs)
    submit(*both(inputs), f"--gt_dir={inputs / 'truth'}")
    row = rows(inputs / "out/scores_plain.csv")[0]
    assert (row["case"], row["structure"]) == ("ct_test_2001", "LV")
    assert float(row["dice"]) > 0.99
    assert float(row["assd_mm"]) < 0.05
    assert read_grid(inputs / "out/ct_test_2001_label.nii.gz").shape == SHAPE
    assert read_grid(inputs / "out/ct_test_2001_label_1mm.nii.gz").shape == (24, 36, 32)  # ours: nothing was encrypted


def test_plain_labels_score_without_wine(inputs):
    for case in CASES:
        write_volume(inputs / f"truth/{case}_label.nii.gz", box((4, 4, 2), (20, 20, 9), 500), AFFINE)
    submit(*both(inputs), f"--gt_dir={inputs / 'truth'}")
    found = {(row["case"], row["structure"]): row for row in rows(inputs / "out/scores_plain.csv")}
    assert float(found["ct_test_2001", "LV"]["dice"]) > 0.9
    assert float(found["ct_test_2001", "LV"]["hd95_mm"]) < 10
    assert float(found["ct_test_2001", "LA"]["dice"]) == 0


def test_a_whole_heart_has_seven_values_and_no_others(inputs):
    labels = np.zeros(SHAPE, np.int16)
    for index, value in enumerate((500, 600, 420, 550, 205, 820, 850)):
        labels += box((4 * index, 2, 2), (4 * index + 3, 20, 14), value)
    write_volume(inputs / "wh/ct_test_2001_mesh_labelmap.nii.gz", labels, AFFINE)
    submit(f"--input_dir={inputs / 'wh'}", inputs / "out")
    np.testing.assert_array_equal(read_labels(inputs / "out/ct_test_2001_label.nii.gz").data, labels)
    labels[0, 0, 0] = 7
    write_volume(inputs / "wh/ct_test_2001_mesh_labelmap.nii.gz", labels, AFFINE)
    with pytest.raises(InputError, match=r"wanted the label values 0, 205, 420, 421, .* found 7"):
        submit(f"--input_dir={inputs / 'wh'}", inputs / "out")


def remove(path):
    return lambda inputs: (inputs / path).unlink()


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (None, ["out"], "wanted --input_dir, or --input_dir_lv and --input_dir_la, found neither"),
        (None, ["--input_dir_lv=lv", "out"], "found --input_dir_lv"),
        (None, ["--input_dir=lv", "--input_dir_lv=lv", "--input_dir_la=la", "out"], "wanted --input_dir, or"),
        (None, ["--input_dir_lv=lv", "--input_dir_la=lv", "out"], "wanted another folder than --input_dir_lv"),
        (None, ["--input_dir_lv=lv", "--input_dir_la=la", "lv"], "wanted another folder than those that are read"),
        (None, ["--input_dir_lv=lv", "--input_dir_la=none", "out"], "none: wanted files <case>_mesh_labelmap.nii.gz"),
        (
            remove("la/ct_test_2018_mesh_labelmap.nii.gz"),
            ["--input_dir_lv=lv", "--input_dir_la=la", "out"],
            "la: wanted the same cases as in lv, found ct_test_2018 in one of them alone",
        ),
        (None, ["--input_dir_lv=la", "--input_dir_la=lv", "out"], "wanted the label values 0, 500, found 420"),
        (None, ["--input_dir_lv=lv", "--input_dir_la=la", "out", "--gt_dir=a", "--encrypted_gt_dir=b"], "found both"),
        (
            None,
            ["--input_dir_lv=lv", "--input_dir_la=la", "out", "--gt_dir=a"],
            "ct_test_2001_label.nii.gz: wanted a ground truth for each of 3 cases, found no such file, nor 2 others",
        ),
        (
            None,
            ["--input_dir_lv=lv", "--input_dir_la=la", "out", "--encrypted_gt_dir=b"],
            "b/zxhCardWhsEvaluate.exe: wanted the challenge's scorer, found no such file",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(inputs, monkeypatch, change, arguments, sentence):
    monkeypatch.chdir(inputs)
    if change:
        change(inputs)
    with pytest.raises(InputError) as error:
        submit(*arguments)
    assert sentence in str(error.value)
    assert not [*(inputs / "out").glob("*")]


def test_missing_wine_is_one_sentence(inputs, monkeypatch):
    (inputs / "challenge").mkdir()
    (inputs / "challenge/zxhCardWhsEvaluate.exe").touch()
    monkeypatch.setenv("PATH", str(inputs))
    with pytest.raises(InputError, match=r"^wine: wanted this program on the PATH .* found none"):
        submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")


PIECES = (b"", b"\0", b"\1", b"\xff", b"\xff\x7f", b"\0\0\xc0\x7f", b'"', b",", b"\n", b"nan")


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["lv/ct_test_2001_mesh_labelmap", "truth/ct_test_2001_label", "scores"])
def test_a_damaged_file_is_one_sentence_and_the_other_cases_go_on(inputs, spoilt):
    for case in CASES:
        write_volume(inputs / f"truth/{case}_label.nii.gz", box((4, 4, 2), (20, 20, 9), 500), AFFINE)
    arguments = [*both(inputs), f"--gt_dir={inputs / 'truth'}"]
    submit(*arguments)
    path = inputs / ("out/scores_plain.csv" if spoilt == "scores" else f"{spoilt}.nii.gz")
    sound, ends = path.read_bytes(), []
    sound = sound if spoilt == "scores" else gzip.decompress(sound)
    for seed in range(60):
        path.write_bytes(spoil(sound, random.Random(seed), PIECES, 352))
        try:
            submit(*arguments)
            ends.append("whole")
        except InputError as error:
            ends.append(str(error))
    refused = [end for end in ends if end != "whole"]
    assert 0 < len(refused) < 60
    for sentence in refused:
        assert sentence.startswith(f"{path}: wanted" if spoilt == "scores" else "1 of 3 cases failed: ")
        assert len(sentence) < 800 and "()" not in sentence and "\n" not in sentence


def test_a_case_that_memory_does_not_hold_is_named_and_the_others_go_on(inputs, monkeypatch):
    def read_or_fail(path):
        return np.empty(2**50) if "ct_test_2018" in path.name else read_labels(path)

    monkeypatch.setattr(mmwhs_create_submission, "read_labels", read_or_fail)
    with pytest.raises(InputError, match="1 of 3 cases failed: ct_test_2018: Unable to allocate"):
        submit(*both(inputs))
    assert len(list((inputs / "out").iterdir())) == 4


def test_maps_of_other_grids_are_refused(inputs):
    shifted = AFFINE.copy()
    shifted[0, 3] += 1
    write_volume(inputs / "la/ct_test_2018_mesh_labelmap.nii.gz", box((6, 6, 8), (18, 18, 15), 420), shifted)
    with pytest.raises(InputError, match=r"1 of 3 cases failed: .*la/ct_test_2018.* affine, found one that lies"):
        submit(*both(inputs))
    assert len(list((inputs / "out").iterdir())) == 4


def test_real_wine_runs_a_real_windows_program(inputs, monkeypatch):
    compiler = shutil.which("x86_64-w64-mingw32-gcc")
    if not shutil.which("wine") or not compiler:
        pytest.skip("needs wine and mingw-w64 (Debian: apt install wine gcc-mingw-w64-x86-64 libz-mingw-w64-dev)")
    truth = encrypted_truths(inputs)
    source = Path(__file__).with_name("stand_in_scorer.c")
    scorer = inputs / "challenge/zxhCardWhsEvaluate.exe"
    built = subprocess.run([compiler, "-O1", source, "-static", "-o", scorer, "-lz"], check=False)
    if built.returncode:
        pytest.skip("needs zlib for mingw-w64 (Debian: apt install libz-mingw-w64-dev)")
    monkeypatch.setenv("WINEPREFIX", str(inputs / "prefix"))
    submit(*both(inputs), f"--encrypted_gt_dir={inputs / 'challenge'}")
    check_scores(inputs, truth)
    assert read_grid(inputs / "out/ct_test_2001_label.nii.gz").shape == SHAPE


@pytest.mark.parametrize("text", ["1.2.3", "0.1.2", "1e", "e-1", ".", "", "-0.5", "1.01"])
def test_a_field_that_is_no_number_from_0_to_1_is_refused_in_one_sentence(text):
    row = f"0.1\t0.2\t0.3\t0.4\t0.5\t0.6\t0.7\t{text}\t\tct2018\t--decodeseg2"
    with pytest.raises(InputError, match="ct_test_2018: wanted 8 Dice values and the case's name") as caught:
        mmwhs_create_submission.parse_row(row, "ct_test_2018", ["LV", "LA"])
    assert "\n" not in str(caught.value)
