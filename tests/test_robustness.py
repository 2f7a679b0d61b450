"""The fuzz's own tests, in a process of their own, as threads and memory that others left would be forked along."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks processes and holds them to memory, as Linux does")
def test_the_fuzz_sees_what_is_planted():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "robustness_in_a_fresh_process.py"]
    run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
