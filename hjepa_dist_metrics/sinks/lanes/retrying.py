"""A place behind a network: tried again for a while before it counts as failed."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from hjepa_dist_metrics.sinks.base import HParam, RunSink, Sink
from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

GIVE_UP_SECONDS = 600.0
# What is left to a place that does not answer when the run ends.
HURRY_SECONDS = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class Retrying:
    """Open a sink at its first use, and repeat what ends in an OSError (networks, timeouts), waiting longer.

    The thread that writes is the one that waits. After `give_up` seconds of failures, 10 s from `hurry` on,
    the last error is raised; any other error is raised at once.
    """

    def __init__(self, name: str, make: Callable[[], Sink], give_up: float = GIVE_UP_SECONDS) -> None:
        self._name, self._make, self._give_up = name, make, give_up
        self._sink: Sink | None = None
        self._deadline = math.inf
        self._hurried = threading.Event()

    def __str__(self) -> str:
        return self._name if self._sink is None else str(self._sink)

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Write one step's values."""
        self._persist(lambda sink: sink.write(step, values, wall_time))

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Hand the run's settings to a sink that takes them."""
        self._persist(
            lambda sink: sink.write_hparams(hparams, metrics) if isinstance(sink, RunSink) else None
        )

    def write_status(self, success: bool) -> None:
        """Hand the run's end to a sink that takes it."""
        self._persist(lambda sink: sink.write_status(success) if isinstance(sink, RunSink) else None)

    def flush(self) -> None:
        """Flush the sink, if it is open."""
        if self._sink is not None:
            self._persist(lambda sink: sink.flush())

    def close(self) -> None:
        """Close the sink, if it is open."""
        if self._sink is not None:
            self._sink.close()

    def hurry(self) -> None:
        """Give up soon: the run ends. Called from any thread."""
        self._deadline = time.monotonic() + HURRY_SECONDS
        self._hurried.set()

    def _persist(self, call: Callable[[Sink], None]) -> None:
        begun, wait = time.monotonic(), _FIRST_WAIT
        while True:
            try:
                if self._sink is None:
                    self._sink = self._make()
                call(self._sink)
            except OSError as error:
                if time.monotonic() + wait > min(begun + self._give_up, self._deadline):
                    raise
                if wait == _FIRST_WAIT:
                    logger.warning("%s does not answer (%s); it is tried again", self, error)
                wait = self._pause(wait)
            else:
                if wait > _FIRST_WAIT:
                    logger.warning("%s answers again after %.0f s", self, time.monotonic() - begun)
                return

    def _pause(self, seconds: float) -> float:
        """Wait, no longer than to the end of the run; return how long to wait the next time."""
        if self._hurried.is_set():
            time.sleep(min(seconds, _FIRST_WAIT))
            return 1.5 * _FIRST_WAIT
        self._hurried.wait(seconds)
        return min(2 * seconds, _LONGEST_WAIT)
