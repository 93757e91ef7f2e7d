"""What a sync cost."""

from __future__ import annotations

import time
from typing import NamedTuple

from hjepa_dist_metrics.parallel.transport import Bytes, Channel, LinkError
from hjepa_dist_metrics.sync.tree import Block, reduce, steps


class SyncReport(NamedTuple):
    """Hold what a sync cost this rank: rounds, messages, bytes each way, seconds, those of them in messages.

    `slowest_rank` is the one for which the others waited in the sync before: it waited least itself.
    """

    rounds: int
    messages: int
    sent_bytes: int
    received_bytes: int
    seconds: float
    waited: float
    slowest_rank: int | None = None


class Meter:
    """Send messages through a channel, and count them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.messages = self.sent_bytes = self.received_bytes = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def exchange(self, peer: int, sent: Bytes | None, size: int) -> Bytes:
        """Forward to the channel and record the message's cost."""
        before = time.perf_counter()
        try:
            return self.channel.exchange(peer, sent, size)
        finally:
            self.waited += time.perf_counter() - before
            self.messages += 1
            self.sent_bytes += 0 if sent is None else len(sent)
            self.received_bytes += size

    def report(self, slowest_rank: int | None) -> SyncReport:
        """Return the cost until now."""
        rounds = len(steps(self.channel.rank, self.channel.world_size))
        counts = rounds, self.messages, self.sent_bytes, self.received_bytes
        return SyncReport(*counts, time.perf_counter() - self.started, self.waited, slowest_rank)


def run(block: Block, meter: Meter) -> Block:
    """Merge a rank's block with those of all others."""
    channel = meter.channel
    messages = reduce(block, channel.rank, channel.world_size, channel.frame)
    try:
        request = next(messages)
        while True:
            try:
                received = meter.exchange(*request)
            except LinkError as broken:
                request = messages.throw(broken)
            else:
                request = messages.send(received)
    except StopIteration as done:
        merged: Block = done.value
        return merged
