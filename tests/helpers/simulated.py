"""Thousands of ranks in one thread: the real generators, their messages carried by a loop."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hjepa_dist_metrics.parallel.transport import LinkError
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.header import Header, Participation
from hjepa_dist_metrics.sync.manifest import Manifest, Membership
from hjepa_dist_metrics.sync.snapshot import snapshot
from hjepa_dist_metrics.sync.tree import Block, reduce
from hjepa_dist_metrics.sync.verdict import Report

FRAME = 8192


def block_of(
    rank: int,
    states: dict[str, State],
    *,
    number: int = 1,
    collection: str = "",
    manifest: Manifest | None = None,
    participation: Participation | None = None,
    asked: frozenset[str] | None = None,
    failures: dict[str, str] | None = None,
) -> Block:
    """Return the block with which a rank begins."""
    known = frozenset(name.rpartition(".")[0] for name in states)
    membership = None if participation is None else Membership(known if asked is None else asked, known)
    made = manifest or Manifest(states, membership)
    part = participation or Participation()
    payload = snapshot(states, made).payload().signed(made, rank, part.steps_done)
    header = Header.of(hash(collection), number, 0, made.digest, 1 + rank, rank, participation)

    def describe(ranks, lines, failing):
        return Report.own(number, collection, (), ranks, lines, failing)

    block = Block(header, made, payload, range(rank, rank + 1), describe)
    return block if failures is None else block.failed(describe(block.ranks, made.lines, failures))


@dataclass
class Traffic:
    """Count what one rank did."""

    rounds: int = 0
    sent: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    peers: Counter[int] = field(default_factory=Counter)


def simulate(
    blocks: list[Block], *, dead: Callable[[int, int, int], bool] = lambda rank, peer, message: False
) -> tuple[list[Block], list[Traffic]]:
    """Merge the blocks; return each rank's result and traffic.

    `dead(rank, peer, message)` says whether the message'th exchange of `rank`, with `peer`, breaks.
    """
    world = len(blocks)
    ranks: list[Generator[Any, Any, Block]] = [
        reduce(block, rank, world, np.zeros(FRAME, np.uint8)) for rank, block in enumerate(blocks)
    ]
    traffic, results = [Traffic() for _ in blocks], list[Any]([None] * world)
    waiting: list[Any] = [None] * world
    queues: dict[tuple[int, int], deque[np.ndarray]] = {}
    rooms: dict[tuple[int, int, int], np.ndarray] = {}
    ready = deque((rank, None) for rank in range(world))
    while ready:
        rank, received = ready.popleft()
        try:
            request = ranks[rank].send(received)
            while dead(rank, request.peer, traffic[rank].sent):
                traffic[rank].sent += 1
                request = ranks[rank].throw(LinkError(error_of(request.peer)))
        except StopIteration as done:
            results[rank] = done.value
            continue
        note = traffic[rank]
        note.peers[request.peer] += 1
        note.sent += 1
        if request.sent is not None:
            note.sent_bytes += len(request.sent)
            queues.setdefault((rank, request.peer), deque()).append(np.array(request.sent))
            wake(request.peer, waiting, queues, traffic, ready, rooms)
        waiting[rank] = request
        wake(rank, waiting, queues, traffic, ready, rooms)
    assert all(result is not None for result in results), "some ranks wait for a message that never comes"
    return results, traffic


def wake(rank, waiting, queues, traffic, ready, rooms) -> None:
    """Let a rank go on whose message has come."""
    request = waiting[rank]
    if request is None:
        return
    if not request.size:
        waiting[rank] = None
        ready.append((rank, np.zeros(0, dtype=np.uint8)))
        return
    queue = queues.get((request.peer, rank))
    if queue:
        sent = queue.popleft()
        assert len(sent) == request.size
        # As over a connection, messages of one size from one peer come to the same memory.
        received = rooms.setdefault((rank, request.peer, request.size), np.zeros(request.size, np.uint8))
        received[:] = sent
        traffic[rank].received_bytes += len(received)
        waiting[rank] = None
        ready.append((rank, received))


def error_of(peer: int):
    from hjepa_dist_metrics import RankFailureError

    return RankFailureError(f"rank {peer} ended", (peer,))
