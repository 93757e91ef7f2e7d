"""One thread that runs syncs in the order in which they were asked for.

The order of the calls is the same on every rank, and one thread runs them one after the other, so the
collectives of two syncs never interleave, whatever the threads' timing.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

R = TypeVar("R")


class SyncHandle(Generic[R]):
    """Stand for a sync under way."""

    def __init__(self, future: Future[R]) -> None:
        self._future = future
        self.seen = False

    def done(self) -> bool:
        """Return whether the result or the error is there."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> R:
        """Wait and return the result; raise the sync's error, or TimeoutError after `timeout` seconds."""
        try:
            return self._future.result(timeout)
        finally:
            self.seen = self._future.done()


class SyncThread:
    """Run jobs in order on one daemon thread, started at the first job."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending = 0
        self._idle = threading.Condition()
        _threads.add(self)

    def submit(self, job: Callable[[], R]) -> Future[R]:
        """Queue a job and return its future."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hjepa-metrics-sync", daemon=True)
            self._thread.start()
        future: Future[R] = Future()
        with self._idle:
            self._pending += 1
        self._jobs.put((future, job))
        return future

    @property
    def busy(self) -> bool:
        """Return whether jobs are queued or running."""
        return self._pending > 0

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is queued or running; return False where that took longer than `timeout`."""
        deadline = time.monotonic() + timeout
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            try:
                future.set_result(job())
            except BaseException as error:  # a thread has nobody to raise to: the handle's owner gets it
                future.set_exception(error)
            finally:
                del future, job, item
                with self._idle:
                    self._pending -= 1
                    self._idle.notify_all()


_EXIT_SECONDS = 10.0
_threads: weakref.WeakSet[SyncThread] = weakref.WeakSet()


@atexit.register
def _drain_at_exit() -> None:
    deadline = time.monotonic() + _EXIT_SECONDS
    for thread in list(_threads):
        thread.drain(max(0.0, deadline - time.monotonic()))
