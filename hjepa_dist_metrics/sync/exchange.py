"""One checked exchange for any number of states, in at most four collectives.

1. A frame of fixed size from every rank: the header (fingerprint, sync number, error flag, sizes) and as
   much of the gathered rows as fits, which is all of them for some 500 scalar metrics. Being of fixed size,
   it cannot itself mismatch, and nothing that could is called before it has been checked.
2. The rest of the rows and the variable-size bytes, only where there are any.
3. One sum over ranks for everything that adds up: counts of histograms, sums of rows.
4. One sum over ranks for what needs 3 first: covariance triangles about the common mean, sampled rows.

Rows merge in rank order on every rank, so every rank holds the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.errors import DesyncError
from hjepa_dist_metrics.states import RowState, State
from hjepa_dist_metrics.sync.blobs import decode_blob, encode_blob
from hjepa_dist_metrics.sync.schema import Report, Schema, disagreement, exchange_reports

_MAGIC = 0x686A657061_01  # "hjepa", layout 1
_HEADER_WORDS = 8
_MOST_FRAME_BYTES = 16384
_LEAST_FRAME_BYTES = 512
_FRAME_BUDGET = 1 << 20


@dataclass(frozen=True)
class SyncReport:
    """Tell what a sync cost: collectives, bytes sent by this rank, seconds, and the rank that came last."""

    collectives: int
    sent_bytes: int
    seconds: float
    slowest_rank: int | None


@dataclass
class Ticket:
    """Carry what a sync must say besides the states: its number, local failures, and the last wait."""

    number: int
    failures: dict[str, str]
    last_wait: float = 0.0


def frame_bytes(world_size: int) -> int:
    """Return the size of the first frame: 16 KiB, less in worlds so large that a gather of it would weigh."""
    fair = _FRAME_BUDGET // world_size
    return max(_LEAST_FRAME_BYTES, min(_MOST_FRAME_BYTES, fair - fair % 8))


class _Meter:
    """Count what goes through a channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.collectives = 0
        self.sent_bytes = 0
        self.started = time.perf_counter()
        self.first_wait = 0.0

    def all_gather(self, tensor: Tensor) -> Tensor:
        before = time.perf_counter()
        gathered = self._count(self.channel.all_gather, tensor)
        if self.collectives <= 1:
            self.first_wait = time.perf_counter() - before
        return gathered

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return self._count(self.channel.all_reduce_sum, tensor)

    def _count(self, operation: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        if self.channel.world_size > 1:
            self.collectives += 1
            self.sent_bytes += tensor.numel() * tensor.element_size()
        return operation(tensor)


def exchange(
    states: Mapping[str, State], channel: Channel, ticket: Ticket
) -> tuple[dict[str, State], SyncReport]:
    """Return the states merged over the channel's ranks, and what that cost.

    `states` are host states by name. Raises the same `DesyncError` on every rank where the ranks disagree or
    one of them failed, and the channel's errors where a rank does not come.
    """
    meter = _Meter(channel)
    channel.begin()
    schema = Schema.of(states)
    ordered = [states[name] for name, _ in schema.lines]
    groups = _group(ordered)
    rows = _pack_rows(ordered, groups)
    blob = encode_blob({name: states[name].pack() for name, _ in schema.lines if _is_blob(states[name])})
    headers, gathered_rows, blobs = _gather(meter, schema, ticket, rows, blob)
    gathered = _split_rows(ordered, groups, gathered_rows)
    _raise_conflicts(schema, ordered, gathered)
    totals = _add_up(meter, [state.summed() for state in ordered])
    centred = _add_up(
        meter,
        [s.centred(channel.rank, g, t) for s, g, t in zip(ordered, gathered, totals, strict=True)],
    )
    merged = _merge_rows(ordered, groups, gathered_rows)
    for index, (name, _) in enumerate(schema.lines):
        if index in merged:
            continue
        state = ordered[index]
        if _is_blob(state):
            merged[index] = _merge_blobs(state, [tensors[name] for tensors in blobs])
        else:
            merged[index] = state.assemble(gathered[index], totals[index], centred[index])
    report = SyncReport(
        meter.collectives, meter.sent_bytes, time.perf_counter() - meter.started, _slowest(headers)
    )
    ticket.last_wait = meter.first_wait
    return {name: merged[index] for index, (name, _) in enumerate(schema.lines)}, report


def _is_blob(state: State) -> bool:
    return state.rows() is None and state.summed() is None


def _group(ordered: Sequence[State]) -> list[list[int]]:
    """Group the indices of states whose rows merge together: all row states of one class, others alone."""
    groups: dict[object, list[int]] = {}
    for index, state in enumerate(ordered):
        if isinstance(state, RowState):
            groups.setdefault(type(state).__qualname__, []).append(index)
        elif state.rows() is not None:
            groups[index] = [index]
    return list(groups.values())


def _rows_of(state: State) -> Tensor:
    rows = state.rows()
    assert rows is not None
    return rows


def _pack_rows(ordered: Sequence[State], groups: Sequence[Sequence[int]]) -> Tensor:
    blocks = [torch.cat([_rows_of(ordered[i]) for i in group], dim=1).reshape(-1) for group in groups]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.float64)


