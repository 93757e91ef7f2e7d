"""A bounded queue of writes that never blocks: where it is full the newest numbers stay."""

from __future__ import annotations

import enum
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from hjepa_dist_metrics.sinks.lanes.entry import Entry, Make

Job = Callable[[], None]

_LOOK_SECONDS = 0.1


class Room(enum.IntEnum):
    """How much room a queue has."""

    PLENTY = 0
    LITTLE = 1
    NONE = 2


class WriteQueue:
    """Pass entries and jobs from any thread to one that takes them, in order.

    At most `capacity` bytes of small values wait, and four times as many of large ones (pictures,
    distributions). Beyond, the oldest large values are dropped, and then the oldest entries; the newest large
    value is always kept. Jobs are never dropped. `dropped_steps` and `dropped_values` count entries that were
    dropped whole, and large parts.

    A job wakes the taking thread, and so does a queue that is half full. An entry alone does not: that thread
    looks for entries every tenth of a second, because waking it costs the caller several times what queueing
    does.

    A signal handler may call `put_job` and wait for the taking thread while the code that it interrupted is
    in any of these methods. So `put_job` and `take` use no lock: they rest on calls that are atomic in C.
    """

    def __init__(self, capacity: int) -> None:
        self._small_limit, self._large_limit, self._plenty = capacity, 4 * capacity, capacity // 2
        self._waiting: deque[Entry | Job] = deque()
        self._rescued: deque[Job] = deque()  # jobs that stood before entries that were dropped
        self._large: deque[Entry] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._callers = threading.RLock()  # a handler may put an entry too, while its thread puts one
        # Bytes so far: put and dropped by callers, under their lock; taken by the one thread that takes.
        self._small_in = self._small_taken = self._large_in = self._large_taken = 0
        self.dropped_steps = self.dropped_values = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._rescued)

    def put(self, entry: Entry) -> Room:
        """Add an entry; return how much room is left, `Room.NONE` where older ones were dropped for it."""
        with self._callers:
            self._small_in += entry.small_bytes
            self._waiting.append(entry)
            if not entry.large and self._small_in - self._small_taken <= self._plenty:
                return Room.PLENTY
            if self._wake.empty():
                self._wake.put(None)
            return self._make_room(entry)

    def _make_room(self, entry: Entry) -> Room:
        dropped = False
        if entry.large:
            self._large_in += entry.large_bytes
            while self._large and not self._large[0].large:
                self._large.popleft()  # written long ago
            self._large.append(entry)
        while self._large_in - self._large_taken > self._large_limit and len(self._large) > 1:
            dropped |= self._drop_large()
        while self._small_in - self._small_taken > self._small_limit and len(self._waiting) > 1:
            dropped |= self._drop_oldest()
        if dropped:
            return Room.NONE
        crowded = self._small_in - self._small_taken > self._plenty
        return Room.LITTLE if crowded else Room.PLENTY

    def put_job(self, job: Job) -> None:
        """Add a job: what was put before is taken before."""
        self._waiting.append(job)
        self._wake.put(None)

    def take(self) -> Entry | Job:
        """Return the next entry or job; waits for one. Small values of an entry are no more in the queue."""
        while True:
            for source in (self._rescued, self._waiting):
                with suppress(IndexError):
                    taken = source.popleft()
                    if isinstance(taken, Entry):
                        self._small_taken += taken.small_bytes
                    return taken
            with suppress(queue.Empty):
                self._wake.get(timeout=_LOOK_SECONDS)

    def take_large(self, entry: Entry) -> Make | None:
        """Return what makes the entry's large values, None where it has none or they were dropped."""
        if not entry.large:
            return None
        with suppress(IndexError):
            make = entry.large.pop()
            self._large_taken += entry.large_bytes
            return make
        return None

    def _drop_large(self) -> bool:
        """Drop the oldest large part that nobody has taken."""
        entry = self._large.popleft()
        return self._take_back_large(entry)

    def _take_back_large(self, entry: Entry) -> bool:
        """Drop an entry's large part; return False where it has none, or it is written or being written."""
        if not entry.large:
            return False
        try:
            entry.large.pop()
        except IndexError:
            return False
        self._large_in -= entry.large_bytes
        self.dropped_values += 1
        return True

    def _drop_oldest(self) -> bool:
        try:
            oldest = self._waiting.popleft()
        except IndexError:
            return False
        if not isinstance(oldest, Entry):
            self._rescued.append(oldest)
            return False
        self._small_in -= oldest.small_bytes
        self._take_back_large(oldest)
        self.dropped_steps += 1
        return True
