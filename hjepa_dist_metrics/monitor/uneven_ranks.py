"""Ranks that are at different points of a run: those that have nothing left to log follow the others.

One rule for every uneven course: whoever waits, at the end of an epoch or of the run, takes part in whatever
the others sync, adds what it has and nothing where it has nothing, and waits for as long as they live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from hjepa_dist_metrics.metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.metrics.optimization.layouts.copy_check import Rows
from hjepa_dist_metrics.metrics.uneven import UnevenResult
from hjepa_dist_metrics.states.ranks.rank_table import RankTable
from hjepa_dist_metrics.sync import Participation, SyncHandle


class WaitPhase(IntEnum):
    """Say how near to its end a rank is that waits for the others."""

    EPOCH_END = 1
    RUN_END = 2


_WHERE = {WaitPhase.EPOCH_END: "at the end of an epoch", WaitPhase.RUN_END: "at the end of its run"}


class RowOfRank(DistributedMetric):
    """Hold one row of numbers of each rank."""

    rows: RankTable

    def __init__(self, width: int) -> None:
        self.add_state("rows", RankTable(width, most=1 << 20))

    def update(self, row: Rows) -> None:
        """Replace this rank's row."""
        self.rows.update(row)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing: the rows themselves are asked for."""
        return {}


class Meeting(NamedTuple):
    """Say how all ranks have met: the largest of their coming steps, and whether any has something to log.

    This rank is `behind` by so many steps, and the one with the fewest steps by `most_behind`.
    """

    next_step: int
    pending: bool
    behind: int = 0
    most_behind: int = 0


@dataclass(frozen=True)
class LogRequest:
    """Name the step at which a sync's values are written, and the cadence families that made it due."""

    step: int
    due: tuple[str, ...] = ()


class UnevenRanks:
    """Sync a collection between ranks that need not have the same metrics, or be at the same step.

    `families` are the names of the cadence families, the same on every rank. `publish` writes what a log
    brought back, on the sync's thread; `followed` is called after each log of the others in which this rank
    only followed. `steps_done` counts the steps of this rank.
    """

    def __init__(
        self,
        collection: MetricCollection,
        families: Sequence[str],
        publish: Callable[[LogRequest, UnevenResult], None],
        followed: Callable[[LogRequest, UnevenResult], None],
    ) -> None:
        self._collection, self._families = collection, tuple(families)
        self._publish, self._followed = publish, followed
        self.steps_done = 0

    def participation(self) -> Participation:
        """Return the participation of a rank that is under way."""
        return Participation(steps_done=self.steps_done, least_steps=self.steps_done)

    def log(self, names: Sequence[str], request: LogRequest, *, last: bool) -> SyncHandle[None]:
        """Sync the metrics `names` in the background and publish them.

        In the run's `last` log ranks may name different ones: each adds what it has of all.
        """
        flags = sum(1 << self._families.index(family) for family in request.due)
        part = self.participation()._replace(request_step=request.step, request_flags=flags)
        offered = self._offered() if last else ()

        def publish(result: UnevenResult) -> None:
            self._publish(request, result)

        return self._collection.compute_uneven(publish, part, names, offered)

    def wait(self, phase: WaitPhase, step: int, pending: bool) -> Meeting:
        """Follow the others until every rank is at `phase` or beyond it; `pending` asks for a log."""
        if self._collection.context.world_size == 1:
            return Meeting(step, pending)
        while True:
            own = Participation(int(phase), self.steps_done, step, int(pending), least_steps=self.steps_done)
            patience = f"{_WHERE[phase]}, after {self.steps_done} steps"
            handle = self._collection.compute_uneven(
                self._take, own, offered=self._offered(), patience=patience
            )
            result = handle.result()
            others = result.participation
            if (request := self._request(others)) is not None:
                self._followed(request, result)
            elif others.phase == phase:
                most = others.steps_done
                behind = most - self.steps_done, most - others.least_steps
                return Meeting(others.next_step, bool(others.pending), *behind)

    def gather(self, row: Rows) -> tuple[Rows, Sequence[int]]:
        """Return the rows of numbers of all ranks that are under way, and their ranks.

        A rank that waits at the end of its run takes part without a row.
        """
        if self._collection.context.world_size == 1:
            return row[None], [self._collection.context.rank]
        name = f"gathered rows of {len(row)}"
        rows = RowOfRank(len(row))
        rows.rows.update(row)
        self._collection.add(name, rows)
        try:
            handle = self._collection.compute_uneven(
                lambda result: result.merged[name]["rows"], self.participation(), [name]
            )
            table = handle.result()
            assert isinstance(table, RankTable)
        finally:
            self._collection.remove(name)
        given = ~np.isnan(table.table).all(axis=1)
        return table.table[given], table.ranks[given].tolist()

    def _offered(self) -> list[str]:
        return [name for name, metric in self._collection.items() if metric.touched or metric.persistent]

    def _request(self, others: Participation) -> LogRequest | None:
        """Return what the others log; None where they save a checkpoint, or wait themselves."""
        if others.request_step < 0:
            return None
        due = (name for place, name in enumerate(self._families) if others.request_flags >> place & 1)
        return LogRequest(others.request_step, tuple(due))

    def _take(self, result: UnevenResult) -> UnevenResult:
        """Publish a log of the others; a checkpoint of theirs is not for here."""
        if (request := self._request(result.participation)) is not None:
            self._publish(request, result)
        return result
