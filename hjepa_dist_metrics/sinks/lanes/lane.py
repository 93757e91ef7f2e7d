"""One thread that writes to the sinks of one kind of place, and the queue before it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from hjepa_dist_metrics.sinks.compose import SinkGroup
from hjepa_dist_metrics.sinks.lanes.entry import Entry, Make
from hjepa_dist_metrics.sinks.lanes.queue import Job, Room, WriteQueue
from hjepa_dist_metrics.sinks.lanes.retrying import Retrying
from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

# How long a caller lets files catch up where half their queue is full; a disk that hangs costs no more.
_CATCH_UP_SECONDS = 0.0005
_MOST_SAID = 20


class Lane:
    """Write entries to a group of sinks on a daemon thread; nothing here waits for the sinks but `drain`.

    `patience` is how long `drain` and `close` wait without a limit of the caller's own, None for as long as
    it takes: files are waited for, a network only for so long.
    """

    def __init__(self, group: SinkGroup, capacity: int, patience: float | None, name: str) -> None:
        self.group, self.patience = group, patience
        self._queue = WriteQueue(capacity)
        self._unmade: set[str] = set()
        self._drops = False  # whether it drops, since it was last said
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return str(self.group)

    @property
    def waiting(self) -> int:
        """Return how many writes wait."""
        return len(self._queue)

    @property
    def dropped_steps(self) -> int:
        """Return how many writes were dropped because the queue was full."""
        return self._queue.dropped_steps

    @property
    def is_current(self) -> bool:
        """Return whether the caller is the lane's own thread."""
        return threading.current_thread() is self._thread

    def put(self, entry: Entry) -> None:
        """Queue an entry; where the queue is full, the oldest goes."""
        room = self._queue.put(entry)
        if room:
            self._crowded(room)

    def _crowded(self, room: Room) -> None:
        if self.patience is None:
            time.sleep(_CATCH_UP_SECONDS)
        if room is Room.NONE and not self._drops:
            self._drops = True
            logger.warning(
                "%s is slower than values come: its queue is full, and the oldest are dropped", self.group
            )

    def put_job(self, job: Job) -> None:
        """Queue a job, which is never dropped."""
        self._queue.put_job(job)

    def drained(self) -> Callable[[float | None], bool]:
        """Ask for a flush behind everything queued; return what waits for it, for a time or without limit."""
        # A plain lock, not an Event: a signal handler may wait for it while its thread holds a Python lock.
        done = threading.Lock()
        done.acquire()
        self._queue.put_job(self.group.flush)
        self._queue.put_job(done.release)
        return lambda timeout: done.acquire(timeout=-1 if timeout is None else timeout)

    def close(self) -> None:
        """Ask the thread to write everything out, close the sinks and end."""
        for sink in self.group.sinks:
            if isinstance(sink, Retrying):
                sink.hurry()
        self._queue.put_job(self.group.close)
        self._queue.put_job(_end)

    def join(self, timeout: float | None) -> bool:
        """Wait until the thread has ended; return whether it did."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def report_lost(self) -> None:
        """Say how much a place that hangs has not taken."""
        self._say(f"{len(self._queue)} writes were not taken in time and are lost at {self.group}")

    def _work(self) -> None:
        while (taken := self._queue.take()) is not _end:
            try:
                if isinstance(taken, Entry):
                    self._write(taken)
                else:
                    taken()
            except Exception as error:  # the group reports its sinks' errors; this is one of ours
                logger.error("writer of %s failed: %s: %s", self.group, type(error).__name__, error)
        self._report_dropped()

    def _write(self, entry: Entry) -> None:
        makes, entry.small = [entry.small, self._queue.take_large(entry)], None
        values: dict[str, Value] = {}
        for make in makes:
            values.update(self._made(make, entry.step))
        if values:
            self.group.write(entry.step, values, entry.wall_time)
        if not len(self._queue):
            self._report_dropped()

    def _made(self, make: Make | None, step: int) -> dict[str, Value]:
        try:
            return {} if make is None else dict(make())
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            if what not in self._unmade and len(self._unmade) < _MOST_SAID:
                self._unmade.add(what)
                logger.error("what was logged at step %d is left out, as later of its kind: %s", step, what)
            return {}

    def _report_dropped(self) -> None:
        if self._drops:
            self._drops = False
            steps, values = self._queue.dropped_steps, self._queue.dropped_values
            self._say(
                f"{self.group} was too slow: so far {steps} writes and {values} pictures or distributions "
                "were dropped, the newest numbers kept"
            )

    def _say(self, message: str) -> None:
        self.group.failures.append(message)
        logger.error(message)


def _end() -> None:
    """Mark the end of a lane's work."""
