"""Runs that take turns of a few steps in one process: what else the machine does meets all of them alike.

Two runs one after the other cannot be compared to a few percent where a machine is faster in one minute than
in the next. Each run has a thread of its own, of which one at a time goes on.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

R = TypeVar("R")


class Turns:
    """Let one of `runners` go on at a time, in their order, each until it passes the turn on or leaves."""

    def __init__(self, runners: int) -> None:
        self._changed = threading.Condition()
        self._queue = list(range(runners))

    def wait(self, runner: int) -> None:
        """Wait for the runner's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue[0] == runner)

    def pass_on(self, runner: int) -> None:
        """Give the turn to the next, and wait for it to come back."""
        with self._changed:
            self._queue.append(self._queue.pop(0))
            self._changed.notify_all()
        self.wait(runner)

    def leave(self, runner: int) -> None:
        """Give the turn to the next for good."""
        with self._changed:
            self._queue.remove(runner)
            self._changed.notify_all()


class Turn:
    """Measure a runner while it has the turn; `tick` ends each of its steps.

    `steps` are the seconds of every step but the first. `seconds` are processor seconds of the runner's own
    thread, of all threads, and of processes that ended.
    """

    def __init__(self, turns: Turns, runner: int, length: int) -> None:
        self._turns, self._runner, self._length = turns, runner, length
        self.steps: list[float] = []
        self.seconds = [0.0, 0.0, 0.0]
        self._ticks = 0
        self._resumed = 0.0

    def begin(self) -> None:
        """Wait for the first turn."""
        self._turns.wait(self._runner)
        self._resume()

    def tick(self) -> None:
        """End a step, and the turn after every `length` of them."""
        now = time.perf_counter()
        if self._ticks:
            self.steps.append(now - self._resumed)
        self._resumed = now
        self._ticks += 1
        if self._ticks % self._length == 0:
            self._pause()
            self._turns.pass_on(self._runner)
            self._resume()

    def end(self) -> None:
        """Leave the others their turns."""
        self._pause()
        self._turns.leave(self._runner)

    def _resume(self) -> None:
        self._marks = processor_seconds()
        self._resumed = time.perf_counter()

    def _pause(self) -> None:
        spent = zip(self.seconds, processor_seconds(), self._marks, strict=True)
        self.seconds = [total + now - mark for total, now, mark in spent]


def processor_seconds() -> tuple[float, float, float]:
    """Return the seconds of this thread, of all threads, and of processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time(), time.process_time(), children.ru_utime + children.ru_stime


def in_turns(bodies: Sequence[Callable[[Turn], R]], length: int) -> list[R]:
    """Run each body on a thread of its own, in turns of `length` steps; return what they return.

    The first one's first turn comes first. A body calls `tick` at the end of each of its steps.
    """
    turns = Turns(len(bodies))

    def run(runner: int, body: Callable[[Turn], R]) -> R:
        torch.set_num_threads(1)  # each thread has a number of its own
        turn = Turn(turns, runner, length)
        turn.begin()
        try:
            return body(turn)
        finally:
            turn.end()

    with ThreadPoolExecutor(len(bodies)) as threads:
        return [done.result() for done in [threads.submit(run, i, body) for i, body in enumerate(bodies)]]
