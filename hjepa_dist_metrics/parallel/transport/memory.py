"""Channels between threads of one process: for ranks that are simulated."""

from __future__ import annotations

import collections
import queue
from collections.abc import Iterable

import numpy as np

from hjepa_dist_metrics.errors import RankFailureError, SyncTimeoutError
from hjepa_dist_metrics.parallel.transport.channel import (
    Bytes,
    LinkError,
    grown,
    new_frame,
)


class MemoryWorld:
    """Hold the queues between the ranks of one simulated world, and count what goes through them."""

    def __init__(self, world_size: int, timeout: float = 20.0) -> None:
        self.world_size, self.timeout = world_size, timeout
        self.messages = self.bytes = 0
        self._queues: dict[tuple[int, int], queue.SimpleQueue[Bytes]] = collections.defaultdict(
            queue.SimpleQueue
        )

    def queue(self, sender: int, receiver: int) -> queue.SimpleQueue[Bytes]:
        """Return the queue from one rank to another."""
        return self._queues.setdefault((sender, receiver), queue.SimpleQueue())


class MemoryChannel:
    """Be the `Channel` of one simulated rank."""

    def __init__(self, world: MemoryWorld, rank: int) -> None:
        self.world, self.rank, self.world_size = world, rank, world.world_size
        self.frame = new_frame()
        self._error: RankFailureError | SyncTimeoutError | None = None

    def begin(self, peers: Iterable[int], patience: str = "") -> None:
        """Raise the error of an earlier sync, if there was one."""
        if self._error is not None:
            raise self._error

    def exchange(self, peer: int, sent: Bytes | None, size: int) -> Bytes:
        """Put a copy into the peer's queue, and take what it has put into this rank's."""
        if sent is not None:
            self.world.messages += 1
            self.world.bytes += len(sent)
            self.world.queue(self.rank, peer).put(np.array(sent))
        if not size:
            return np.zeros(0, dtype=np.uint8)
        try:
            received = self.world.queue(peer, self.rank).get(timeout=self.world.timeout)
        except queue.Empty:
            text = f"rank {peer} sent nothing to rank {self.rank} within {self.world.timeout:g} s"
            raise LinkError(SyncTimeoutError(text, (peer,))) from None
        assert len(received) == size, f"expected {size} bytes of rank {peer}, got {len(received)}"
        return received

    def end(self, most_bytes: int) -> None:
        """Let the frame grow to what was needed."""
        self.frame = grown(self.frame, most_bytes)

    def close(self, error: RankFailureError | SyncTimeoutError) -> None:
        """Raise `error` at every further sync."""
        self._error = error
