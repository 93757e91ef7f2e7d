"""One thread of a process that looks after ranks which wait for long, and says so."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from typing import Protocol

_PERIOD = 0.25


class Waiting(Protocol):
    """What is looked at, every quarter of a second."""

    def look(self, now: float) -> None:
        """Do what a wait asks for at the time `now` (`time.monotonic`)."""


_watched: weakref.WeakSet[Waiting] = weakref.WeakSet()
_thread: threading.Thread | None = None


def watch(waiting: Waiting) -> None:
    """Look after `waiting` for as long as somebody holds it."""
    global _thread
    _watched.add(waiting)
    if _thread is None:
        _thread = threading.Thread(target=_run, name="hjepa-metrics-watch", daemon=True)
        _thread.start()


def _run() -> None:
    while True:
        time.sleep(_PERIOD)
        for waiting in list(_watched):
            # Where the store is gone, the wait itself finds out, and says so.
            with contextlib.suppress(RuntimeError):
                waiting.look(time.monotonic())


def _start_over() -> None:
    global _thread
    _watched.clear()
    _thread = None


os.register_at_fork(after_in_child=_start_over)
