"""The signals by which a cluster ends a job: SIGTERM, and SIGUSR1, which Slurm sends ahead of a time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from implicitmeshnet.script import Stopped

NAMES = ("SIGTERM", "SIGUSR1")  # Windows has the first alone


class Signals:
    """Ends the process by `Stopped` when a signal comes, or notes it in `heard` while something may not be cut short.

    Entered as a context, and only in a process's main thread, as Python lets no other thread listen.
    """

    def __init__(self) -> None:
        self.heard: str | None = None
        """The name of the signal that came."""
        self._holds = False

    @contextmanager
    def listening(self) -> Iterator["Signals"]:
        """Listen in a block; afterwards the signals do what they did before."""
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note signals in a block, and act at its end; inside it one may look at `heard`, save and `stop`."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
        if self.heard:
            self.stop()

    def stop(self) -> NoReturn:
        """End the process by Stopped."""
        raise Stopped(f"stopped by {self.heard or 'a signal to another process'}; the same command resumes")

    def _hear(self, number: int, _: object) -> None:
        self.heard = signal.Signals(number).name
        if not self._holds:
            self.stop()
