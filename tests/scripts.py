"""Scripts called in the process of the tests, which spares their imports."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(script, *arguments):
    """main() of an imported script, as `python script.py` with these arguments calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        script.main()


def run(script: str, *arguments) -> int:
    """The exit status of `python script.py` with these arguments, but in this process, which has imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return ended.value.code
