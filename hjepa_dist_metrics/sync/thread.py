"""One thread that runs syncs in the order in which they were asked for.

The order of the calls is the same on every rank, and nothing runs beside them, so the collectives of two
syncs never interleave, at any timing of the threads.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from hjepa_dist_metrics.errors import ConfigError

R = TypeVar("R")


class SyncHandle(Generic[R]):
    """Stand for a sync under way."""

    def __init__(self, future: Future[R]) -> None:
        self._future = future
        self.seen = False

    def done(self) -> bool:
        """Return whether the result or the error is there."""
        return self._future.done()

    @property
    def error(self) -> BaseException | None:
        """Return the error of a sync that is over and failed."""
        return self._future.exception() if self.done() else None

    def wait(self, timeout: float) -> bool:
        """Wait until the sync is over; return False where that took longer than `timeout` seconds."""
        self._refuse_own_thread()
        return bool(concurrent.futures.wait([self._future], max(timeout, 0.0)).done)

    def result(self, timeout: float | None = None) -> R:
        """Wait and return the result; raise the sync's error, or TimeoutError after `timeout` seconds."""
        self._refuse_own_thread()
        try:
            self._future.exception(timeout)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"the sync is still under way after {timeout:g} s") from None
        self.seen = True
        return self._future.result()

    def _refuse_own_thread(self) -> None:
        if not self.done():
            refuse_sync_thread()


class SyncThread:
    """Run jobs in order on one daemon thread, started at the first job.

    A fork gets a fresh one: the thread and the jobs stay with the parent.
    """

    def __init__(self) -> None:
        self._start_over()
        _threads.add(self)

    def _start_over(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending = 0
        self._idle = threading.Condition()

    def submit(self, job: Callable[[], R]) -> Future[R]:
        """Queue a job and return its future."""
        future: Future[R] = Future()
        with self._idle:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hjepa-metrics-sync", daemon=True)
                self._thread.start()
            self._pending += 1
            self._jobs.put((future, job))
        return future

    def run(self, job: Callable[[], R]) -> R:
        """Run a job in order and return its result: here where nothing is before it, else on the thread."""
        if not self.busy:
            return job()
        refuse_sync_thread()
        return self.submit(job).result()

    @property
    def busy(self) -> bool:
        """Return whether jobs are queued or running."""
        return self._pending > 0

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is queued or running; return False where that took longer than `timeout`."""
        refuse_sync_thread()
        with self._idle:
            return self._idle.wait_for(lambda: self._pending == 0, timeout)

    def _run(self) -> None:
        jobs, idle = self._jobs, self._idle
        while True:
            future, job = jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:  # a thread has nobody to raise to: the handle's owner gets it
                future.set_exception(error)
            finally:
                del future, job
                with idle:
                    self._pending -= 1
                    idle.notify_all()


def refuse_sync_thread() -> None:
    """Raise ConfigError on a thread that runs syncs: a wait for one there would never end."""
    if any(thread._thread is threading.current_thread() for thread in list(_threads)):
        raise ConfigError(
            "a sync cannot be waited for on the thread that runs the syncs: on_alert, or a formula, called "
            "compute, state_dict, flush or close. Note what is to be done, and do it in the training loop"
        )


_EXIT_SECONDS = 10.0
_threads: weakref.WeakSet[SyncThread] = weakref.WeakSet()


@atexit.register
def drain_syncs(seconds: float = _EXIT_SECONDS) -> None:
    """Wait for all syncs under way, for as long as a process that ends may."""
    deadline = time.monotonic() + seconds
    for thread in list(_threads):
        thread.drain(max(0.0, deadline - time.monotonic()))


def _start_over_after_fork() -> None:
    for thread in list(_threads):
        thread._start_over()


os.register_at_fork(after_in_child=_start_over_after_fork)
