"""Trainings of several processes equal those of one, and those that signals stop equal those left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults.project import DISTANCE_NETWORK, NETWORK
from volumes import write_two_blobs

from implicitmeshnet.script import COME_AGAIN, InputError
from implicitmeshnet.training.processes import Place, place

ROOT = Path(__file__).resolve().parents[1]
ROUNDING = 1e-5  # of weights after 20 steps, whose gradients were summed in another order
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What tests/parallel_runs.py found: trainings of 20 steps of 4 cases."""
    folder = tmp_path_factory.mktemp("parallel")
    generator = np.random.default_rng(0)
    for case in range(5):
        write_two_blobs(folder / "data", case, generator, shift=case % 3)
    training = {"batch_size": 4, "epochs": 4, "validate_every": 4}
    config = {
        "data": {
            "dir": str(folder / "data"),
            "shape": [8, 8, 8],
            "spacing_mm": 8.0,
            "validation_cases": 1,
            "region": "found",
        },
        "network": NETWORK | {"dropout": 0.0},  # each process draws its own
        "loss": {
            "segmentation_dice": 0.1,
            "occupancy_dice": 0.1,
            "overlap": 0.5,
            "triangles": 0.1,
            "laplacian_epochs": 2,
            "temperature": 5.0,
        },
        "training": training | {"repeats": 5},
    }
    (folder / "config.json").write_text(json.dumps(config))
    network = DISTANCE_NETWORK | {"dropout": 0.0}
    config = {"network": network, "training": training | {"shapes": 20, "validation_shapes": 3}}
    (folder / "drn.json").write_text(json.dumps(config))
    run = subprocess.run(
        [sys.executable, ROOT / "tests/parallel_runs.py", folder],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("name", ["two trainings", "two pretrainings", "parts"])
def test_a_batch_cut_into_processes_or_parts_trains_alike(found, name):
    assert not any(status for statuses in found[name]["statuses"] for status in statuses)
    assert found[name]["difference"] < ROUNDING


@pytest.mark.slow
@needs_fork
def test_a_training_stopped_in_an_epoch_goes_on_to_the_bit(found):
    stopped = found["training stopped"]
    assert (stopped["statuses"], stopped["resumed"], stopped["difference"]) == ([COME_AGAIN], [0, 0], 0.0)
    assert stopped["said"] == ["implicitmeshnet_train: stopped by SIGUSR1; the same command resumes"]
    assert stopped["step"] > 0


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("name", ["trainings stopped", "pretrainings stopped"])
def test_a_signal_to_one_process_stops_all_and_one_process_goes_on(found, name):
    stopped = found[name]
    assert (stopped["statuses"], stopped["resumed"]) == ([COME_AGAIN, COME_AGAIN], [0, 0])
    assert [line.partition(": ")[2] for line in stopped["said"]] == [
        "stopped by a signal to another process; the same command resumes",
        "stopped by SIGTERM; the same command resumes",
    ]
    assert stopped["step"] > 0
    assert stopped["difference"] < ROUNDING


@pytest.mark.slow
@needs_fork
def test_the_others_stay_until_the_first_process_has_saved(found):
    assert found["slow"]["epoch"] == 2  # which had just begun


@pytest.mark.slow
@needs_fork
def test_a_process_that_dies_ends_the_others_with_a_sentence_and_the_checkpoint_stays(found):
    died = found["died"]
    assert (died["statuses"], died["kept"]) == ([2, -9], True)
    assert died["said"].startswith("implicitmeshnet_train: process 0 of 2 on ")
    assert died["said"].endswith(": wanted to go on with the others, found one gone")


@pytest.mark.slow
@needs_fork
def test_a_batch_that_the_processes_do_not_divide_and_a_port_in_use_are_a_sentence_each(found):
    assert found["odd batch"]["statuses"] == [2, 2]
    wanted = "training.batch_size: wanted a multiple of 2, for 2 processes and training.accumulate 1, found 3"
    assert [line.partition(": ")[2] for line in found["odd batch"]["said"]] == [wanted, wanted]
    assert "MASTER_PORT: wanted a free port, found 127.0.0.1:" in found["port"]["said"]


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "29500",
}


def set_variables(monkeypatch, variables: dict[str, str]):
    for name in TORCHRUN | SRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, Place(0, 0, 1)),
        (TORCHRUN, Place(1, 0, 4)),
        (SRUN, Place(3, 1, 4)),
        (SRUN | TORCHRUN, Place(1, 0, 4)),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Place(0, 0, 1)),  # in a job's own script
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place(0, 0, 1)),
    ],
)
def test_the_place_is_what_torchrun_or_srun_says(monkeypatch, variables, wanted):
    set_variables(monkeypatch, variables)
    assert place() == wanted


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"RANK": "4"}, "RANK: wanted a number below WORLD_SIZE = 4, found 4"),
        ({"WORLD_SIZE": "all"}, "WORLD_SIZE: wanted the number that torchrun or srun sets, found 'all'"),
        ({"MASTER_PORT": ""}, "MASTER_PORT: wanted the number that torchrun or srun sets, found ''"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(monkeypatch, change, sentence):
    set_variables(monkeypatch, TORCHRUN | change)
    with pytest.raises(InputError, match=f"^{sentence}$"):
        place()


def test_processes_without_a_meeting_place_are_one_sentence(monkeypatch):
    set_variables(monkeypatch, {name: value for name, value in SRUN.items() if name != "MASTER_ADDR"})
    with pytest.raises(
        InputError, match=r"^MASTER_ADDR: wanted where the 4 processes of this job meet, found it not set$"
    ):
        place()
