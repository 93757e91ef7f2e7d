"""Times of the phases of a step: CUDA events that are read when they are ready, a host clock elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Report = Callable[[str, float], None]


@dataclass
class PhaseClock:
    """Time phases of the training step without making the host wait for the device.

    On CUDA a phase is two events on the current stream; `collect` hands out the times of those that have
    completed. On other devices the host's clock is right, since work there is done when the call returns.
    """

    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    _done: list[tuple[str, float]] = field(default_factory=list)
    _pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=deque)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body as the phase `name`."""
        if self.device.type == "cuda":
            start = self._event()
            yield
            self._pending.append((name, start, self._event()))
        else:
            begun = self.clock()
            yield
            self._done.append((name, self.clock() - begun))

    def collect(self, report: Report) -> None:
        """Report the phases whose times are known by now, each name's times of this call added up."""
        while self._pending and _is_over(self._pending[0][2]):
            name, start, end = self._pending.popleft()
            self._done.append((name, start.elapsed_time(end) / 1e3))
        totals: dict[str, float] = {}
        for name, seconds in self._done:
            totals[name] = totals.get(name, 0.0) + seconds
        self._done.clear()
        for name, seconds in totals.items():
            report(name, seconds)

    def _event(self) -> torch.cuda.Event:
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event


def _is_over(event: torch.cuda.Event) -> bool:
    over: bool = event.query()  # type: ignore[no-untyped-call]
    return over
