"""Scripts called in the process of the tests, which spares their imports."""

import sys

import pytest


def call(script, *arguments):
    """main() of an imported script, as `python script.py` with these arguments calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        script.main()
