"""Writing on threads of its own, with nothing lost at exit, at an exception, at SIGTERM and at SIGINT."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from hjepa_dist_metrics.sinks.base import ForkGuard, HParam, Sink
from hjepa_dist_metrics.sinks.compose import SinkGroup
from hjepa_dist_metrics.sinks.lanes import Lane
from hjepa_dist_metrics.sinks.lanes.entry import Entry, Once
from hjepa_dist_metrics.sinks.signals import SignalFlush
from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

SIGNAL_FLUSH_SECONDS = 5.0
# How long a flush, and the end of the run, wait for a place behind a network.
REMOTE_FLUSH_SECONDS = 5.0
REMOTE_CLOSE_SECONDS = 60.0
CAPACITY_BYTES = 64 << 20


class BackgroundSink:
    """Hand writes to daemon threads through bounded queues: one for local files, one for each other place.

    `write` costs the caller a few queue operations and waits for no sink. In each queue `capacity` bytes of
    numbers wait, and four times as much of pictures and distributions; beyond, the oldest pictures and then
    the oldest numbers are dropped, which is counted and said. Where files are slower than a loop without any
    training, a write waits up to half a millisecond for them.

    `flush` and `close` return when everything written before them is out; a place behind a network is
    waited for up to 5 s, at the end up to a minute. `drain` is a flush that gives up after a time. The
    interpreter's exit closes; a SIGTERM or SIGINT flushes, for at most 5 s, before the earlier handler goes
    on. In a forked child every method does nothing.
    """

    def __init__(self, sink: Sink, capacity: int = CAPACITY_BYTES) -> None:
        self._opened = sink if isinstance(sink, SinkGroup) else SinkGroup([sink])
        self._guard = ForkGuard()
        self._closed = self._told = False
        self._lanes = list(_lanes(self._opened, capacity))
        self._signals = SignalFlush(lambda: self.drain(SIGNAL_FLUSH_SECONDS))
        atexit.register(self.close)

    def __str__(self) -> str:
        return f"background writer of {', '.join(map(str, self._lanes)) or 'no sink'}"

    @property
    def failures(self) -> list[str]:
        """Return what was reported about sinks that failed or were too slow."""
        return [*self._opened.failures, *(text for lane in self._lanes for text in lane.group.failures)]

    @property
    def waiting(self) -> int:
        """Return how many writes wait, over all places."""
        return sum(lane.waiting for lane in self._lanes)

    @property
    def dropped_steps(self) -> int:
        """Return how many writes the places together have not got because they were too slow."""
        return sum(lane.dropped_steps for lane in self._lanes)

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Queue one step's values, stamped with the time of the call."""
        if not self._idle():
            now = time.time() if wall_time is None else wall_time
            self._put(Entry.of(step, dict(values), now))

    def write_later(self, step: int, make: Callable[[], Mapping[str, Value]], size: int = 0) -> None:
        """Queue a step whose values `make` returns on a writing thread, stamped with the time of the call.

        What it reads, of about `size` bytes, must not change any more. An error of `make` is reported, and
        its values are left out.
        """
        if not (self._closed or self._guard.in_child) or not self._idle():
            if len(self._lanes) == 1:
                self._lanes[0].put(Entry.later(step, make, time.time(), size))
            else:
                self._put(Entry.later(step, Once(make), time.time(), size))

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Queue the run's settings."""
        kept, tags = dict(hparams), tuple(metrics)
        self._each(lambda lane: lane.put_job(lambda: lane.group.write_hparams(kept, tags)))

    def write_status(self, success: bool) -> None:
        """Queue how the run ended."""
        self._each(lambda lane: lane.put_job(lambda: lane.group.write_status(success)))

    def flush(self) -> None:
        """Write out everything queued before: to files however long it takes, to others for 5 s."""
        self._wait_for_flush(None)

    def drain(self, timeout: float | None = None) -> bool:
        """Write out everything queued before; return whether that was done within `timeout` seconds."""
        if self._guard.in_child or any(lane.is_current for lane in self._lanes):
            return True
        if self._closed:  # a signal during `close`: wait for it
            return all(lane.join(timeout) for lane in self._lanes)
        return self._wait_for_flush(timeout)

    def close(self) -> None:
        """Write out everything queued, close the sinks, and give the signals back."""
        if self._closed or self._guard.in_child:
            return
        self._closed = True
        for lane in self._lanes:
            lane.close()
        deadline = time.monotonic() + REMOTE_CLOSE_SECONDS
        for lane in self._lanes:
            if not lane.join(None if lane.patience is None else max(deadline - time.monotonic(), 0.0)):
                lane.report_lost()
        self._signals.restore()
        atexit.unregister(self.close)

    def _wait_for_flush(self, timeout: float | None) -> bool:
        if self._guard.in_child or self._closed:
            return True
        asked = [(lane, lane.drained()) for lane in self._lanes]  # all first: they write at the same time
        begun, done = time.monotonic(), True
        for lane, wait in asked:
            limit = lane.patience if timeout is None else timeout
            if not wait(None if limit is None else max(begun + limit - time.monotonic(), 0.0)):
                done = False
                logger.error("%s did not finish within %s s: the last values may be missing", lane, limit)
        return done

    def _put(self, entry: Entry) -> None:
        copies = [entry.copy() for _ in self._lanes[1:]]  # before a thread takes the first one's values
        for lane, own in zip(self._lanes, [entry, *copies], strict=False):
            lane.put(own)

    def _each(self, call: Callable[[Lane], None]) -> None:
        if not self._idle():
            for lane in self._lanes:
                call(lane)

    def _idle(self) -> bool:
        """Return whether nothing is written any more: closed, which is said once, or a forked child."""
        if self._guard.in_child:
            return True
        if self._closed and not self._told:
            self._told = True
            logger.warning("%s is closed: what is logged after finish() or close() is not written", self)
        return self._closed


def _lanes(group: SinkGroup, capacity: int) -> Iterator[Lane]:
    """Yield a lane of the sinks that write local files, and one for each other sink."""
    local = [sink for sink in group.sinks if getattr(sink, "local", False)]
    if local:
        yield Lane(SinkGroup(local), capacity, None, "hjepa-metrics-writer")
    for sink in group.sinks:
        if sink not in local:
            yield Lane(SinkGroup([sink]), capacity, REMOTE_FLUSH_SECONDS, "hjepa-metrics-remote-writer")