def _group_blocks(
    ordered: Sequence[State], groups: Sequence[Sequence[int]], gathered: Tensor
) -> list[tuple[Sequence[int], Tensor, list[int]]]:
    """Cut [W, n] into a block [W, fields, columns] a group, with the number of columns of each state."""
    cut, start = [], 0
    for group in groups:
        widths = [_rows_of(ordered[i]).shape[1] for i in group]
        fields = _rows_of(ordered[group[0]]).shape[0]
        stop = start + fields * sum(widths)
        cut.append((group, gathered[:, start:stop].reshape(len(gathered), fields, sum(widths)), widths))
        start = stop
    return cut


def _split_rows(ordered: Sequence[State], groups: Sequence[Sequence[int]], gathered: Tensor) -> list[Tensor]:
    split = [torch.zeros(0, dtype=torch.float64)] * len(ordered)
    for group, block, widths in _group_blocks(ordered, groups, gathered):
        for index, part in zip(group, block.split_with_sizes(widths, dim=2), strict=True):
            split[index] = part
    return split


def _merge_rows(
    ordered: Sequence[State], groups: Sequence[Sequence[int]], gathered: Tensor
) -> dict[int, State]:
    merged: dict[int, State] = {}
    for group, block, widths in _group_blocks(ordered, groups, gathered):
        first = ordered[group[0]]
        if isinstance(first, RowState):
            parts = first.merge_rows(block).split_with_sizes(widths, dim=1)
            merged.update({i: ordered[i].adopt({"data": part}) for i, part in zip(group, parts, strict=True)})
    return merged


def _raise_conflicts(schema: Schema, ordered: Sequence[State], gathered: Sequence[Tensor]) -> None:
    found = []
    for (name, _), state, rows in zip(schema.lines, ordered, gathered, strict=True):
        if not isinstance(state, RowState):
            continue
        conflicts = state.conflicts(rows)
        if conflicts is None or not bool(conflicts.any()):
            continue
        column = int(conflicts.any(dim=0).nonzero()[0])
        values = rows[:, 0, column].tolist()
        listed = ", ".join(f"{value:.9g} on rank {rank}" for rank, value in enumerate(values))
        found.append(f"{name!r} must be the same on every rank, got {listed}")
    if found:
        raise DesyncError("the ranks disagree on replicated values: " + "; ".join(found[:10]))


def _gather(
    meter: _Meter, schema: Schema, ticket: Ticket, rows: Tensor, blob: Tensor
) -> tuple[Tensor, Tensor, list[dict[str, dict[str, Tensor]]]]:
    """Run the gathering collectives: headers [W, 8], rows [W, n] and every rank's blob."""
    world = meter.channel.world_size
    frame = torch.zeros(frame_bytes(world) // 8, dtype=torch.int64)
    capacity = frame.numel() - _HEADER_WORDS
    wait = int(ticket.last_wait * 1e9)
    words = [_MAGIC, ticket.number, int(bool(ticket.failures)), *schema.digest, blob.numel(), wait, 0]
    frame[:_HEADER_WORDS] = torch.tensor(words, dtype=torch.int64)
    inline = rows[:capacity]
    frame[_HEADER_WORDS : _HEADER_WORDS + inline.numel()] = inline.view(torch.int64)
    frames = meter.all_gather(frame)
    headers = frames[:, :_HEADER_WORDS]
    _check(meter, schema, ticket, headers)
    received = frames[:, _HEADER_WORDS : _HEADER_WORDS + inline.numel()]
    sizes = headers[:, 5].tolist()
    if rows.numel() == inline.numel() and not any(sizes):
        return headers, received.contiguous().view(torch.float64), []
    rest = rows[capacity:].contiguous().view(torch.uint8)
    message = torch.zeros(rest.numel() + max(sizes), dtype=torch.uint8)
    message[: rest.numel()] = rest
    message[rest.numel() : rest.numel() + blob.numel()] = blob
    messages = meter.all_gather(message)
    overflow = messages[:, : rest.numel()].contiguous().view(torch.int64)
    everything = torch.cat([received, overflow], dim=1).view(torch.float64)
    tails = messages[:, rest.numel() :]
    return headers, everything, [decode_blob(t[:size]) for t, size in zip(tails, sizes, strict=True)]


def _check(meter: _Meter, schema: Schema, ticket: Ticket, headers: Tensor) -> None:
    """Raise on every rank unless all agree and none has failed."""
    agreed = headers[:, [0, 1, 3, 4]]
    if bool((agreed == agreed[0]).all()) and not bool(headers[:, 2].any()):
        return
    mine = Report(ticket.number, ticket.failures, lines=list(schema.lines))
    reports = exchange_reports(meter.channel, mine)
    raise disagreement(reports)


def _add_up(meter: _Meter, vectors: Sequence[Tensor | None]) -> list[Tensor]:
    """Sum vectors over ranks in one collective; none where there is nothing to add."""
    nothing = torch.zeros(0, dtype=torch.float64)
    present = [v for v in vectors if v is not None]
    if not present:
        return [nothing] * len(vectors)
    total = meter.all_reduce_sum(torch.cat(present))
    parts = iter(total.split_with_sizes([v.numel() for v in present]))
    return [nothing if v is None else next(parts) for v in vectors]


def _merge_blobs(state: State, packed: Sequence[dict[str, Tensor]]) -> State:
    merged = state.empty()
    for tensors in packed:
        merged = merged.merge(state.unpack(tensors))
    return merged


def _slowest(headers: Tensor) -> int | None:
    """Return the rank that waited least for the others in the previous sync: the one they waited for."""
    waits = headers[:, 6].numpy()
    return int(np.argmin(waits)) if len(waits) > 1 and waits.any() else None
