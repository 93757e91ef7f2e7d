"""Replay traces through a judge, and compare what it said with what was true."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from benchmarks.health.oracle import Truth, truth, twins
from benchmarks.health.traces import Trace
from hjepa_dist_metrics.catalog.findings import FINDINGS
from hjepa_dist_metrics.monitor.health.judge import Judge

_IN_TIME = 3


class Verdicts(Protocol):
    """A judge of this benchmark: sees log after log, and names what it finds."""

    def update(self, step: int, values: Mapping[str, float]) -> Sequence[str]:
        """Return the findings that last, or their groups, the headline first."""
        ...


class PackageJudge:
    """The package's own judge, with its default settings; `seconds` are what its logs took, of all runs."""

    seconds: ClassVar[list[float]] = []

    def __init__(self) -> None:
        self.judge = Judge()

    def update(self, step: int, values: Mapping[str, float]) -> Sequence[str]:
        """Return the names of the findings, with those that follow from another after it."""
        begun = time.perf_counter()
        findings = self.judge.update(step, values).findings
        self.seconds.append(time.perf_counter() - begun)
        return [name for finding in findings for name in (finding.name, *finding.also)]


@dataclass(frozen=True)
class FailingRun:
    """How a judge did on a failing run.

    `noticed` and `named`: the number of logs from when the failure was visible until there was any finding,
    or one that is right; None where there never was; below 0: before it was visible. `in_time`: the right
    one came within 3 logs, or before half of the damage. `headline`: it was the headline, most of the time
    from then on. `early`: what was found before the failure was planted, which is no detection of it.
    """

    trace: Trace
    truth: Truth
    noticed: int | None
    named: int | None
    in_time: bool
    headline: bool
    early: tuple[str, ...]
    instead: tuple[str, ...]


@dataclass(frozen=True)
class HealthyRun:
    """What a judge found in a healthy run, and in how many logs."""

    trace: Trace
    alarms: tuple[str, ...]
    alarmed_logs: int


def judged(trace: Trace, judge: Verdicts) -> list[tuple[int, tuple[str, ...]]]:
    """Return the findings after each log of a trace."""
    return [(step, tuple(judge.update(step, values))) for step, values in trace.logs]


def healthy_run(trace: Trace, judge: Verdicts) -> HealthyRun:
    """Judge a healthy run."""
    found = judged(trace, judge)
    names = dict.fromkeys(name for _, names in found for name in names)
    return HealthyRun(trace, tuple(names), sum(bool(names) for _, names in found))


def failing_run(trace: Trace, twin: Trace | None, judge: Verdicts) -> FailingRun:
    """Judge a run with a failure."""
    known, found = truth(trace, twin), judged(trace, judge)
    expected = trace.run["expect"]
    right = {expected, *trace.run["accept"]}
    if expected in FINDINGS:  # a judge that knows the group alone is right as well
        right.add(FINDINGS[expected].group)
    planted = trace.run["planted_at"]
    early = {name for step, names in found if step < planted for name in names}
    after = [(step, names) for step, names in found if step >= planted]
    steps = sorted({step for step, _ in after})
    noticed = _first(after, lambda names: bool(set(names) - early))
    named = _first(after, lambda names: bool((right - early) & set(names)))
    headlines = [names[0] in right for step, names in after if names and named is not None and step >= named]
    last = dict.fromkeys(name for _, names in after for name in names)
    in_time = named is not None and (_logs(steps, known.visible, named) <= _IN_TIME or named <= known.half)
    return FailingRun(
        trace,
        known,
        None if noticed is None else _logs(steps, known.visible, noticed),
        None if named is None else _logs(steps, known.visible, named),
        in_time,
        bool(headlines) and sum(headlines) * 2 >= len(headlines),
        tuple(sorted(early)),
        tuple(name for name in last if name not in right),
    )


def _first(
    found: Sequence[tuple[int, tuple[str, ...]]], holds: Callable[[tuple[str, ...]], bool]
) -> int | None:
    return next((step for step, names in found if holds(names)), None)


def _logs(steps: Sequence[int], begin: int, end: int) -> int:
    """Return the number of logs from one step to another."""
    return sum(step < end for step in steps) - sum(step < begin for step in steps)


@dataclass(frozen=True)
class Result:
    """All runs as one judge saw them."""

    healthy: list[HealthyRun]
    failing: list[FailingRun]


def replay(traces: Sequence[Trace], every: Sequence[Trace], make: Callable[[], Verdicts]) -> Result:
    """Judge traces, each by a fresh judge; `every` are all traces, in which their twins are found."""
    healthy_twins = twins(every)
    healthy = [healthy_run(trace, make()) for trace in traces if trace.run["failure"] is None]
    failing = [
        failing_run(trace, healthy_twins.get((trace.run["recipe"], trace.run["seed"])), make())
        for trace in traces
        if trace.run["failure"] is not None
    ]
    return Result(healthy, failing)
