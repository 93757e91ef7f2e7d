"""Sync what is due, publish it, and keep together the logs of ranks that are at different steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hjepa_dist_metrics.catalog.findings import expand
from hjepa_dist_metrics.metrics.data.loader_ends import LoaderEnds
from hjepa_dist_metrics.metrics.optimization.layouts.copy_check import Rows
from hjepa_dist_metrics.metrics.uneven import UnevenResult
from hjepa_dist_metrics.monitor.metric_registry import MetricRegistry
from hjepa_dist_metrics.monitor.publishing import Publisher
from hjepa_dist_metrics.monitor.schedule import EPOCH, Schedule
from hjepa_dist_metrics.monitor.uneven_ranks import LogRequest, UnevenRanks, WaitPhase
from hjepa_dist_metrics.settings import LoggingConfig
from hjepa_dist_metrics.sync import SyncHandle
from hjepa_dist_metrics.values import Scalar

_ENDS, _MISSING = "loader_ends", "data/steps_missing"


class LogCycle:
    """Log the metrics of a run at the steps of its schedule.

    `before_log` is called with the families that are about to be logged. `stopping` are the findings of
    `logging.alerts.stop_on` that last, the same after the same step on every rank.
    """

    def __init__(
        self,
        registry: MetricRegistry,
        schedule: Schedule,
        publisher: Publisher,
        config: LoggingConfig,
        before_log: Callable[[Sequence[str]], None],
    ) -> None:
        self._registry, self._schedule, self._publisher = registry, schedule, publisher
        self._collection = registry.collection
        self._inline, self._stop_on = config.sync == "inline", expand(config.alerts.stop_on)
        self._before_log = before_log
        self._ranks = UnevenRanks(
            self._collection, [*schedule.families, EPOCH], self._publish, self._followed
        )
        self._handle: SyncHandle[Any] | None = None
        self._finished = False
        self._most_behind, self._missing_at = 0, -1
        self.stopping: set[str] = set()

    def end_step(self) -> None:
        """Log what the step makes due, and go on to the next."""
        if self._handle is not None:
            self.decide_stop()
        self._ranks.steps_done += 1
        due = self._schedule.due
        if due:
            self._before_log(due)
            self._schedule.mark_logged(due, self._schedule.step)
            self._log(self._registry.names(due), LogRequest(self._schedule.step, due))
        self._schedule.advance()

    def end_epoch(self) -> None:
        """Log what is logged once an epoch, when all ranks have come; meanwhile follow their logs."""
        names = self._wait(WaitPhase.EPOCH_END, self._registry.names([EPOCH]))
        if names is not None:
            self._log(names, LogRequest(self._schedule.last_step))

    def finish(self) -> None:
        """Log what was updated since its last log, when all ranks have ended; a second call does nothing."""
        logged = self._schedule.logged
        if self._finished or not logged:
            return
        self._finished = True
        self._before_log([family for family in logged if family == "scalars"])
        names = [name for name in self._registry.names(logged) if self._collection[name].touched]
        pending = self._wait(WaitPhase.RUN_END, names)
        if pending is not None:
            self._log(pending, LogRequest(self._schedule.last_step), last=True)

    def decide_stop(self) -> None:
        """Decide by all that is known by now, which is the same on every rank: no sync is under way."""
        if not self._stop_on:
            return
        if self._handle is not None:
            self._handle.result()
            self._handle = None
        self.stopping = self._publisher.firing() & self._stop_on

    def settle(self) -> None:
        """Let the rules see values in the same order on every rank: those of the sync under way first."""
        if self._handle is not None:
            self.decide_stop()

    def packed_metrics(self) -> dict[str, Any]:
        """Return the merged states of all metrics. A collective call."""
        return self._collection.state_dict(self._ranks.participation())

    def gather(self, row: Rows) -> tuple[Rows, Sequence[int]]:
        """Return the rows of numbers of all ranks that are under way, and their ranks. A collective call."""
        return self._ranks.gather(row)

    def resume(self) -> None:
        """Count steps from those of the schedule on."""
        self._ranks.steps_done = self._schedule.step

    def _wait(self, phase: WaitPhase, names: Sequence[str]) -> Sequence[str] | None:
        """Wait for all ranks; return what to log, None where no rank has anything.

        That is `names`, and where ranks have come apart since the last time by how many steps they have.
        """
        met = self._ranks.wait(phase, self._schedule.step, bool(names))
        self._schedule.go_to(met.next_step)
        if met.most_behind <= self._most_behind:
            return names if met.pending else None
        self._most_behind = met.most_behind
        self._registry.ensure(_ENDS, LoaderEnds, LoaderEnds, EPOCH).update(met.behind)
        return list(dict.fromkeys([*names, _ENDS]))

    def _log(self, names: Sequence[str], request: LogRequest, last: bool = False) -> None:
        """Sync the metrics and publish them: on the sync's thread, except inline or at the run's end."""
        if self._collection.context.is_member:
            self._handle = self._ranks.log(names, request, last=last)
            if last or self._inline:
                self._handle.result()
                self._handle = None
                self.decide_stop()
        self._registry.start_anew(names)

    def _publish(self, request: LogRequest, result: UnevenResult) -> None:
        values = dict(result.values(self._registry.formulas))
        ranks = result.participation
        missing = ranks.steps_done - ranks.least_steps  # of a rank that has ended and waits for the others
        if missing > self._most_behind or _MISSING in values:
            values.setdefault(_MISSING, Scalar(missing))
            if self._missing_at == request.step:  # the last log may stand at the step of the one before
                del values[_MISSING]
            self._missing_at = request.step
        self._publisher.publish(request.step, values, self._collection.last_sync)

    def _followed(self, request: LogRequest, result: UnevenResult) -> None:
        """Do what the other ranks do after the sync in which this rank followed them."""
        self._schedule.mark_logged(request.due, request.step)
        self._registry.start_anew(result.metrics)
        self.decide_stop()
