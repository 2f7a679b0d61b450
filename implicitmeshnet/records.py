"""What is finished of an evaluation: a record of each case in the output folder, from which its tables are made.

A record is written when all files of its case are there, itself whole or not at all. It holds what the tables say of
the case, sizes and times of its files, and a key that stands for all that these depend on. So it counts only while the
files are as they were written, and the case's input, the networks, the options and this program are what they were.
When a case is begun, the files that its record lists are removed, and a record that does not count lists those that may
now be written: whatever ends a run, no case has files of an earlier one, and the next run finds what is half done.
Several processes, on one machine or many, write records into one folder; whoever ends makes the tables from all.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from implicitmeshnet.data.cache import state_of
from implicitmeshnet.data.dataset import Case
from implicitmeshnet.data.formats import DETACHED
from implicitmeshnet.script import InputError, atomic_path, read_json

FOLDER = ".records"
OTHER_ROOMS = ("training", "planning", "phantom", "shape_model")
"""Of the package, whose source text changes nothing about an evaluation."""


@dataclass(frozen=True)
class Record:
    """What is known of one case: what failed, or rows of the tables and what they were made with."""

    key: str
    rows: list[dict[str, Any]] = field(default_factory=list)  # one per structure
    phases: dict[str, float] = field(default_factory=dict)  # seconds
    files: dict[str, list[int] | None] = field(default_factory=dict)  # size and time of change, in ns, by name
    failed: str | None = None  # the sentence that the case ended with


class Records:
    """The records in an output folder of an evaluation with one set of networks and options."""

    def __init__(self, out: Path, settings: object):
        """`settings` is all that the files of every case depend on, beside the case and the program; any repr."""
        self.out = out
        self.settings = settings

    def of(self, case: Case) -> Record | None:
        """The record of a case that counts today, None where there is none."""
        record = self._stored(case)
        if record is None or record.key != self._key(case):
            return None
        if record.failed is None and record.files != self._states(record.files):
            return None
        return record

    def is_finished(self, case: Case) -> bool:
        """Whether nothing is left to do for a case."""
        record = self.of(case)
        return record is not None and record.failed is None

    def begin(self, case: Case, files: Iterable[str]) -> None:
        """Remove what an earlier run left of a case, and list the files, by name, that may now be written.

        Raises InputError where the list cannot be written.
        """
        self.remove(case)
        self._write(case, Record(key="", files=dict.fromkeys(files)))

    def remove(self, case: Case) -> None:
        """Remove all files of a case that its record lists, and the record, whether or not it counts today."""
        record = self._stored(case)
        for name in record.files if record else ():
            with suppress(OSError):  # a folder of this name is none of ours
                (self.out / name).unlink(missing_ok=True)
        self._path(case).unlink(missing_ok=True)

    def add(self, case: Case, files: Iterable[str], rows: list[dict[str, Any]], phases: dict[str, float]) -> None:
        """Write the record of a case, whose files, those there are of these names, have all been written."""
        self._write(case, Record(self._key(case), rows, phases, self._states(files)))

    def add_failed(self, case: Case, sentence: str) -> None:
        """Remove the files of a case that its record lists, and write why there is nothing of it, for the tables."""
        self.remove(case)
        with suppress(InputError):
            self._write(case, Record(self._key(case), failed=sentence))  # where it cannot be, nothing is lost

    def state(self, cases: Sequence[Case]) -> list[object]:
        """Something that changes when another process writes a record of one of the cases."""
        return [state_of(self._path(case)) for case in cases]

    def _stored(self, case: Case) -> Record | None:
        """The record of a case as it lies there, None where there is none or not ours."""
        try:
            return Record(**read_json(self._path(case), "a record of a case"))
        except (InputError, TypeError):
            return None

    def _write(self, case: Case, record: Record) -> None:
        text = json.dumps(asdict(record), default=_plain)  # numbers that JSON lacks are NaN and Infinity, as Python's
        with atomic_path(self._path(case)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    def _path(self, case: Case) -> Path:
        return self.out / FOLDER / f"{case.name}.json"

    def _states(self, names: Iterable[str]) -> dict[str, list[int] | None]:
        states: dict[str, list[int] | None] = {}
        for name in names:
            found = state_of(self.out / name)
            states[name] = None if found is None else list(found[1:])
        return states

    def _key(self, case: Case) -> str:
        """Stands for a case's input, the settings and the program."""
        inputs = [state_of(path) for path in input_files(case)]
        text = repr((case.name, case.source, inputs, self.settings, _code()))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def input_files(case: Case) -> list[Path]:
    """All files that a case is read from, those beside a header that has its voxels elsewhere among them."""
    files = list(case.files)
    if case.series is not None:
        files += [case.series.place / each.file for each in case.series.slices]
    for path in case.files:
        if path.name.lower().endswith(DETACHED):
            files += sorted(path.parent.glob(f"{path.stem}.*"))
    return files


def digest(path: Path | str) -> str:
    """SHA-256 of a file, hexadecimal. Raises InputError where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


@functools.cache
def _code() -> str:
    """A digest of the package's source text, as far as evaluations go through it."""
    here = Path(__file__).parent
    together = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        if path.relative_to(here).parts[0] not in OTHER_ROOMS:
            together.update(path.read_bytes())
    return together.hexdigest()


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's."""
    return value.item()
