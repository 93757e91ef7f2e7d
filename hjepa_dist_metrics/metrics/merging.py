"""Number an owner's syncs and run them: snapshot now, exchange here or on the sync thread."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hjepa_dist_metrics.distributed import ProcessContext, open_channel
from hjepa_dist_metrics.metrics import changes
from hjepa_dist_metrics.metrics.joined import join
from hjepa_dist_metrics.metrics.roster import Merged, Roster
from hjepa_dist_metrics.sync import (
    AdditiveSync,
    Part,
    SyncReport,
    SyncThread,
    Ticket,
    exchange,
    snapshot,
)

if TYPE_CHECKING:
    from hjepa_dist_metrics.metrics.base import DistributedMetric

R = TypeVar("R")
DEFAULT_SYNC_TIMEOUT = 60.0

# One for the process: the order in which syncs are asked for is then the order in which they run, also over
# several collections and groups.
_thread = SyncThread()
_failure = operator.attrgetter("_failure")


@dataclass
class _Wave:
    """Hold the failure that ends the background syncs asked for before the owner saw it."""

    error: BaseException | None = None


@dataclass(frozen=True)
class _Known:
    """Hold the roster of metrics of which none had failed, and when that was looked up."""

    metrics: Mapping[str, DistributedMetric]
    roster: Roster
    moment: int


@dataclass(frozen=True)
class Joining:
    """Let a sync join ranks with different metrics: this rank's part, and all the metrics that it has."""

    part: Part
    everything: Mapping[str, DistributedMetric]


class Merger:
    """Merge the states of metrics over the ranks of a context, each sync numbered."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.number = 0
        self.report: SyncReport | None = None
        self._wave = _Wave()
        self._rosters: dict[tuple[str, ...], Roster] = {}
        self._names: tuple[str, ...] | None = None
        self._known: _Known | None = None
        self._short: AdditiveSync | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is known of the metrics at this moment of this process: a copy looks for itself."""
        return {**vars(self), "_rosters": {}, "_names": None, "_known": None, "_short": None}

    def merge(
        self,
        metrics: Mapping[str, DistributedMetric],
        context: ProcessContext,
        timeout: float,
        then: Callable[[Any], R],
        joining: Joining | None = None,
    ) -> R:
        """Merge here and now, behind the syncs that are under way, and return `then(merged)`.

        `metrics` must not change any more: the same mapping as before is taken for the same metrics.

        With `joining` the ranks need not hold the same metrics, and `then` gets a `Joined`.
        """
        return _thread.run(self._job(metrics, context, timeout, then, _thread.busy, joining))

    def merge_async(
        self,
        metrics: Mapping[str, DistributedMetric],
        context: ProcessContext,
        timeout: float,
        then: Callable[[Any], R],
        joining: Joining | None = None,
    ) -> Future[R]:
        """Take a snapshot here and now, and merge it on the sync thread.

        After a failure that the owner has not seen yet, it fails alike and exchanges nothing: the other
        ranks may have seen theirs, and would never come.
        """
        job, wave = self._job(metrics, context, timeout, then, True, joining), self._wave

        def unless_failed() -> R:
            if wave.error is not None:
                raise wave.error
            try:
                return job()
            except BaseException as error:
                wave.error = error
                raise

        return _thread.submit(unless_failed)

    def acknowledge(self) -> None:
        """Let syncs that are asked for from now on run: the owner has seen the failure."""
        self._wave = _Wave()

    def _job(
        self,
        metrics: Mapping[str, DistributedMetric],
        context: ProcessContext,
        timeout: float,
        then: Callable[[Any], R],
        copy: bool,
        joining: Joining | None,
    ) -> Callable[[], R]:
        part, everything = (None, metrics) if joining is None else (joining.part, joining.everything)
        told = everything if part is not None and part.level else metrics
        roster, failures = self._look_up(metrics, told)
        taken = snapshot(roster.states, roster.plan, copy, roster.blocks)

        def job() -> R:
            waited = self.report.waited if self.report is not None else 0.0
            channel = open_channel(context, timeout)
            self.number += 1
            ticket = Ticket(self.number, failures, waited, part, self.name)
            if part is not None:
                joined, self.report = join(metrics, everything, roster, taken, channel, ticket)
                return then(joined)
            short = self._short = AdditiveSync.of(roster.plan, channel.world_size, self._short)
            merged, self.report = (exchange if short is None else short.exchange)(taken, channel, ticket)
            return then(Merged(roster, merged))

        return job

    def _look_up(
        self, metrics: Mapping[str, DistributedMetric], told: Mapping[str, DistributedMetric]
    ) -> tuple[Roster, dict[str, str]]:
        """Return the roster of `metrics` and the failures of `told`; of known ones without a look at each."""
        known, moment = self._known, changes.latest()
        if known is not None and known.metrics is metrics is told and known.moment == moment:
            return known.roster, {}
        names = tuple(metrics)
        roster = Roster.of(metrics, self._rosters.get(names))
        again, self._names, self._rosters[names] = names == self._names, names, roster
        if again:
            roster.lay_together()
        failures = _failures(told) if any(map(_failure, told.values())) else {}
        self._known = _Known(metrics, roster, moment) if again and not failures and not roster.live else None
        return roster, failures


def _failures(metrics: Mapping[str, DistributedMetric]) -> dict[str, str]:
    return {name: metric.failure for name, metric in metrics.items() if metric.failure is not None}
