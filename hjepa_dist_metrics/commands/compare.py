"""`hjepa-metrics compare`: what parted first and matters, and which settings differ."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence

from hjepa_dist_metrics.commands.headline import CURVES, headline_numbers
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number, render
from hjepa_dist_metrics.commands.terminal import WIDTH, wrap
from hjepa_dist_metrics.commands.verdict import judge

TOLERANCE = 0.05
# What differs between any two runs: speed, memory, the time that a sync took; and what is judged of the rest.
_NOISE = ("performance/", "system/", "sync/", "alerts/", "health/")
# What a person looks at first, in order.
_CHARTS = tuple(re.compile("|".join((*curve.lines, *curve.numbers))) for curve in CURVES)
_MOST_NAMED = 5
_MOST_SETTINGS = 12
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


def first_parting(runs: Sequence[Run], tolerance: float = TOLERANCE) -> str:
    """Return what parted first among the numbers that a report shows, "" where none of them did."""
    return _parted(partings(runs, tolerance), tolerance) if len(runs) > 1 else ""


def compare(runs: Sequence[Run], tolerance: float, everything: bool = False) -> tuple[list[str], bool]:
    """Return the lines to print, and whether the runs go together.

    The lines: what parted first and matters, verdicts, settings that differ, headline numbers side by side;
    with `everything` all tags, those that parted first before the others.
    """
    parted = partings(runs, tolerance)
    first = _parted(parted, tolerance) or (
        f"No common metric differs by more than {100 * tolerance:.3g} % at any common step"
    )
    lines = wrap([f"{first}.", "", *_verdicts(runs)])
    lines += ["", *_settings(runs, everything), *_table("number", _headline(runs), runs, parted)]
    if everything:
        order = {tag: place for place, tag in enumerate(parted)}
        tags = sorted(
            {tag for run in runs for tag in run.scalars}, key=lambda t: (order.get(t, len(order)), t)
        )
        lines += ["", *_table("tag", {tag: tag for tag in tags}, runs, parted)]
    elif parted:
        lines += [
            "",
            f"{len(parted)} tags part: --all shows every tag, those that part first before the others",
        ]
    return lines, not parted


def _parted(parted: Mapping[str, int], tolerance: float) -> str:
    """Return the earliest of the tags that matter, or of all where none of those parts."""
    chosen = {tag: step for tag, step in parted.items() if _place(tag) < len(_CHARTS)} or parted
    if not chosen:
        return ""
    first = min(chosen.values())
    names = sorted((tag for tag, step in chosen.items() if step == first), key=_place)
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    named = ", ".join(names[:_MOST_NAMED])
    return f"The runs part by over {100 * tolerance:.3g} % first at step {first}, in {named}{more}"


def _place(tag: str) -> int:
    """Return the number of the first chart that shows a tag; their count where none does."""
    return next((place for place, chart in enumerate(_CHARTS) if chart.fullmatch(tag)), len(_CHARTS))


def _verdicts(runs: Sequence[Run]) -> list[str]:
    return [f"{run.name}: {judge(run).health}" for run in runs]


def _headline(runs: Sequence[Run]) -> dict[str, str]:
    """Return tag -> label of the headline numbers of any run."""
    return {found.tag: found.label for run in runs for found in headline_numbers(run)}


def _table(first: str, tags: Mapping[str, str], runs: Sequence[Run], parted: Mapping[str, int]) -> list[str]:
    rows = [
        [label, *(number(run.latest.get(tag)) for run in runs), number(parted.get(tag))]
        for tag, label in tags.items()
    ]
    return _side_by_side(first, rows, runs, "parts at step")


def _settings(runs: Sequence[Run], everything: bool) -> list[str]:
    keys = sorted({key for run in runs for key in run.settings})
    rows = [
        [key, *values]
        for key in keys
        if len(set(values := [str(run.settings.get(key, "-")) for run in runs])) > 1
    ]
    if not rows:
        return ["No setting differs.", ""]
    rows.sort(key=lambda row: "-" in row)  # settings that all runs have come first
    shown = rows if everything else rows[:_MOST_SETTINGS]
    more = (
        [f"{len(rows) - len(shown)} more settings differ: --all shows them"] if len(shown) < len(rows) else []
    )
    return [*_side_by_side("setting", shown, runs), *more, ""]


def _side_by_side(first: str, rows: Sequence[Sequence[str]], runs: Sequence[Run], *more: str) -> list[str]:
    """Return a table with a column a run: by name, by letter where the names would not fit."""
    names = [run.name for run in runs]
    numbers = range(1, 1 + len(names) + len(more)) if more else ()
    lines = render((first, *names, *more), rows, numbers).splitlines()
    if max(map(len, lines)) <= WIDTH or len(names) > len(string.ascii_uppercase):
        return lines
    letters = string.ascii_uppercase[: len(names)]
    legend = [f"{letter} = {name}" for letter, name in zip(letters, names, strict=True)]
    lines = render((first, *letters, *more), rows, numbers).splitlines()
    if max(map(len, lines)) > WIDTH:
        cells = (zip((*letters, *more), row[1:], strict=True) for row in rows)
        named = (", ".join(f"{name} {cell}" for name, cell in row) for row in cells)
        lines = wrap([f"{row[0]}: {text}" for row, text in zip(rows, named, strict=True)])
    return [*wrap(["; ".join(legend)]), *lines]


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
