"""The one reduction: recursive doubling over messages between two ranks, whose operator is the states' merge.

In round k a block of 2^k ranks exchanges frames with its neighbour and merges them, the lower block first, on
both sides alike: after log2 W rounds every rank holds the same bits. Where W is no power of two, some ranks
join their neighbours' block first and get the result last: two rounds more.

The code below is a generator for each rank that yields messages and gets what the peer sent: what carries
them may be a connection, a queue between threads, or a loop over sixteen thousand ranks.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from hjepa_dist_metrics.errors import RankFailureError
from hjepa_dist_metrics.parallel.transport import LinkError
from hjepa_dist_metrics.sync.header import SIZE, DamagedHeaderError, Header
from hjepa_dist_metrics.sync.manifest import ConflictError, Lines, Manifest
from hjepa_dist_metrics.sync.payload import Bytes, MergeError, Payload
from hjepa_dist_metrics.sync.verdict import Report

_LENGTH = struct.Struct("=q")
_NOTHING = np.zeros(0, dtype=np.uint8)


class Exchange(NamedTuple):
    """Ask for a message each way: `sent` (or None) to `peer`, and `size` bytes (or 0) from it."""

    peer: int
    sent: Bytes | None
    size: int


Messages = Generator[Exchange, Bytes, "Block"]
Trade = Generator[Exchange, Bytes, bytes]


class Step(NamedTuple):
    """Name a rank's part in one round: with which peer, whether `lower` than it, and the block after it.

    `way` is 0 for an exchange, 1 to send the result to the peer, -1 to get it.
    """

    peer: int
    lower: bool
    ranks: range
    way: int = 0


@functools.lru_cache(maxsize=64)
def steps(rank: int, world_size: int) -> tuple[Step, ...]:
    """Return a rank's rounds in their order."""
    return tuple(_steps(rank, world_size))


def _steps(rank: int, world_size: int) -> Iterator[Step]:
    core = 1 << (world_size.bit_length() - 1)
    paired = 2 * (world_size - core)  # ranks that share a place among the `core`
    everyone = range(world_size)
    if rank < paired:
        pair = range(rank & ~1, (rank | 1) + 1)
        yield Step(rank ^ 1, rank % 2 == 0, pair)
        if rank % 2:
            yield Step(rank ^ 1, False, everyone, -1)
            return
    place = rank // 2 if rank < paired else rank - paired // 2
    for bit in (1 << k for k in range(core.bit_length() - 1)):
        first = place & ~(2 * bit - 1)
        ranks = range(_rank_at(first, paired), _rank_at(first + 2 * bit, paired))
        yield Step(_rank_at(place ^ bit, paired), not place & bit, ranks)
    if rank < paired:
        yield Step(rank ^ 1, True, everyone, 1)


def _rank_at(place: int, paired: int) -> int:
    return 2 * place if 2 * place < paired else place + paired // 2


class Block(NamedTuple):
    """Hold what a block of ranks has merged so far; a `report` stands in the payload's place where it failed.

    `describe` returns a report of ranks that agree: it takes them, their states and their failures.
    """

    header: Header
    manifest: Manifest
    payload: Payload
    ranks: range
    describe: Callable[[range, Lines, Mapping[str, str]], Report]
    report: Report | None = None

    def failed(self, report: Report) -> Block:
        """Return the block with a report in place of numbers."""
        return self._replace(report=report, header=self.header.failing())

    def account(self, problem: str = "") -> Report:
        """Return what the block's ranks have to report."""
        failures = {"merging failed": problem} if problem else {}
        return self.report or self.describe(self.ranks, self.manifest.lines, failures)


def reduce(block: Block, rank: int, world_size: int, frame: Bytes) -> Messages:
    """Merge the blocks of all ranks; `frame` is the memory of the first message of each round."""
    paired = block.manifest
    for step in steps(rank, world_size):
        try:
            if step.way == 0:
                block = yield from _meet(block, step, frame)
            elif step.way > 0:
                yield from _give(block, step, frame, paired)
            else:
                block = yield from _take(block, step, len(frame))
        except LinkError as broken:
            error = Report.of_error(broken.error)
            block = block.failed(error if block.report is None else block.report.merge(error))
            block = block._replace(ranks=step.ranks)
            frame = np.zeros(len(frame), dtype=np.uint8)  # the last one may still be on its way
        if len(step.ranks) == 2:
            paired = block.manifest
    return block


def _meet(block: Block, step: Step, frame: Bytes) -> Messages:
    """Exchange frames with the neighbour block, and merge."""
    encoded = _encoded(block)
    block = block._replace(header=block.header.sized(len(encoded), len(encoded)))
    sent, rest = _framed(block.header, encoded, frame)
    received = yield Exchange(step.peer, sent, len(frame))
    header, theirs, union = _header(received, step), block.manifest, block.manifest
    if not block.header.agrees(header):
        return (yield from _disagree(block, step, len(frame)))
    if header.manifest != theirs.digest:
        received = received.copy()  # the next message comes to the same memory
        theirs, union, problem = yield from _unite(block.manifest, header, step, len(frame))
        if problem is not None:
            return (yield from _disagree(block, step, len(frame), problem))
    data = _inline(received, header, len(frame))
    if rest is not None or data is None:
        more = yield Exchange(step.peer, rest, 0 if data is not None else header.payload_bytes)
        data = more if data is None else data
    own, other = block.payload, Payload.decode(theirs, data)
    if union is not theirs or union is not block.manifest:
        own, other = own.lifted(block.manifest, union), other.lifted(theirs, union)
    return _merged(block, step, (own, other), header, union)


