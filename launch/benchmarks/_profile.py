"""Where the training thread's time goes in a profiled run: by function, and by the monitor's observers."""

from __future__ import annotations

import cProfile
import pstats
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from benchmarks._ranks import markdown, milliseconds

_PACKAGE = "hjepa_dist_metrics/"
_MOST_FUNCTIONS = 10
# What belongs to an observer: its own file, and what its hooks call from the model's forward pass.
_OBSERVERS = (
    (re.compile(r"monitor/observers/(?:\w+/)*(activations|attention|forward)\.py"), None),
    (re.compile(r"metrics/internals/(activation|attention)\w*\.py"), None),
    (re.compile(r"metrics/internals/hooks\.py"), "activations"),
    (re.compile(r"monitor/observers/(?:\w+/)*(\w+)\.py"), None),
)
# The mode that shows calls of attention runs the model's own operations in between.
_PASSES_THROUGH = "__torch_function__"

Function = tuple[str, int, str]


def hottest(profile: cProfile.Profile) -> str:
    """Return a table of the package's functions in which the training thread spends most time."""
    found = []
    for (file, line, name), (_, calls, _, cumulative, _) in _stats(profile).items():
        _, package, rest = file.rpartition(_PACKAGE)
        if package and not rest.startswith(("reference/", "parallel/")):
            found.append((cumulative, f"{rest}:{line} {name}", calls))
    rows = [
        [f"`{name}`", str(calls), milliseconds(seconds)]
        for seconds, name, calls in sorted(found, reverse=True)[:_MOST_FUNCTIONS]
    ]
    return markdown(["training thread, whole profiled run", "calls", "ms, with what they call"], rows)


def observer_shares(profile: cProfile.Profile, steps: int, step_seconds: float) -> str:
    """Return a table of what each observer takes of the training thread, with all that it calls.

    `step_seconds` is what a step takes of the training thread without a monitor, processor time both. The
    profiler slows Python down, so that shares are upper bounds.
    """
    seconds = observer_seconds(_stats(profile))
    rows = [
        [f"`{name}`", milliseconds(spent / steps), f"{100 * spent / steps / step_seconds:.2f} %"]
        for name, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    return markdown(["observer, profiled", "processor ms a step", "of a step without a monitor"], rows)


def observer_seconds(stats: Mapping[Function, Any]) -> dict[str, float]:
    """Return the seconds in functions of each observer that were called from elsewhere."""
    seconds: dict[str, float] = defaultdict(float)
    for function, (_, _, own, _, callers) in stats.items():
        name = _observer(function)
        if name is None:
            continue
        if function[2] == _PASSES_THROUGH:
            seconds[name] += own
            continue
        for caller, (_, _, _, cumulative) in callers.items():
            if _observer(caller) != name or caller[2] == _PASSES_THROUGH:
                seconds[name] += cumulative
    return dict(seconds)


def _observer(function: Function) -> str | None:
    """Return the observer that a function belongs to, None for any other."""
    _, package, rest = function[0].rpartition(_PACKAGE)
    if not package:
        return None
    for pattern, name in _OBSERVERS:
        if match := pattern.fullmatch(rest):
            return name or {"activation": "activations", "forward": "activations"}.get(match[1], match[1])
    return None


def _stats(profile: cProfile.Profile) -> dict[Function, Any]:
    stats: dict[Function, Any] = vars(pstats.Stats(profile))["stats"]
    return stats
