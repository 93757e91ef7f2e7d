"""Alerts: rules that watch merged values, with patience before they fire and recovery before they rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.monitor.health.rule_state import memory_of, recall
from hjepa_dist_metrics.settings.schema import AlertsConfig

logger = logging.getLogger("hjepa_dist_metrics.alerts")

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Finding:
    """Say what a rule found bad in one evaluation."""

    tag: str
    value: float
    reason: str
    at_once: bool = False


@dataclass(frozen=True)
class Alert:
    """Tell that a rule fired at a step, and over what."""

    step: int
    rule: str
    tag: str
    value: float
    reason: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.rule}: {self.tag} = {self.value:.4g} ({self.reason})"


# What a user is called with when an alert begins.
OnAlert = Callable[[Alert], None]
# A rule looks at one evaluation's numbers: findings, none where all is well, None where it cannot tell.
Rule = Callable[[Numbers], "list[Finding] | None"]


@dataclass
class _Watch:
    bad: int = 0
    good: int = 0
    firing: bool = False


@dataclass
class AlertBook:
    """Evaluate rules on merged values and remember which fire.

    A rule fires after `patience` evaluations in a row with a finding (at once where a finding says so) and
    rests after `recovery` in a row without. Given the same values, every rank comes to the same alerts.
    """

    config: AlertsConfig
    rules: dict[str, Rule]
    on_alert: OnAlert | None = None
    alerts: list[Alert] = field(default_factory=list)
    _watches: dict[str, _Watch] = field(default_factory=dict)
    _broken: set[str] = field(default_factory=set)

    def add(self, name: str, rule: Rule) -> None:
        """Watch by one more rule; ConfigError where there is one of its name."""
        if name in self.rules:
            raise ConfigError(f"there is an alert rule named {name!r} already")
        self.rules[name] = rule

    def evaluate(self, step: int, numbers: Numbers) -> list[Alert]:
        """Return the alerts that begin at this step."""
        begun = []
        for name, rule in self.rules.items():
            findings = self._ask(name, rule, numbers)
            if findings is None:
                continue
            watch = self._watches.setdefault(name, _Watch())
            if self._turns_on(watch, findings):
                worst = findings[0]
                begun.append(Alert(step, name, worst.tag, worst.value, worst.reason))
        self.alerts += begun
        return begun

    def _ask(self, name: str, rule: Rule, numbers: Numbers) -> list[Finding] | None:
        """Return a rule's findings; None where it fails, which is told once and does not end the run."""
        try:
            return rule(numbers)
        except Exception:
            if name not in self._broken:
                self._broken.add(name)
                logger.exception("the alert rule %r failed; what it cannot judge is passed over", name)
            return None

    def notify(self, begun: Sequence[Alert]) -> None:
        """Call the user's function; what goes wrong in it is reported and does not end the run."""
        if self.on_alert is None:
            return
        for alert in begun:
            try:
                self.on_alert(alert)
            except Exception:
                logger.exception("on_alert failed on the alert: %s", alert)

    def markdown(self) -> str:
        """Return all alerts so far as a table, the latest first."""
        rows = ["| step | rule | tag | value | why |", "|---|---|---|---|---|"]
        rows += [
            f"| {a.step} | {a.rule} | `{a.tag}` | {a.value:.4g} | {a.reason} |" for a in reversed(self.alerts)
        ]
        return "\n".join(rows)

    def _turns_on(self, watch: _Watch, findings: list[Finding]) -> bool:
        watch.bad = watch.bad + 1 if findings else 0
        watch.good = 0 if findings else watch.good + 1
        if watch.firing:
            watch.firing = watch.good < self.config.recovery
            return False
        at_once = any(finding.at_once for finding in findings)
        watch.firing = bool(findings) and (at_once or watch.bad >= self.config.patience)
        return watch.firing

    def scalars(self) -> dict[str, float]:
        """Return `alerts/{rule}`, 1 while a rule fires and 0 otherwise, for the rules that could tell."""
        return {f"alerts/{name}": float(watch.firing) for name, watch in self._watches.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return alerts, each rule's patience and what the rules have seen, for a checkpoint."""
        return {
            "alerts": [list(astuple(alert)) for alert in self.alerts],
            "watches": {name: list(astuple(watch)) for name, watch in self._watches.items()},
            "memories": {name: memory_of(rule) for name, rule in self.rules.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.alerts = [Alert(*fields) for fields in state["alerts"]]
        self._watches = {name: _Watch(*fields) for name, fields in state["watches"].items()}
        for name, memory in state["memories"].items():
            if name in self.rules:
                recall(self.rules[name], memory)

    def firing(self) -> set[str]:
        """Return the names of the rules that fire now."""
        return {name for name, watch in self._watches.items() if watch.firing}
