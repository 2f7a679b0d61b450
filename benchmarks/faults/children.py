"""Calls in forked processes of their own, held to time and memory, and what became of them; for `robustness.py`.

The libraries are loaded once, in the parent, which must not have used torch with more than one thread: its threads do
not follow into a child. Linux alone: macOS holds no process to a size.
"""

import io
import json
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partialmethod
from typing import NamedTuple

from tqdm import tqdm

from implicitmeshnet.script import run_script

SECONDS = 10.0  # of processor time, so that what else a machine does is no fault
HANG_SECONDS = 120.0  # on the clock, for what waits
MEMORY = 2 * 2**30  # bytes, beside the libraries
LONGEST_LINE = 1000  # letters
LONGEST_REPORT = 20_000  # letters of what was said or of a traceback; the middle of a longer one is left out
EMPTY_REASON = re.compile(r"(?<!found)(?<!shape) \(\)")
LIBRARY_WARNING = re.compile(r"^\S+:\d+: \w*Warning: ")
NO_MEMORY = re.compile(r"allocate memory|memory enough|not enough memory|alloc_cpu")  # in torch's words or in ours
OUTCOMES = ("refused", "used", "no sentence", "wrong result", "traceback", "crash", "over time", "over memory")
"""The first two are no faults; of several the last one counts."""


class Wrong(AssertionError):
    """What was used without a word and gave a wrong result."""


class Outcome(NamedTuple):
    kind: str  # of OUTCOMES
    text: str  # what was said, or the traceback
    seconds: float  # of processor time
    mib: float = 0.0  # the most memory that it took beside the libraries, where it lived to say so


def expect(holds, wanted: str):
    """Raise Wrong, which says what was wanted, unless it holds."""
    if not holds:
        raise Wrong(f"wanted {wanted}")


def call(use: Callable[[], None], names: re.Pattern, limit_s: float = SECONDS, hang_s: float = HANG_SECONDS) -> Outcome:
    """What becomes of use(), called as a script's main() is, in a process of its own.

    One line of what it says on stderr must hold one of `names`, the file or argument at fault, where it is refused.
    """
    read_end, write_end = os.pipe()
    until = time.perf_counter() + hang_s
    process = os.fork()
    if process == 0:
        _be_child(use, names, limit_s, write_end)
    os.close(write_end)
    report = _receive(read_end, until)
    if report is None:
        os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    seconds = usage.ru_utime + usage.ru_stime
    if report is None or os.waitstatus_to_exitcode(status) == -signal.SIGXCPU:
        return Outcome("over time", "", seconds)
    if not report:
        return Outcome("crash", f"exit status {os.waitstatus_to_exitcode(status)}", seconds)
    kind, text, mib = json.loads(report)
    return Outcome(kind, text, seconds, mib)


def _receive(read_end: int, until: float) -> bytes | None:
    """All that a child writes, None where it has not ended in time."""
    report = b""
    with open(read_end, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(until - time.perf_counter(), 0))
            if not ready:
                return None
            part = pipe.read(2**16)
            if not part:
                return report
            report += part


def _be_child(use: Callable[[], None], names: re.Pattern, limit_s: float, write_end: int):
    """Call use(), report what became of it, and end the process."""
    sys.stdout = io.TextIOWrapper(io.BytesIO(), "utf-8")  # refuses names that are not UTF-8, as a terminal does
    sys.stderr = io.TextIOWrapper(io.BytesIO(), "utf-8")
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), resource.RLIM_INFINITY))
    mapped, resident = _bytes_of_process()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, limits[1]))
    kind, text = _outcome(use, names)
    if len(text) > LONGEST_REPORT:
        text = f"{text[: LONGEST_REPORT // 2]} ... {text[-LONGEST_REPORT // 2 :]}"
    resource.setrlimit(resource.RLIMIT_AS, limits)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
    os.write(write_end, json.dumps([kind, text, taken / 2**20]).encode())
    os._exit(0)


def _outcome(use: Callable[[], None], names: re.Pattern) -> tuple[str, str]:
    """The kind of outcome, and what was said or the traceback."""
    error, status = None, 0
    try:
        run_script(use)
    except SystemExit as end:
        error, status = end, end.code or 0
    except BaseException as raised:
        error, status = raised, 1
    sys.stderr.flush()
    said = sys.stderr.buffer.getvalue().decode()
    details = said if error is None or isinstance(error, SystemExit) else "".join(traceback.format_exception(error))
    if _out_of_memory(error) or NO_MEMORY.search(said):
        return "over memory", details
    if isinstance(error, Wrong):
        return "wrong result", str(error)
    if status not in (0, 2) or "Traceback (" in said:
        return "traceback", details
    fault = _fault_of(said, names if status else None)
    return ("no sentence", f"{fault}: {said}") if fault else ("refused" if status else "used", said)


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is one of memory, or was raised because of such a one."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fault_of(said: str, names: re.Pattern | None) -> str:
    """What is wrong with lines on stderr, one of which must hold one of the names, if any; empty where nothing is."""
    lines = said.removesuffix("\n").split("\n")
    for line in lines:
        if len(line) > LONGEST_LINE:
            return f"{len(line)} letters"
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in line):
            return "control characters"
        if EMPTY_REASON.search(line):
            return "an empty reason"
        if LIBRARY_WARNING.search(line):
            return "a library's warning"
    if names is not None and not any(map(names.search, lines)):
        return "names neither file nor argument"
    return ""


def _bytes_of_process() -> tuple[int, int]:
    """How much this process has mapped, and how much of it is in memory."""
    with open("/proc/self/statm") as file:
        mapped, resident, *_ = map(int, file.read().split())
    return mapped * resource.getpagesize(), resident * resource.getpagesize()
