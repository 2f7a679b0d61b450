"""Where the seconds of a case go, by phase."""

import time


class Stopwatch:
    """Seconds by phase: each lap belongs to the phase that it ends."""

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        """`seconds` were taken before, by phase."""
        self.seconds = dict(seconds or {})
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap, or since the beginning, for a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
