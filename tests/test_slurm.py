"""train.slurm under a Slurm and a Python that write down what they are asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/bash
echo "python $*${OMP_NUM_THREADS:+ on $OMP_NUM_THREADS threads}${MASTER_ADDR:+ at $MASTER_ADDR:$MASTER_PORT}" >> "$LOG"
for argument in "$@"; do
  case $argument in --output_dir=*) mkdir -p "${argument#*=}";; esac
done
[ "$1" != "${FAILS:-}" ] || exit "${STATUS:-1}"
"""
SRUN = """#!/bin/bash
options=
while [[ $1 == --* ]]; do options+=" $1"; shift; done
echo "srun$options" >> "$LOG"
"$@"
"""
SCONTROL = """#!/bin/bash
[ "$1" != show ] || exec printf 'node3\\nnode4\\n'
echo "scontrol $*" >> "$LOG"
"""
SQUEUE = """#!/bin/bash
echo "${STATE:-RUNNING}"
"""
PROGRAMS = {"clone/.venv/bin/python": PYTHON, "bin/srun": SRUN, "bin/scontrol": SCONTROL, "bin/squeue": SQUEUE}
JOB = {"SLURM_JOB_ID": "40007", "SLURM_JOB_NODELIST": "node[3-4]", "SLURM_CPUS_PER_TASK": "8"}
ARRAY_TASK = JOB | {"SLURM_ARRAY_JOB_ID": "40006", "SLURM_ARRAY_TASK_ID": "1"}
STEP = "srun --cpus-per-task=8 --kill-on-bad-exit=0 --wait=300"
PLACE = "on 8 threads at node3:10007"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def clone(tmp_path):
    """A clone with a virtual environment, and a folder of programs."""
    for path, text in PROGRAMS.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    for name in ("train.slurm", "implicitmeshnet_train.py"):
        shutil.copy(ROOT / name, tmp_path / "clone")
    return tmp_path / "clone"


