"""The verdict during a run: to the console when it changes, to the outputs, and to the user's function."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hjepa_dist_metrics.monitor.health.findings import Finding, Health
from hjepa_dist_metrics.monitor.health.judge import Change, Judge
from hjepa_dist_metrics.settings.schema import AlertsConfig
from hjepa_dist_metrics.values import Notice, Scalar, Text, Value

logger = logging.getLogger("hjepa_dist_metrics.health")


@dataclass(frozen=True)
class Alert:
    """Hold the step at which a finding began, and its first evidence."""

    step: int
    rule: str
    tag: str
    value: float
    reason: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.rule}: {self.tag} = {self.value:.4g} ({self.reason})"


# What a user is called with when a finding begins.
OnAlert = Callable[[Alert], None]


class HealthLog:
    """Judge a run's numbers as they are published, and keep a log of the findings that began.

    `speaks` is true on the rank that writes to the console. The judge may be called by a sync's thread and
    by the training thread; a lock keeps updates whole.
    """

    def __init__(self, config: AlertsConfig, is_main: bool, on_alert: OnAlert | None = None) -> None:
        self.judge = Judge(config)
        self.alerts: list[Alert] = []
        self._is_main, self._on_alert = is_main, on_alert
        self._written: deque[tuple[int, dict[str, float]]] = deque(maxlen=8)
        self._lock = threading.Lock()

    @property
    def health(self) -> Health:
        """Return the verdict as of the newest log."""
        return self.judge.health

    def firing(self) -> set[str]:
        """Return the names of the findings that last."""
        with self._lock:
            return self.judge.firing()

    def update(self, step: int, numbers: Mapping[str, float]) -> dict[str, Value]:
        """Judge the numbers of a log; return what is written beside them."""
        with self._lock:
            health = self.judge.update(step, numbers)
            change = self.judge.change
            begun = [_alert(step, finding) for finding in change.begun]
            self.alerts += begun
            values = self._new_scalars(step)
            if change:
                values["alerts/log"] = Text(self.markdown())
            values |= {f"notices/{finding.name}": _notice(finding) for finding in change.begun}
        if change and self._is_main:
            _print(step, health, change)
        self._notify(begun)
        return values

    def markdown(self) -> str:
        """Return the verdict with its findings, and all that began so far, the latest first."""
        rows = ["## Log", "| step | finding | tag | value | why |", "|---|---|---|---|---|"]
        rows += [
            f"| {a.step} | {a.rule} | `{a.tag}` | {a.value:.4g} | {a.reason} |" for a in reversed(self.alerts)
        ]
        return self.health.markdown() + "\n\n" + "\n".join(rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the judge's memory and the log, as plain data."""
        return {"judge": self.judge.state_dict(), "alerts": [asdict(alert) for alert in self.alerts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.judge.load_state_dict(state["judge"])
        self.alerts = [Alert(**fields) for fields in state["alerts"]]

    def _new_scalars(self, step: int) -> dict[str, Value]:
        """Return the judge's scalars; what stands at this step already is not written twice."""
        scalars = self.judge.scalars()
        written = dict(self._written).get(step, {})
        self._written.append((step, {**written, **scalars}))
        return {tag: Scalar(value) for tag, value in scalars.items() if written.get(tag) != value}

    def _notify(self, begun: list[Alert]) -> None:
        """Call the user's function; what goes wrong in it is reported and does not end the run."""
        if self._on_alert is None:
            return
        for alert in begun:
            try:
                self._on_alert(alert)
            except Exception:
                logger.exception("on_alert failed on the alert: %s", alert)


def _alert(step: int, finding: Finding) -> Alert:
    first = finding.evidence[0]
    return Alert(step, finding.name, first.tag, first.value, first.reason)


def _notice(finding: Finding) -> Notice:
    text = [
        *(f"{e.tag} = {e.value:.4g}: {e.reason}" for e in finding.evidence),
        finding.cause,
        finding.advice,
    ]
    return Notice(finding.severity, f"{finding.name}: {finding.title}", "\n".join(filter(None, text)))


def _print(step: int, health: Health, change: Change) -> None:
    for finding in change.begun:
        logger.warning("step %d: %s (%s): %s", step, finding.name, finding.severity, _words(finding))
    for name in change.ended:
        logger.warning("step %d: %s has ended; the run is %s", step, name, health.verdict)


def _words(finding: Finding) -> str:
    return f"{finding.title}: {finding.evidence[0]}"
