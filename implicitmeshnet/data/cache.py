"""What was made of a case once, as a file named after all that it depends on: what changes is looked for elsewhere.

Entries are written under a temporary name and renamed, so several processes may use one folder; of two that make the
same entry at once each writes all of it. Tensors are mapped into memory, so that processes share their pages.
"""

import functools
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from implicitmeshnet.config import QUANTILES, DataConfig
from implicitmeshnet.data.dataset import say
from implicitmeshnet.script import InputError
from implicitmeshnet.tensor_files import save_checkpoint

Made = TypeVar("Made")

KEY_DIGITS = 16  # hexadecimal, of SHA-256
LONGEST_NAME = 50  # letters of a case's name in a file name, which has room for 255 bytes
NOT_OF_A_CASE = (
    "dir",
    "validation_cases",
    "fold",
    "folds",
    "training_cases",
    "cache_dir",
    "intensity_statistics",
)
"""The fields of a DataConfig that change nothing about a single case; all others count."""
NO_MAKERS = ("augment.py",)
"""The modules of this folder whose source text does not count, as nothing that is kept comes from them."""


def entry_path(folder: Path | str, name: str, files: Sequence[Path], config: DataConfig, kind: str) -> Path:
    """The file in a cache folder for an entry of a `kind` about a case: NAME-KEY.pt.

    KEY stands for the case's files (path, size and time of change), for the config, and for the code that reads and
    resamples. Raises InputError for a folder whose name torch could not open.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"data.cache_dir: wanted a folder whose name is UTF-8, found {str(folder)!a}") from error
    settings = {key: value for key, value in asdict(config).items() if key not in NOT_OF_A_CASE}
    states = [state_of(path) for path in files]
    text = repr((kind, states, json.dumps(settings), QUANTILES, _code()))
    key = hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]
    shown = re.sub(r"[^\w.-]", "_", name[:LONGEST_NAME])
    return Path(folder) / f"{shown}-{key}.pt"


def read_entry(path: Path, parse: Callable[[dict[str, Any]], Made]) -> Made | None:
    """What `parse` makes of the entry in a file, its tensors mapped; None where there is no such file.

    Neither is there anything to be had from a file that is damaged, or that is another entry: a warning names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of what is no entry
            entry = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if entry["key"] != _key_of(path):
            raise ValueError("another entry's file under this name")
        return parse(entry)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception:  # a damaged file makes torch's reader raise almost anything
        say([f"{path}: wanted a cached case, found an unreadable file; it is made anew"])
        return None


def write_entry(path: Path, content: dict[str, Any]) -> None:
    """Write an entry of tensors and plain values for `read_entry`; InputError where the file cannot be written."""
    try:
        save_checkpoint(path, content | {"key": _key_of(path)})
    except InputError as error:
        raise InputError(f"data.cache_dir: {error}") from error


def _key_of(path: Path) -> str:
    return path.stem[-KEY_DIGITS:]


def state_of(path: Path) -> tuple[str, int, int] | None:
    """By what a changed file is recognised: path, size and time of change in ns.

    None where it cannot be looked at, which its reader will explain.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path.resolve()), found.st_size, found.st_mtime_ns


@functools.cache
def _code() -> str:
    """A digest of the source text of the modules that read and resample cases."""
    here = Path(__file__).parent
    makers = [path for path in sorted(here.glob("*.py")) if path.name not in NO_MAKERS]
    digest = hashlib.sha256()
    for path in [*makers, here.with_name("coordinates.py"), here.with_name("structures.py")]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
