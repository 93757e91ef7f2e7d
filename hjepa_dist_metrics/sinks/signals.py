"""Run something when the job is told to stop, then let the previous handler have the signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from hjepa_dist_metrics.sinks.base import ForkGuard


class SignalFlush:
    """Call `flush` at SIGTERM and SIGINT, then do what would have happened without this object.

    Handlers can be set in the main thread only: made elsewhere, the object does nothing. A signal that is
    ignored, or handled outside Python, is left alone.
    """

    def __init__(self, flush: Callable[[], object]) -> None:
        self._flush = flush
        self._guard = ForkGuard()
        self._active = True
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._install(number)

    def restore(self) -> None:
        """Give the signals back; where another handler was set on top since, stay below it, inert."""
        self._active = False
        if threading.current_thread() is not threading.main_thread():
            return
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, previous)

    def _install(self, number: int) -> None:
        previous = signal.getsignal(number)
        if previous is None or previous is signal.SIG_IGN:
            return
        self._previous[number] = previous
        signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._active and not self._guard.in_child:
            self._flush()
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        else:  # the default action, which only the operating system can take
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
