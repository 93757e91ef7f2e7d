"""Metrics of ranks that need not have the same ones: a sync that adds what a rank lacks as empty."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.metrics.roster import Merged, Roster
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync import Part, Snapshot, SyncReport, Ticket, UnevenError, exchange, snapshot
from hjepa_dist_metrics.sync.joining import Announcement

if TYPE_CHECKING:
    from hjepa_dist_metrics.metrics.base import DistributedMetric

Metrics = Mapping[str, "DistributedMetric"]
T = TypeVar("T")


@dataclass(frozen=True)
class Joined:
    """Hold what a sync of ranks with different metrics brought back.

    `metrics` are this rank's among those that were synced, `merged` the states of all of them, `parts` the
    ranks' parts and `purpose` what the ranks that announced the sync did it for. `speakers` are, by rank, the
    metrics for which that rank tells the values where some rank lacks one; None where no rank does.
    """

    metrics: Metrics
    merged: Merged
    parts: Sequence[Part]
    purpose: tuple[Any, ...]
    speakers: Sequence[Sequence[str]] | None
    channel: Channel

    def gather_values(self, formulas: Callable[[Metrics, Merged], dict[str, T]]) -> dict[str, T]:
        """Return every metric's values: the same on every rank. A collective call where a rank lacks one.

        Values that cannot be sent, pictures yet to be drawn, are those of this rank's own metrics.
        """
        own = formulas(self.metrics, self.merged)
        if self.speakers is None:
            return own
        mine = {name: self.metrics[name] for name in self.speakers[self.channel.rank]}
        told = formulas(mine, self.merged.only(mine)) if mine else {}
        for values in _gather_objects(self.channel, {tag: v for tag, v in told.items() if _travels(v)}):
            own |= values
        return own


def join(
    metrics: Metrics, everything: Metrics, roster: Roster, taken: Snapshot, channel: Channel, ticket: Ticket
) -> tuple[Joined, SyncReport]:
    """Sync `metrics`, taken as `taken`, with ranks that may hold others.

    Of what the others announce this rank adds its own state where `everything` has it, else an empty one.
    """
    assert ticket.part is not None
    try:
        merged, report = exchange(taken, channel, ticket)
    except UnevenError as uneven:
        announced = uneven.announcements
    else:
        together = Merged(roster, merged)
        return Joined(metrics, together, report.parts, ticket.part.purpose, None, channel), report
    # Of what was taken, the copies alone: the training thread may be adding to the metrics by now.
    others = {name: metric for name, metric in everything.items() if name not in metrics}
    held = _states_of(others) | taken.states()
    states = {name: held.get(name, state) for each in announced for name, state in each.states.items()}
    union = Roster.of_states(states, {**everything, **metrics})
    lacks = any(name not in held for name in states)
    again = ticket._replace(part=replace(ticket.part, lacks=lacks, level=0))
    merged, report = exchange(snapshot(union.states, union.plan, copy=False), channel, again)
    own = {name: metric for name, metric in {**everything, **metrics}.items() if name in union.members}
    speakers = _speakers(announced) if any(part.lacks for part in report.parts) else None
    purpose = next((each.purpose for each in announced if each.states), ())
    return Joined(own, Merged(union, merged), report.parts, purpose, speakers, channel), report


def _states_of(metrics: Metrics) -> dict[str, State]:
    return dict(Roster.of(metrics).states)


def _speakers(announced: Sequence[Announcement]) -> list[list[str]]:
    """Return by rank the metrics that it is the first to have announced."""
    spoken: set[str] = set()
    speakers: list[list[str]] = []
    for each in announced:
        names = dict.fromkeys(name.rsplit(".", 1)[0] for name in each.states)
        speakers.append([name for name in names if name not in spoken])
        spoken |= set(names)
    return speakers


def _travels(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # whatever pickle finds in it: the value stays here
        return False
    return True


def _gather_objects(channel: Channel, value: Any) -> list[Any]:
    """Return every rank's object, in rank order."""
    data = torch.from_numpy(np.frombuffer(pickle.dumps(value), dtype=np.uint8).copy())
    sizes = channel.all_gather(torch.tensor([data.numel()], dtype=torch.int64, device="cpu"))[:, 0].tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device="cpu")
    padded[: data.numel()] = data
    gathered: Tensor = channel.all_gather(padded)
    return [pickle.loads(row[:size].numpy().tobytes()) for row, size in zip(gathered, sizes, strict=True)]
