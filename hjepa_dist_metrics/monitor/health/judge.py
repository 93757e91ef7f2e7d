"""The judge: which findings a run's numbers give, how long each has lasted, and the verdict.

Live training and a replay of its logs run this code on the same numbers in the same order, and every rank
does, so that all come to the same findings at the same steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hjepa_dist_metrics.catalog.findings import FINDINGS, Description
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.monitor.health.detector import TOTAL_LOSSES, Detector, any_of
from hjepa_dist_metrics.monitor.health.detectors import DETECTORS
from hjepa_dist_metrics.monitor.health.detectors.representation import rank_limits
from hjepa_dist_metrics.monitor.health.findings import Evidence, Finding, Health, Severity
from hjepa_dist_metrics.monitor.health.series import History
from hjepa_dist_metrics.settings.schema import AlertsConfig

logger = logging.getLogger("hjepa_dist_metrics.health")

Numbers = Mapping[str, float]
# A user's rule looks at one log's numbers: evidence, none where all is well, None where it cannot tell.
Rule = Callable[[Numbers], "list[Evidence] | None"]

# Counts how often the loss got another meaning; a run whose objective never changed does not log it.
_OBJECTIVE = "loss/objective"
_OWN = Description("own", "warning", "a rule of this run", "", "")
_UNSEEN = -1
_SETS_OF_TAGS = 64


@dataclass
class _Watch:
    """How long a finding has had evidence, or none."""

    bad: int = 0
    good: int = 0
    since: int = _UNSEEN
    judged: int = _UNSEEN
    firing: bool = False
    has_fired: bool = False
    evidence: list[Evidence] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """What an update changed: findings that began and names of those that ended."""

    begun: tuple[Finding, ...] = ()
    ended: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.begun or self.ended)


class Judge:
    """Judge a run by the numbers that it logs.

    A finding begins when its evidence has lasted for `patience` logs and `patience_steps` steps (logs alone
    for a user's rule), at once where the evidence says so, and ends after `recovery` logs without evidence.
    It costs a fraction of a millisecond a log, in memory that does not grow.

    Args:
        config: patience and recovery.
        detectors: what to look for, by default everything in `catalog.FINDINGS`.
    """

    def __init__(self, config: AlertsConfig | None = None, detectors: Sequence[Detector] = DETECTORS) -> None:
        self.config = config or AlertsConfig()
        self.health = Health()
        self.change = Change()
        self._detectors = tuple(detectors)
        self._rules: dict[str, Rule] = {}
        self._broken: set[str] = set()
        read = tuple(pattern for d in self._detectors for pattern in (*d.tags, *d.reads))
        self._history = History(lambda tag: any_of(read).fullmatch(tag) is not None)
        self._watches: dict[str, _Watch] = {}
        self._due_for: dict[frozenset[str], tuple[Detector, ...]] = {}
        self._objective = 0.0

    def add(self, name: str, rule: Rule) -> None:
        """Judge by one more rule; ConfigError where there is a finding of its name."""
        if name in self._rules or name in FINDINGS:
            raise ConfigError(f"there is a finding named {name!r} already: choose another name for the rule")
        self._rules[name] = rule

    def update(self, step: int, numbers: Numbers) -> Health:
        """Judge the numbers of a log, and return the verdict as of now."""
        self._follow_objective(numbers)
        self._history.add(step, numbers)
        before = {name for name, watch in self._watches.items() if watch.firing}
        for name, evidence in self._look(numbers):
            self._weigh(name, step, evidence, 0 if name in self._rules else self.config.patience_steps)
        firing = {name for name, watch in self._watches.items() if watch.firing}
        if firing or before:
            self.health = self._conclude(step)
        else:
            self.health = Health(step=step)
        begun = tuple(self._finding(name) for name in self._watches if name in firing - before)
        self.change = Change(begun, tuple(sorted(before - firing)))
        return self.health

    def firing(self) -> set[str]:
        """Return the names of all findings that last, also of those that follow from others."""
        return {name for name, watch in self._watches.items() if watch.firing}

    def scalars(self) -> dict[str, float]:
        """Return `health/score`, and `alerts/{name}` as 0 or 1 for every finding that has begun once.

        With a log that has effective ranks, their limits too.
        """
        states = {f"alerts/{n}": float(w.firing) for n, w in self._watches.items() if w.has_fired}
        return {"health/score": self.health.score, **states, **rank_limits(self._history)}

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen, as plain data."""
        return {
            "history": self._history.state_dict(),
            "objective": self._objective,
            "watches": {name: asdict(watch) for name, watch in self._watches.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._history.load_state_dict(state["history"])
        self._objective = float(state["objective"])
        self._watches = {
            name: _Watch(**{**saved, "evidence": [Evidence(**fields) for fields in saved["evidence"]]})
            for name, saved in state["watches"].items()
        }
        self.health = self._conclude(self._history.step)

    def _follow_objective(self, numbers: Numbers) -> None:
        """Compare no loss with those of another objective."""
        objective = numbers.get(_OBJECTIVE, self._objective)
        if objective != self._objective:
            self._objective = objective
            self._history.forget(TOTAL_LOSSES)

    def _look(self, numbers: Numbers) -> Iterable[tuple[str, list[Evidence]]]:
        """Yield the evidence for each finding that the log can tell of."""
        for detector in self._due():
            evidence = detector.detect(self._history)
            if evidence is not None:
                yield detector.name, evidence
        for name, rule in self._rules.items():
            evidence = self._ask(name, rule, numbers)
            if evidence is not None:
                yield name, evidence

    def _due(self) -> tuple[Detector, ...]:
        """Return the detectors that judge by a tag of the newest log; logs have few sets of tags."""
        key = frozenset(self._history.fresh)
        due = self._due_for.get(key)
        if due is None:
            if len(self._due_for) >= _SETS_OF_TAGS:
                self._due_for.clear()
            due = self._due_for[key] = tuple(d for d in self._detectors if d.judges(key))
        return due

    def _ask(self, name: str, rule: Rule, numbers: Numbers) -> list[Evidence] | None:
        """Return what a user's rule finds; None where it fails, which is reported once and ends nothing."""
        try:
            return rule(numbers)
        except Exception:
            if name not in self._broken:
                self._broken.add(name)
                logger.exception("the rule %r failed; what it cannot judge is passed over", name)
            return None

    def _weigh(self, name: str, step: int, evidence: list[Evidence], patience_steps: int) -> None:
        watch = self._watches.setdefault(name, _Watch())
        new = step > watch.judged
        watch.judged = step
        if not evidence and watch.firing and describe(name).is_event:
            evidence = self._that_lasts(name, watch)
        if not evidence:
            watch.bad, watch.good = 0, watch.good + new
            if watch.firing and watch.good >= self.config.recovery:
                watch.firing = False
            return
        if not watch.bad and not watch.firing:
            watch.since = step
        watch.bad, watch.good, watch.evidence = watch.bad + new, 0, evidence
        watch.firing = watch.firing or self._is_enough(watch, step - patience_steps)
        watch.has_fired = watch.has_fired or watch.firing

    def _that_lasts(self, name: str, watch: _Watch) -> list[Evidence]:
        """Return the evidence of an event while its number is beyond its limit, or what followed lasts."""
        after = (other for n in describe(name).explains if (other := self._watches.get(n)) is not None)
        if any(other.firing and other.since >= watch.since for other in after):
            return watch.evidence
        return [old for old in watch.evidence if old.holds_for(self._history.value(old.tag))]

    def _is_enough(self, watch: _Watch, from_step: int) -> bool:
        if any(evidence.at_once for evidence in watch.evidence):
            return True
        return watch.bad >= self.config.patience and watch.since <= from_step

    def _conclude(self, step: int) -> Health:
        """Return the verdict: what follows from another finding is shown with it."""
        firing = [name for name, watch in self._watches.items() if watch.firing]
        followers = {name: [n for n in firing if n in describe(name).explains] for name in firing}
        explained = {name for names in followers.values() for name in names}
        heads = [self._with(n, followers[n]) for n in firing if n not in explained]
        findings = tuple(sorted(heads, key=_urgency))
        if not findings:
            return Health(step=step)
        worst = findings[0]
        return Health(worst.severity, str(worst), findings, step)

    def _with(self, name: str, followers: Sequence[str]) -> Finding:
        """Return a finding with what follows from it, as severe as the worst of them."""
        failing = any(describe(n).severity == "failing" for n in (name, *followers))
        severity: Severity = "failing" if failing else "warning"
        return replace(self._finding(name), also=tuple(followers), severity=severity)

    def _finding(self, name: str) -> Finding:
        what, watch = describe(name), self._watches[name]
        return Finding(
            name, what.severity, what.title, watch.since, tuple(watch.evidence), what.cause, what.advice
        )


def describe(name: str) -> Description:
    """Return a finding's description; one for all rules of users."""
    return FINDINGS.get(name, _OWN)


def _urgency(finding: Finding) -> tuple[int, int, int]:
    """Order findings: failing ones first, then those that others follow from, then the oldest."""
    return (finding.severity != "failing", -len(finding.also), finding.since)
