"""The sync of states that all merge by adding and have room in the first frame: one gather, laid out once.

Most collections hold nothing else. What such a sync takes is how many functions and objects it touches, for
after a wait all of them are met with cold caches: so memory and views are kept from one sync to the next. The
frames are those of `exchange`, so that ranks on either way understand each other.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.sync.exchange import Meter, SyncReport, merge_rows
from hjepa_dist_metrics.sync.first_gather import raise_difference
from hjepa_dist_metrics.sync.frame import Frame, Ticket, agree, split_frames, waits_of
from hjepa_dist_metrics.sync.merged import MergedStates
from hjepa_dist_metrics.sync.plan import Plan, cut
from hjepa_dist_metrics.sync.snapshot import Snapshot


class AdditiveSync:
    """Exchange the states of one plan, again and again; for one thread at a time."""

    def __init__(self, plan: Plan, world_size: int, frame: Frame) -> None:
        self.plan, self.world_size, self._frame = plan, world_size, frame
        self._shapes = [group.shape for group in plan.groups]
        self._own = [block[0] for block in cut(frame.numbers[None], self._shapes)]
        self._read(frame.tensor[None])

    @classmethod
    def of(cls, plan: Plan, world_size: int, last: Self | None) -> Self | None:
        """Return the way to sync a plan: `last` where it still fits; None where that takes an `exchange`."""
        if last is not None and last.plan is plan and last.world_size == world_size:
            return last
        if not plan.additive:
            return None
        frame = Frame(world_size)
        return cls(plan, world_size, frame) if plan.numbers <= len(frame.numbers) else None

    def exchange(self, taken: Snapshot, channel: Channel, ticket: Ticket) -> tuple[MergedStates, SyncReport]:
        """Return the states merged over the channel's ranks, and what that cost; errors as in `exchange`."""
        meter = Meter(channel)
        meter.begin()
        for own, block in zip(self._own, taken.rows(), strict=True):
            own[:] = block
        self._frame.sign(self.plan.schema, ticket)
        gathered = meter.all_gather(self._frame.tensor)
        if gathered is not self._gathered:
            self._read(gathered)
        headers = self._headers.tolist()
        if not agree(headers):
            raise_difference(channel, self.plan.schema, ticket)
        blocks = merge_rows(self.plan.groups, self._rows)
        return MergedStates(self.plan, taken.originals, blocks, {}), meter.report(waits_of(headers))

    def _read(self, gathered: Tensor) -> None:
        """Keep views of what is gathered: a channel may have the next frames come to the same memory."""
        self._gathered = gathered
        self._headers, numbers = split_frames(gathered)
        self._rows = cut(numbers, self._shapes)
