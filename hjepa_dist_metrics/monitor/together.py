"""Ranks that are at different points of a run: those that have nothing left to log follow the others.

One rule for every uneven course: whoever waits, at the end of an epoch or of the run, joins in whatever the
others sync, adds what it has and nothing where it has nothing, and waits for as long as they live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hjepa_dist_metrics.metrics import MetricCollection
from hjepa_dist_metrics.metrics.joined import Joined
from hjepa_dist_metrics.metrics.merging import Joining
from hjepa_dist_metrics.sync import Part, SyncHandle

# How near to its end a rank is that waits for the others.
EPOCH_END, RUN_END = 1, 2


@dataclass(frozen=True)
class Log:
    """Name the step at which a sync's values are written, and the cadence families that made it due."""

    step: int
    due: tuple[str, ...] = ()


class Together:
    """Sync a collection between ranks that need not have the same metrics, or be at the same step.

    `taken` counts the steps of this rank. `publish` writes what a log brought back, on the sync's thread;
    `followed` is called after each log of the others in which this rank only followed.
    """

    def __init__(
        self,
        collection: MetricCollection,
        publish: Callable[[Joined], None],
        followed: Callable[[Log, Joined], None],
    ) -> None:
        self._collection, self._publish, self._followed = collection, publish, followed
        self.taken = 0

    def part(self) -> Part:
        """Return the part of a rank that is under way."""
        return Part(taken=self.taken)

    def log(self, names: Sequence[str], log: Log, *, wait: bool, last: bool) -> SyncHandle[None] | None:
        """Sync the metrics `names` and publish them; in the background unless told to `wait`.

        In the run's `last` log, for which the caller waits, ranks may name different ones: each adds what it
        has of all.
        """
        metrics = self._collection if last else {name: self._collection[name] for name in names}
        joining = Joining(Part(taken=self.taken, purpose=(log,)), metrics)
        if wait:
            self._collection.join_now(self._publish, names, joining)
            return None
        return self._collection.join(self._publish, names, joining)

    def wait(self, level: int, step: int, pending: bool) -> tuple[int, bool]:
        """Follow the others until every rank is at `level` or beyond it.

        Return the largest of the ranks' coming steps, and whether any rank has something `pending`.
        """
        if self._collection.context.world_size == 1:
            return step, pending
        while True:
            part = Part(level, self.taken, step, pending)
            joined = self._collection.join(self._take, (), Joining(part, self._collection)).result()
            if joined.purpose:
                self._followed(joined.purpose[0], joined)
            elif min(each.level for each in joined.parts) == level:
                return max(each.step for each in joined.parts), any(each.pending for each in joined.parts)

    def _take(self, joined: Joined) -> Joined:
        """Publish a log of the others; a checkpoint of theirs has no purpose here."""
        if joined.purpose:
            self._publish(joined)
        return joined
