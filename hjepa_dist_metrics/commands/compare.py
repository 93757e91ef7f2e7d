"""`hjepa-metrics compare`: runs side by side, and which metric parted first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number, render
from hjepa_dist_metrics.commands.verdict import judge

# What differs between any two runs: speed, memory, the time that a sync took.
_NOISE = ("performance/", "system/", "sync/")
Points = Sequence[tuple[int, float]]


def parting(mine: Points, other: Points, tolerance: float) -> int | None:
    """Return the first common step at which two series differ by more than `tolerance`, or None.

    The difference is relative to the larger magnitude. A number parts from NaN; NaN does not part from NaN.
    """
    theirs = dict(other)
    for step, value in mine:
        if step in theirs and _differ(value, theirs[step], tolerance):
            return step
    return None


def partings(runs: Sequence[Run], tolerance: float) -> dict[str, int]:
    """Return tag -> the step at which any run parts from the first one, earliest first; noise is left out."""
    found: dict[str, int] = {}
    for tag in _common(runs):
        if tag.startswith(_NOISE):
            continue
        steps = [parting(runs[0].scalars[tag], run.scalars[tag], tolerance) for run in runs[1:]]
        known = [step for step in steps if step is not None]
        if known:
            found[tag] = min(known)
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def compare(runs: Sequence[Run], tolerance: float) -> tuple[list[str], bool]:
    """Return the lines to print, and whether the runs go together.

    The lines: verdicts, settings that differ, final values side by side, and what parted first.
    """
    parted = partings(runs, tolerance)
    header = ["tag", *(run.name for run in runs), "parted at step"]
    rows = [
        [tag, *(number(run.latest.get(tag)) for run in runs), number(parted.get(tag))]
        for tag in sorted({tag for run in runs for tag in run.scalars})
    ]
    lines = [*_verdicts(runs), "", *_settings(runs), render(header, rows, numbers=range(1, len(header))), ""]
    if not parted:
        return [*lines, f"No common metric differs by more than {tolerance:.3g} at any common step."], True
    first = next(iter(parted.values()))
    names = [tag for tag, step in parted.items() if step == first]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [*lines, f"Parted first, at step {first}: {', '.join(names[:5])}{more}"], False


def _verdicts(runs: Sequence[Run]) -> list[str]:
    width = max(len(run.name) for run in runs)
    return [f"{run.name:<{width}}  {judge(run).health}" for run in runs]


def _settings(runs: Sequence[Run]) -> list[str]:
    keys = sorted({key for run in runs for key in run.settings})
    rows = [
        [key, *values]
        for key in keys
        if len(set(values := [str(_get(run.settings, key)) for run in runs])) > 1
    ]
    return [render(["setting", *(run.name for run in runs)], rows), ""] if rows else []


def _get(settings: Mapping[str, object], key: str) -> object:
    return settings.get(key, "-")


def _common(runs: Sequence[Run]) -> list[str]:
    return sorted(set.intersection(*(set(run.scalars) for run in runs)))


def _differ(mine: float, other: float, tolerance: float) -> bool:
    if mine != mine or other != other:
        return (mine != mine) != (other != other)
    if mine == other:
        return False
    if math.isinf(mine) or math.isinf(other):
        return True
    return abs(mine - other) > tolerance * max(abs(mine), abs(other))
