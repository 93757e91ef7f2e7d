"""When could one tell? An oracle that has seen the whole run, and the same run without the failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.health.traces import Trace

# Of a failure that shows in a number, the change (of its logarithm) from which on it is in effect at all.
LEAST_DAMAGE = 0.2
_VISIBLE, _SURELY = 0.25, 0.69
_MOST = 20.0
_LASTING = 3
# What depends on the machine is compared with the same run before the failure.
_OF_THE_MACHINE = ("step", "memory")


@dataclass(frozen=True)
class Truth:
    """Hold the steps of the logs at which a failure was visible, and at which half of the damage was done."""

    visible: int
    half: int
    damage: float

    @property
    def in_effect(self) -> bool:
        """Return whether the failure did anything."""
        return self.damage >= LEAST_DAMAGE


def truth(trace: Trace, twin: Trace | None) -> Truth:
    """Return what hindsight tells of a failing run; `twin` is the same run without the failure.

    A failure without a measure is there from its first step on. Otherwise the damage is the distance of the
    measure's logarithm to the twin's: it is visible from where it stays, for three logs or to the end, above
    a quarter of its largest value, or above 0.69, a factor of two.
    """
    planted, measure = trace.run["planted_at"], trace.run["measure"]
    if measure is None:
        first = next(step for step, _ in trace.facts if step >= planted)
        return Truth(first, first, math.inf)
    damage = _damage(trace, measure, twin)
    largest = max((value for _, value in damage), default=0.0)
    visible = _lasts_from(damage, min(max(_VISIBLE * largest, LEAST_DAMAGE), _SURELY))
    return Truth(visible, _lasts_from(damage, 0.5 * largest), largest)


def _damage(trace: Trace, measure: str, twin: Trace | None) -> list[tuple[int, float]]:
    planted = trace.run["planted_at"]
    if measure in _OF_THE_MACHINE:
        before = [numbers[measure] for step, numbers in trace.facts if step < planted]
        normal: Mapping[int, float] = dict.fromkeys(
            (s for s, _ in trace.facts), sorted(before)[len(before) // 2]
        )
    elif twin is None:
        raise ValueError(f"{trace.name} needs the healthy run of {trace.run['recipe']}: record it first")
    else:
        normal = {step: numbers[measure] for step, numbers in twin.facts}
    pairs = [(s, numbers[measure], normal[s]) for s, numbers in trace.facts if s >= planted and s in normal]
    return [(step, _distance(value, healthy)) for step, value, healthy in pairs]


def _distance(value: float, healthy: float) -> float:
    if not math.isfinite(value):
        return _MOST
    return min(abs(math.log(max(abs(value), 1e-9)) - math.log(max(abs(healthy), 1e-9))), _MOST)


def _lasts_from(damage: Sequence[tuple[int, float]], bound: float) -> int:
    """Return the step from which on the damage reaches a bound for several logs; the last without any."""
    for i, (step, _) in enumerate(damage):
        if all(value >= bound for _, value in damage[i : i + _LASTING]):
            return step
    return damage[-1][0]


def twins(traces: Sequence[Trace]) -> dict[tuple[str, int], Trace]:
    """Return the healthy runs with the recipe's own settings, by recipe and seed."""
    return {
        (trace.run["recipe"], trace.run["seed"]): trace
        for trace in traces
        if trace.run["failure"] is None and trace.name.startswith(f"healthy-{trace.run['recipe']}-lr1-bs1-s")
    }


def has_twin(trace: Trace, healthy: Mapping[tuple[str, int], Trace]) -> bool:
    """Return whether the oracle has what it needs: a healthy run, or a failure that is there at once."""
    measure = trace.run["measure"]
    needless = trace.run["failure"] is None or measure is None or measure in _OF_THE_MACHINE
    return needless or (trace.run["recipe"], trace.run["seed"]) in healthy
