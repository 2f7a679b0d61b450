"""Cases one after the other with the next one read meanwhile, or shared out among processes.

A process of `in_processes` is the same script once more, which `serve`s: it takes cases from its standard input and
answers on its standard output. So torch is set up in it from the start, with its share of the cores. It has one case
more than it works on, to read; who is done first is given the next. Nobody waits for a process that dies: its case has
failed, what it had not begun goes to another. Where the parent dies, its processes end at once.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from implicitmeshnet.data.dataset import Case
from implicitmeshnet.script import core_count

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables by which libraries take so many threads, read when they are loaded."""

Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Outcome:
    """How one case ended."""

    case: Case
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    failed: str | None = None  # one sentence: its input is at fault
    fault: str | None = None  # a traceback: this program is


def ahead(items: Iterable[Item], read: Callable[[Item], Read]) -> Iterator[tuple[Item, Callable[[], Read]]]:
    """Yield each item with a function that gives what was read of it, once, or raises what reading it raised.

    One item is read ahead, in a thread, while the caller works on the item before. What was read is then the caller's
    alone, so that its memory is free when he lets go of it.
    """
    coming: deque[tuple[Item, Future[Read]]] = deque()

    def take() -> Read:
        return coming.popleft()[1].result()

    with ThreadPoolExecutor(1) as reader:
        for item in items:
            coming.append((item, reader.submit(read, item)))
            if len(coming) == 2:
                yield coming[0][0], take
        if coming:
            yield coming[0][0], take


def serve(work: Callable[[Iterator[Case]], Iterable[Outcome]]) -> None:
    """Do `work` on cases from standard input, its outcomes to standard output, for `in_processes`; never returns."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    for outcome in work(_given()):
        pickle.dump(outcome, answers)
        answers.flush()
    sys.stderr.flush()
    os._exit(0)  # past the thread that listens, which would hold up Python's end


def _given() -> Iterator[Case]:
    """The cases that the parent gives, until it gives None; where the parent is gone, the process ends."""
    cases: queue.Queue[Case | None] = queue.Queue()

    def listen() -> None:
        while True:
            try:
                cases.put(pickle.load(sys.stdin.buffer))
            except (EOFError, pickle.UnpicklingError):
                os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    return iter(cases.get, None)


def in_processes(command: Sequence[str], cases: Iterable[Case], count: int) -> Iterator[Outcome]:
    """The outcomes of cases, in the order in which they end, from at most `count` processes of a command that serves.

    Where the caller stops, or is interrupted, the processes are ended and waited for.
    """
    waiting = deque(cases)
    while waiting:  # again only where processes have died
        yield from _shared_out(command, waiting, min(count, len(waiting)))


def _shared_out(command: Sequence[str], waiting: deque[Case], count: int) -> Iterator[Outcome]:
    """The outcomes of cases that are taken off `waiting`; what dead processes had not begun is put back there."""
    outcomes: queue.Queue[Outcome | None] = queue.Queue()
    processes = [_start(command, max(core_count() // count, 1)) for _ in range(count)]
    first = [[waiting.popleft()] for _ in processes]
    try:
        for process, given in zip(processes, first, strict=True):
            threading.Thread(target=_attend, args=(process, given, waiting, outcomes), daemon=True).start()
        for _ in processes:
            yield from iter(outcomes.get, None)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _start(command: Sequence[str], threads: int) -> subprocess.Popen:
    """A process with so many threads, which Ctrl-C in the terminal does not reach."""
    environment = os.environ | dict.fromkeys(THREADS, str(threads))
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)


def _attend(process: subprocess.Popen, given: list[Case], waiting: deque[Case], outcomes: queue.Queue) -> None:
    """Give a process cases, at first those `given`, and pass its outcomes on, then None for its end."""
    try:
        for case in given:
            _give(process, case)
        _give_next(process, given, waiting)
        while given:
            outcome = pickle.load(process.stdout)  # type: ignore[arg-type]
            given[:] = [case for case in given if case.name != outcome.case.name]
            outcomes.put(outcome)
            _give_next(process, given, waiting)
    except (OSError, EOFError, pickle.UnpicklingError):  # it has died
        if given:
            begun, *others = given
            waiting.extendleft(others)
            outcomes.put(Outcome(begun, failed=f"{begun.source}: {_epitaph(process)}"))
    outcomes.put(None)


def _give_next(process: subprocess.Popen, given: list[Case], waiting: deque[Case]) -> None:
    """Give a process the next case, or where there is none None, so that it waits for no more."""
    try:
        case = waiting.popleft()
    except IndexError:
        _give(process, None)
        return
    given.append(case)
    _give(process, case)


def _give(process: subprocess.Popen, case: Any) -> None:
    assert process.stdin is not None
    pickle.dump(case, process.stdin)
    process.stdin.flush()


def _epitaph(process: subprocess.Popen) -> str:
    """How a process ended that should not have."""
    status = process.wait()
    if status < 0:
        return f"the process that worked on it was killed by signal {-status}, as for want of memory"
    return f"the process that worked on it ended with status {status}"
