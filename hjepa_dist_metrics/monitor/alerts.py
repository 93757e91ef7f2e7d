"""Alerts: rules that watch merged values, with patience before they fire and recovery before they rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.monitor.config import AlertsConfig

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
    alerts: list[Alert] = field(default_factory=list)
    _watches: dict[str, _Watch] = field(default_factory=dict)

    def evaluate(self, step: int, numbers: Numbers) -> list[Alert]:
        """Return the alerts that begin at this step."""
        begun = []
        for name, rule in self.rules.items():
            findings = rule(numbers)
            if findings is None:
                continue
            watch = self._watches.setdefault(name, _Watch())
            if self._turns_on(watch, findings):
                worst = findings[0]
                begun.append(Alert(step, name, worst.tag, worst.value, worst.reason))
        self.alerts += begun
        return begun

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

    def firing(self) -> set[str]:
        """Return the names of the rules that fire now."""
        return {name for name, watch in self._watches.items() if watch.firing}


def collapse_rule(dims: Mapping[str, int]) -> Rule:
    """Judge every stream's rank, spread and similarity by the catalog's limits for its width and rows.

    `dims` maps a stream's tag prefix, `collapse/` or `collapse/level0_`, to its width.
    """

    def rule(numbers: Numbers) -> list[Finding] | None:
        present = [(prefix, dim) for prefix, dim in dims.items() if f"{prefix}num_samples" in numbers]
        if not present:
            return None
        return [finding for prefix, dim in present for finding in _judge_stream(prefix, dim, numbers)]

    return rule


def _judge_stream(prefix: str, dim: int, numbers: Numbers) -> Iterable[Finding]:
    count = int(numbers[f"{prefix}num_samples"])
    if count < 2:
        return
    for name in ("effective_rank", "mean_std_per_dim", "mean_similarity"):
        tag = prefix + name
        entry = catalog.find(tag)
        if tag not in numbers or entry is None or entry.limits is None:
            continue
        limits = entry.limits(dim, count)
        if limits.judge(numbers[tag]) == "bad":
            side = "below" if limits.low_is_bad else "above"
            yield Finding(tag, numbers[tag], f"{side} {limits.bad:.4g}, the bound for D={dim}, n={count}")


def nonfinite_rule(numbers: Numbers) -> list[Finding] | None:
    """Find NaN and infinite losses and features by their counts, and any value that is itself NaN."""
    counted = [tag for tag in numbers if tag == "loss/nonfinite" or tag.endswith("/nonfinite")]
    found = [
        Finding(tag, numbers[tag], "NaN or infinite values were seen", at_once=True)
        for tag in counted
        if numbers[tag] > 0
    ]
    level = numbers.get("loss/first_nonfinite_level")
    if level is not None:
        found.insert(
            0, Finding(f"loss/h{int(level)}", math.nan, "the first level that is NaN or infinite", True)
        )
    return found if counted else None