def _unite(
    own: Manifest, header: Header, step: Step, size: int
) -> Generator[Exchange, Bytes, tuple[Manifest, Manifest, str | None]]:
    """Exchange manifests; return the neighbour's, the union of both, and what stands against it on a side."""
    received, theirs, union, problem = (yield from _trade(step, size, own.encode())), own, own, ""
    try:
        theirs, union = own.joined(header.manifest, received)
    except ConflictError as conflict:
        problem = str(conflict)
    others_problem = yield from _trade(step, size, problem.encode())
    return theirs, union, problem if problem or others_problem else None


def _merged(
    block: Block, step: Step, payloads: tuple[Payload, Payload], header: Header, union: Manifest
) -> Block:
    """Return both blocks as one, this rank's payload first; a merge that fails does so on both sides."""
    lower, upper = payloads if step.lower else payloads[::-1]
    both = block.header.merge(header, union.digest)
    try:
        payload = lower.merge(union, upper)
    except MergeError as error:
        report = block.describe(step.ranks, union.lines, {"merging failed": str(error)})
        return Block(both, union, block.payload, step.ranks, block.describe).failed(report)
    return Block(both, union, payload, step.ranks, block.describe)


def _disagree(block: Block, step: Step, size: int, problem: str = "") -> Messages:
    """Exchange reports with the neighbour block, and merge those."""
    own = block.account(problem)
    other = Report.decode((yield from _trade(step, size, own.encode())))
    failed = block.failed(own.merge(other) if step.lower else other.merge(own))
    return failed._replace(ranks=step.ranks)


def _give(block: Block, step: Step, frame: Bytes, paired: Manifest) -> Generator[Exchange, Bytes, None]:
    """Send the result to the rank that joined this block; `paired` is the manifest that it knows."""
    data = _encoded(block)
    # The size of the result is not one that every rank has seen: no frame grows by it.
    sent, payload = _framed(block.header.sized(len(data)), data, frame)
    yield Exchange(step.peer, sent, 0)
    if block.report is not None:
        yield from _send(step, len(frame), block.report.encode())
        return
    if block.manifest.digest != paired.digest:
        yield from _send(step, len(frame), block.manifest.encode())
    if payload is not None:
        yield Exchange(step.peer, payload, 0)


def _take(block: Block, step: Step, size: int) -> Messages:
    """Get the result from the rank whose block this one joined."""
    received = yield Exchange(step.peer, None, size)
    header = _header(received, step)
    if header.failed:
        return block.failed(Report.decode((yield from _receive(step, size))))
    manifest = block.manifest
    if header.manifest != manifest.digest:
        received = received.copy()
        manifest, _ = manifest.joined(header.manifest, (yield from _receive(step, size)))
    data = _inline(received, header, size)
    if data is None:
        data = yield Exchange(step.peer, None, header.payload_bytes)
    payload = Payload.decode(manifest, data.copy())
    return block._replace(header=header, manifest=manifest, payload=payload)


def _header(received: Bytes, step: Step) -> Header:
    """Read the header of a frame; one that is damaged is as good as none, and ends the link."""
    try:
        return Header.read(received.data)
    except DamagedHeaderError as error:
        what = f"rank {step.peer} sent a frame that came damaged: {error}; check the network and the memory"
        raise LinkError(RankFailureError(what, (step.peer,))) from error


def _encoded(block: Block) -> Bytes:
    return block.payload.encode() if block.report is None else _NOTHING


def _framed(header: Header, data: Bytes, frame: Bytes) -> tuple[Bytes, Bytes | None]:
    """Return the first message, and the payload where that has no room in it."""
    header.write(frame.data)
    if len(data) > len(frame) - SIZE:
        return frame, data
    frame[SIZE : SIZE + len(data)] = data
    return frame, None


def _inline(received: Bytes, header: Header, size: int) -> Bytes | None:
    """Return the payload that came with the header, None where it had no room."""
    fits = header.payload_bytes <= size - SIZE
    return received[SIZE : SIZE + header.payload_bytes] if fits else None


def _trade(step: Step, size: int, data: bytes) -> Trade:
    """Exchange bytes of any length: a first message of fixed size, and what had no room in it."""
    first, rest = _cut(data, size)
    received = yield Exchange(step.peer, first, size)
    head, left = _read(received)
    if rest is None and not left:
        return head
    return head + bytes((yield Exchange(step.peer, rest, left))[:left])


def _send(step: Step, size: int, data: bytes) -> Generator[Exchange, Bytes, None]:
    first, rest = _cut(data, size)
    yield Exchange(step.peer, first, 0)
    if rest is not None:
        yield Exchange(step.peer, rest, 0)


def _receive(step: Step, size: int) -> Trade:
    head, left = _read((yield Exchange(step.peer, None, size)))
    return head + bytes((yield Exchange(step.peer, None, left))) if left else head


def _cut(data: bytes, size: int) -> tuple[Bytes, Bytes | None]:
    first, room = np.zeros(size, dtype=np.uint8), size - _LENGTH.size
    _LENGTH.pack_into(first.data, 0, len(data))
    head = np.frombuffer(data[:room], dtype=np.uint8)
    first[_LENGTH.size : _LENGTH.size + len(head)] = head
    return first, np.frombuffer(data[room:], dtype=np.uint8) if len(data) > room else None


def _read(received: Bytes) -> tuple[bytes, int]:
    """Return what the first message brought, and how many bytes are left."""
    (length,) = _LENGTH.unpack_from(received.data, 0)
    head = received[_LENGTH.size :][:length].tobytes()
    return head, length - len(head)
