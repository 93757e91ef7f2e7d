"""Writing on a thread of its own, with nothing lost at exit, at an exception, at SIGTERM and at SIGINT."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from hjepa_dist_metrics.sinks.base import ForkGuard, HParam, Sink
from hjepa_dist_metrics.sinks.compose import SinkGroup
from hjepa_dist_metrics.sinks.signals import SignalFlush
from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

SIGNAL_FLUSH_SECONDS = 5.0


class BackgroundSink:
    """Hand writes to one daemon thread through a bounded queue.

    `write` costs the caller one queue put; when `capacity` writes wait, it blocks until there is room, so
    nothing is lost and memory stays bounded. `flush` and `close` return when everything written before them
    is out; `drain` is a flush that gives up after a time. The interpreter's exit closes; a
    SIGTERM or SIGINT flushes, for at most 5 s, before whatever handled it before goes on. In a forked
    child every method does nothing.
    """

    def __init__(self, sink: Sink, capacity: int = 256) -> None:
        self._group = sink if isinstance(sink, SinkGroup) else SinkGroup([sink])
        self._guard = ForkGuard()
        self._closed = self._told = False
        # SimpleQueue's put and get are single C calls: a signal handler that runs between two bytecodes of
        # a caller never finds it locked, which queue.Queue, with its Python locks, cannot promise.
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(capacity):
            self._room.put(None)
        self._thread = threading.Thread(target=self._work, name="hjepa-metrics-writer", daemon=True)
        self._thread.start()
        self._signals = SignalFlush(lambda: self.drain(SIGNAL_FLUSH_SECONDS))
        atexit.register(self.close)

    def __str__(self) -> str:
        return f"background writer of {self._group}"

    @property
    def failures(self) -> list[str]:
        """Return what was reported about sinks that failed."""
        return self._group.failures

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Queue one step's values, stamped with the time of the call."""
        now = time.time() if wall_time is None else wall_time
        kept = dict(values)
        self._submit(lambda: self._group.write(step, kept, now))

    def write_later(self, step: int, make: Callable[[], Mapping[str, Value]]) -> None:
        """Queue a step whose values `make` returns on the writing thread, stamped with the time of the call.

        What it reads must not change any more. An error of `make` is reported, and the step is left out.
        """
        now = time.time()
        self._submit(lambda: self._group.write(step, make(), now))

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Queue the run's settings."""
        kept, tags = dict(hparams), tuple(metrics)
        self._submit(lambda: self._group.write_hparams(kept, tags))

    def write_status(self, success: bool) -> None:
        """Queue how the run ended."""
        self._submit(lambda: self._group.write_status(success))

    def flush(self) -> None:
        """Write out everything queued before, however long it takes."""
        self.drain()

    def drain(self, timeout: float | None = None) -> bool:
        """Write out everything queued before; return whether that was done within `timeout` seconds."""
        if self._guard.in_child or threading.current_thread() is self._thread:
            return True
        if self._closed:  # a signal during `close`: wait for it
            self._thread.join(timeout)
            return not self._thread.is_alive()
        done = threading.Lock()  # a plain lock, not an Event, for the reason given at `_jobs`
        done.acquire()
        # no `_room` token: a flush may come from a signal handler while the caller below waits for one
        self._jobs.put(self._group.flush)
        self._jobs.put(done.release)
        if done.acquire(timeout=-1 if timeout is None else timeout):
            return True
        logger.error("%s did not finish within %s s: the last values may be missing", self, timeout)
        return False

    def close(self) -> None:
        """Write out everything queued, close the sinks, and give the signals back."""
        if self._idle():
            return
        self._closed = True
        self._jobs.put(self._group.close)
        self._jobs.put(None)
        self._thread.join()
        self._signals.restore()
        atexit.unregister(self.close)

    def _tell_of_lost(self) -> None:
        if not self._guard.in_child and not self._told:
            self._told = True
            logger.warning("%s is closed: what is logged after finish() or close() is not written", self)

    def _idle(self) -> bool:
        return self._closed or self._guard.in_child

    def _submit(self, job: Callable[[], None]) -> None:
        if self._idle():
            self._tell_of_lost()
            return
        self._room.get()
        self._jobs.put(lambda: self._run(job))

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            self._room.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # the group reports its sinks' errors; this is one of ours
                logger.error("%s failed: %s: %s", self, type(error).__name__, error)