def run(clone: Path, *options: str, script: Path | None = None, **variables: str) -> tuple[int, list[str]]:
    """The script's exit status, and what was called, Slurm being there for its jobs only."""
    log = clone.parent / "log"
    log.write_text("")
    path = os.environ["PATH"] if "SLURM_JOB_ID" not in variables else f"{clone.parent / 'bin'}:{os.environ['PATH']}"
    ours = ("SLURM", "SRUN", "OMP", "MASTER")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    process = subprocess.run(
        ["bash", script or clone / "train.slurm", *options],
        cwd="/",
        env=kept | {"PATH": path, "LOG": str(log)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, log.read_text().splitlines()


TRAININGS = [
    "python pretrain_drn.py --config=configs_implicitmeshnet/drn.json",
    "python implicitmeshnet_train.py --config=configs_implicitmeshnet/2025-03-31_13-45-41.json",
    "python implicitmeshnet_train.py --config=configs_implicitmeshnet/2025-03-30_10-03-29.json",
]


def test_without_slurm_it_trains_the_papers_configs_where_it_lies(clone):
    assert run(clone) == (0, TRAININGS)


def test_phantoms_are_made_once_and_their_folder_is_every_trainings(clone):
    data = "data/phantom/train"
    made = f"python create_phantom_dataset.py --output_dir={data}.unfinished --cases=25 --overwrite"
    trainings = [TRAININGS[0], *(f"{training} --data.dir={data}" for training in TRAININGS[1:])]
    assert run(clone, DATA_DIR=data) == (0, [made, *trainings])
    assert (clone / data).is_dir()
    assert run(clone, DATA_DIR=data) == (0, trainings)


def test_in_a_job_every_training_has_all_tasks_and_phantoms_have_one(clone):
    """Slurm runs a copy of the script; the clone is where it was submitted."""
    (clone.parent / "spool").mkdir()
    copy = clone.parent / "spool/slurm_script"
    shutil.copy(clone / "train.slurm", copy)
    status, calls = run(clone, script=copy, SLURM_SUBMIT_DIR=str(clone), DATA_DIR="data/phantom/train", **JOB)
    assert status == 0
    assert calls[0] == "srun --cpus-per-task=8 --nodes=1 --ntasks=1"
    assert calls[2::2] == [STEP] * 3
    assert calls[3] == f"{TRAININGS[0]} {PLACE}"


@pytest.mark.skipif(shutil.which("srun") is not None, reason="this machine has srun")
def test_in_a_job_on_a_machine_without_srun_it_runs_directly(clone):
    (clone.parent / "bin/srun").unlink()
    assert run(clone, SLURM_JOB_ID="7") == (0, TRAININGS)


def test_the_sites_settings_and_the_options_reach_each_training(clone):
    (clone / "own.json").write_text("{}")
    status, calls = run(clone, "--training.batch_size=8", CONFIGS="own.json drn_small")
    assert status == 0
    assert calls == [
        "python implicitmeshnet_train.py --config=own.json --training.batch_size=8",
        "python pretrain_drn.py --config=configs_implicitmeshnet/drn_small.json --training.batch_size=8",
    ]


def test_an_arrays_task_trains_its_fold_of_each_config_beside_a_cache_for_all(clone):
    status, calls = run(clone, CONFIGS="hippocampus", **ARRAY_TASK)
    assert status == 0
    assert calls == [
        STEP,
        "python implicitmeshnet_train.py --config=configs_implicitmeshnet/hippocampus.json --data.fold=1"
        f" --training.run_dir=runs/hippocampus/fold_1 --data.cache_dir=runs/hippocampus/cache {PLACE}",
    ]


def test_an_arrays_task_trains_its_config(clone):
    assert run(clone, ARRAY="configs", **ARRAY_TASK) == (0, [STEP, f"{TRAININGS[1]} {PLACE}"])


@pytest.mark.parametrize(
    "variables", [{"ARRAY": "seeds"}, {"ARRAY": "configs", "CONFIGS": "one"}, {"ARRAY": "folds", "CONFIGS": "drn"}]
)
def test_an_array_of_what_cannot_be_is_refused_before_anything_runs(clone, variables):
    assert run(clone, **ARRAY_TASK, **variables) == (2, [])


@pytest.mark.parametrize(("variables", "job"), [(JOB, "40007"), (ARRAY_TASK | {"CONFIGS": "whole_heart"}, "40006_1")])
@pytest.mark.parametrize("status", ["75", "138"])
def test_a_training_that_was_stopped_queues_its_job_again_and_none_follows(clone, variables, job, status):
    variables = {"CONFIGS": "whole_heart hippocampus"} | variables
    found, calls = run(clone, FAILS="implicitmeshnet_train.py", STATUS=status, **variables)
    assert (found, len(calls), calls[-1]) == (int(status), 3, f"scontrol requeue {job}")


@pytest.mark.parametrize("variables", [JOB | {"STATE": "COMPLETING"}, JOB | {"STATUS": "137"}, {}])
def test_a_cancelled_job_a_failure_and_what_is_no_job_do_not_queue_again(clone, variables):
    variables = {"STATUS": "75", "CONFIGS": "whole_heart"} | variables
    status, calls = run(clone, FAILS="implicitmeshnet_train.py", **variables)
    assert status == int(variables["STATUS"])
    assert not any("requeue" in call for call in calls)


def test_phantoms_that_were_cut_short_are_made_again_and_a_failure_ends_the_script(clone):
    for _ in range(2):
        status, calls = run(clone, FAILS="create_phantom_dataset.py", DATA_DIR="data/phantom/train")
        assert (status, len(calls)) == (1, 1)
        assert not (clone / "data/phantom/train").exists()
    status, calls = run(clone, FAILS="pretrain_drn.py")
    assert status == 1
    assert [line.split()[1] for line in calls] == ["pretrain_drn.py"]
