"""train.slurm under a Slurm and a Python that write down what they are asked to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/bash
echo "python $*${OMP_NUM_THREADS:+ on $OMP_NUM_THREADS threads}" >> "$LOG"
for argument in "$@"; do
  case $argument in --output_dir=*) mkdir -p "${argument#*=}";; esac
done
[ "$1" != "${FAILS:-}" ]
"""
SRUN = """#!/bin/bash
echo "srun $1" >> "$LOG"
shift
"$@"
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def clone(tmp_path):
    """A clone with a virtual environment, and a folder of programs."""
    for path, text in (("clone/.venv/bin/python", PYTHON), ("bin/srun", SRUN)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    for name in ("train.slurm", "implicitmeshnet_train.py"):
        shutil.copy(ROOT / name, tmp_path / "clone")
    return tmp_path / "clone"


def run(clone: Path, script: Path, **variables) -> tuple[int, list[str]]:
    """The script's exit status, and what was called, srun being there for its jobs only."""
    log = clone.parent / "log"
    log.write_text("")
    path = os.environ["PATH"] if "SLURM_JOB_ID" not in variables else f"{clone.parent / 'bin'}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SRUN", "OMP"))}
    process = subprocess.run(
        ["bash", script],
        cwd="/",
        env=kept | {"PATH": path, "LOG": str(log)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, log.read_text().splitlines()


TRAININGS = [
    "python pretrain_drn.py --config=configs_implicitmeshnet/drn.json",
    "python implicitmeshnet_train.py --config=configs_implicitmeshnet/2025-03-31_13-45-41.json --data.dir={data}",
    "python implicitmeshnet_train.py --config=configs_implicitmeshnet/2025-03-30_10-03-29.json --data.dir={data}",
]


def trainings(data: Path) -> list[str]:
    return [line.format(data=data) for line in TRAININGS]


def test_without_slurm_it_runs_where_it_lies_and_makes_phantoms_once(clone):
    data = clone / "data/phantom/train"
    status, calls = run(clone, clone / "train.slurm")
    made = f"python create_phantom_dataset.py --output_dir={data}.unfinished --cases=25 --overwrite"
    assert (status, calls) == (0, [made, *trainings(data)])
    assert data.is_dir()
    assert run(clone, clone / "train.slurm") == (0, trainings(data))


def test_in_a_job_every_step_has_the_jobs_cores(clone):
    """Slurm runs a copy of the script; the clone is where it was submitted."""
    data = clone / "data/mmwhs/ct_train"
    data.mkdir(parents=True)
    (clone.parent / "spool").mkdir()
    shutil.copy(clone / "train.slurm", clone.parent / "spool/slurm_script")
    status, calls = run(
        clone,
        clone.parent / "spool/slurm_script",
        SLURM_SUBMIT_DIR=str(clone),
        SLURM_JOB_ID="7",
        SLURM_CPUS_PER_TASK="8",
    )
    assert status == 0
    assert calls == [
        line for training in trainings(data) for line in ("srun --cpus-per-task=8", f"{training} on 8 threads")
    ]


@pytest.mark.skipif(shutil.which("srun") is not None, reason="this machine has srun")
def test_in_a_job_on_a_machine_without_srun_it_runs_directly(clone):
    (clone.parent / "bin/srun").unlink()
    data = clone / "data/mmwhs/ct_train"
    data.mkdir(parents=True)
    assert run(clone, clone / "train.slurm", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR="/") == (0, trainings(data))


def test_the_sites_settings_come_first(clone):
    (clone.parent / "data").mkdir()
    status, calls = run(
        clone, clone / "train.slurm", DATA_DIR=str(clone.parent / "data"), CONFIGS="whole_heart", DRN_CONFIG="drn_small"
    )
    assert status == 0
    assert calls == [
        "python pretrain_drn.py --config=configs_implicitmeshnet/drn_small.json",
        "python implicitmeshnet_train.py --config=configs_implicitmeshnet/whole_heart.json"
        f" --data.dir={clone.parent / 'data'}",
    ]


def test_phantoms_that_were_cut_short_are_made_again_and_a_failure_ends_the_script(clone):
    for _ in range(2):
        status, calls = run(clone, clone / "train.slurm", FAILS="create_phantom_dataset.py")
        assert (status, len(calls)) == (1, 1)
        assert not (clone / "data/phantom/train").exists()
    status, calls = run(clone, clone / "train.slurm", FAILS="pretrain_drn.py")
    assert status == 1
    assert [line.split()[1] for line in calls] == ["create_phantom_dataset.py", "pretrain_drn.py"]
