"""One checked exchange for any number of states, in at most four collectives.

1. A frame of fixed size from every rank: the header (fingerprint, sync number, error flag, sizes) and as
   much of the gathered rows as fits, which is all of them for some 500 scalar metrics. Being of fixed size,
   it cannot itself mismatch, and nothing that could is called before it has been checked.
2. The rest of the rows and the variable-size bytes, only where there are any.
3. One sum over ranks for everything that adds up: counts of histograms, pivots of covariances.
4. One sum over ranks for what needs 3 first: covariance triangles about the pivot, sampled rows.

Where spectra of covariances are worth sharing, each is worked out on one rank and added up over all: a fifth,
for which 2 is made part of 3. Rows merge in rank order on every rank, so every rank holds the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.blobs import encode_blob
from hjepa_dist_metrics.sync.first_gather import gather_frame
from hjepa_dist_metrics.sync.frame import Ticket
from hjepa_dist_metrics.sync.joining import Announcement, Part
from hjepa_dist_metrics.sync.merged import MergedStates
from hjepa_dist_metrics.sync.others import merge_others, travels_as_bytes
from hjepa_dist_metrics.sync.plan import Floats, Plan, RowGroup, cut
from hjepa_dist_metrics.sync.schema import raise_conflicts
from hjepa_dist_metrics.sync.snapshot import Snapshot


class SyncReport(NamedTuple):
    """Tell what a sync cost: collectives, bytes sent by this rank, seconds, seconds waited for the others.

    `last_waits` are the ns that each rank waited for the others in the sync before.
    """

    collectives: int
    sent_bytes: int
    seconds: float
    waited: float
    last_waits: Sequence[int] = ()
    parts: Sequence[Part] = ()

    @property
    def slowest_rank(self) -> int | None:
        """Return the rank for which the others waited in the sync before: it waited least itself."""
        waits = self.last_waits
        return waits.index(min(waits)) if len(waits) > 1 and any(waits) else None


class Meter:
    """Count what goes through a channel in one sync."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.rank, self.world_size = channel.rank, channel.world_size
        self.collectives = 0
        self.sent_bytes = 0
        self.started = time.perf_counter()
        self.waited = 0.0

    def begin(self, patient: bool = False) -> None:
        """Do what the channel does."""
        self.channel.begin(patient)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Do what the channel does, and count it."""
        return self._count(self.channel.all_gather, tensor)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Do what the channel does, and count it."""
        return self._count(self.channel.all_reduce_sum, tensor)

    def report(self, last_waits: Sequence[int], parts: Sequence[Part] = ()) -> SyncReport:
        """Return what the sync has cost until now."""
        seconds = time.perf_counter() - self.started
        return SyncReport(self.collectives, self.sent_bytes, seconds, self.waited, last_waits, parts)

    def _count(self, operation: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        if self.world_size == 1:
            return operation(tensor)
        self.collectives += 1
        self.sent_bytes += tensor.numel() * tensor.element_size()
        before = time.perf_counter()
        result = operation(tensor)
        if self.collectives == 1:
            self.waited = time.perf_counter() - before
        return result


def exchange(taken: Snapshot, channel: Channel, ticket: Ticket) -> tuple[MergedStates, SyncReport]:
    """Return the states merged over the channel's ranks, and what that cost.

    Raises the same `DesyncError` on every rank where the ranks disagree or one of them failed, and the
    channel's errors where a rank does not come. `UnevenError` as in `gather_frame`.
    """
    plan, meter = taken.plan, Meter(channel)
    meter.begin(patient=ticket.part is not None and ticket.part.level > 0)
    others = [taken.others[name] for name in plan.others]
    of_groups = taken.rows()  # first: it waits for the copies from devices, the others' too
    # The rows that sums need come first: where the frame has not room for all, it has for them.
    heads = [rows.numpy() for state in others if (rows := state.rows()) is not None]
    blocks = [*heads, *of_groups]
    sent = _flat(blocks)
    blob = encode_blob(_bytes_of(plan, others)) if others else None
    gathered = gather_frame(
        meter, plan.schema, ticket, sent, blob, lambda part: Announcement.of(taken.originals, part)
    )
    shapes = [block.shape for block in blocks]
    all_rows, merged_others = merge_others(meter, plan, others, shapes[: len(heads)], gathered)
    grouped = cut(all_rows, shapes)[len(heads) :]
    merged_rows = merge_rows(plan.groups, grouped, [part.taken for part in gathered.parts])
    merged = MergedStates(plan, taken.originals, merged_rows, merged_others)
    return merged, meter.report(gathered.waits, gathered.parts)


def _flat(blocks: Sequence[Floats]) -> Floats:
    if len(blocks) == 1:
        return blocks[0].reshape(-1)
    return np.concatenate([block.reshape(-1) for block in blocks]) if blocks else np.zeros(0)


def _bytes_of(plan: Plan, others: Sequence[State]) -> dict[str, dict[str, Tensor]]:
    named = zip(plan.others, others, strict=True)
    return {name: state.pack() for name, state in named if travels_as_bytes(state)}


def merge_rows(
    groups: Sequence[RowGroup], gathered: Sequence[Floats], taken: Sequence[int] = ()
) -> list[Floats]:
    """Return each group's merged block; raise where ranks contradict each other.

    `taken` counts the steps of each rank: what all have alike is told by those that took the most.
    """
    pairs = [*zip(groups, gathered, strict=True)]
    others = {i: torch.from_numpy(rows) for i, (group, rows) in enumerate(pairs) if not group.kind.additive}
    if others:
        if len(set(taken)) > 1:
            counts = torch.tensor(taken, device="cpu")
            others = {i: groups[i].kind.without_overtaken(rows, counts) for i, rows in others.items()}
        if len(gathered[0]) > 1:
            raise_conflicts([(groups[i], rows) for i, rows in others.items()])
    with np.errstate(all="ignore"):  # infinities cancel to NaN: a finding, which is reported as such
        return [
            group.kind.merge_rows(others[i]).numpy() if i in others else np.add.reduce(rows)
            for i, (group, rows) in enumerate(pairs)
        ]
