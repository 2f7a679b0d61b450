"""The repository's scripts, called by benchmarks as a user calls them."""

import os
import subprocess
import sys

from implicitmeshnet.config import REPOSITORY
from implicitmeshnet.script import InputError


def call(script: str, *arguments: str, quiet: bool = False) -> float:
    """Run one of the scripts, `quiet` without what it prints; its peak memory in MiB. InputError where it fails."""
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / script), *arguments], stdout=subprocess.DEVNULL if quiet else None
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise InputError(f"{script}: wanted a run without error, found exit status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024
