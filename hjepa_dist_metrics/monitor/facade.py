"""The parts of `TrainingMonitor` that only pass on: what is known of the run by now, and earlier names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

from hjepa_dist_metrics.monitor.health.findings import Health
from hjepa_dist_metrics.monitor.health.health_log import Alert
from hjepa_dist_metrics.monitor.run import MonitoredRun


class RunReadings:
    """Read what is known of a run by now; no method here writes, waits or calls a collective."""

    run: MonitoredRun

    @property
    def should_stop(self) -> str | None:
        """Return the finding of `logging.alerts.stop_on` that has begun, None while training may go on.

        The same after the same `step` on every rank: with background syncs the step after one that logs waits
        for its sync, and decides by the result; inline syncs and `log` decide at once.
        """
        return min(self.run.cycle.stopping, default=None)

    @property
    def first(self) -> dict[str, float]:
        """Return the first number written under each tag, on every rank."""
        return dict(self.run.publisher.first)

    @property
    def latest(self) -> dict[str, float]:
        """Return the newest number of each tag, on every rank."""
        return dict(self.run.publisher.latest)

    @property
    def step_number(self) -> int:
        """Return the number of the coming step."""
        return self.run.schedule.step

    @property
    def last_step(self) -> int:
        """Return the number of the last finished step; 0 before the first."""
        return self.run.schedule.last_step

    def health(self) -> Health:
        """Return the verdict on the run as of its newest log, the same on every rank, with all findings."""
        return self.run.health_log.health

    @property
    def alerts(self) -> list[Alert]:
        """Return the alerts so far, in order."""
        return list(self.run.health_log.alerts)

    @property
    def failures(self) -> list[str]:
        """Return what was reported about outputs that failed."""
        return list(getattr(self.run.sink, "failures", ()))


class _Renamed(Protocol):
    def add_alias(self, names: Mapping[str, str]) -> None: ...

    def reset_loss_history(self) -> None: ...


class DeprecatedNames:
    """Forward earlier names of `TrainingMonitor`'s methods, with a warning."""

    def also_as(self: _Renamed, names: Mapping[str, str]) -> None:
        """Call `add_alias`."""
        warnings.warn("also_as is called add_alias now", DeprecationWarning, stacklevel=2)
        self.add_alias(names)

    def new_objective(self: _Renamed) -> None:
        """Call `reset_loss_history`."""
        warnings.warn("new_objective is called reset_loss_history now", DeprecationWarning, stacklevel=2)
        self.reset_loss_history()
