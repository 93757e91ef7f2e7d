"""What the page's script draws: the numbers of all runs once, and charts that refer to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hjepa_dist_metrics.catalog import Limits
from hjepa_dist_metrics.catalog.run_limits import healthy_range
from hjepa_dist_metrics.commands.report.markup import attribute, text
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number

# A screen is about 500 pixels wide where a chart is.
_BUCKETS = 300
MOST_LINES = 24
_COLOURS = 7
# The colour of what a curve should not cross.
LIMIT = -1

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Line:
    """Name one line of a chart: the number of its run among the report's, and its tag."""

    run: int
    tag: str
    name: str
    colour: int
    dash: int = 0


@dataclass(frozen=True)
class Chart:
    """Describe one chart: its lines, limits (y, label, kind), healthy band, marks (x, label)."""

    title: str
    lines: Sequence[Line]
    limits: Sequence[tuple[float, str, str]] = ()
    band: tuple[float | None, float | None] | None = None
    marks: Sequence[tuple[int, str]] = ()
    note: str = ""


@dataclass
class ChartData:
    """Collect the numbers and charts of a page; each series of steps is there once."""

    runs: Sequence[Run]
    charts: list[dict[str, Any]] = field(default_factory=list)
    _steps: dict[tuple[int, ...], int] = field(default_factory=dict)
    _numbers: dict[tuple[int, str], tuple[int, list[float | None]]] = field(default_factory=dict)

    def add(self, chart: Chart) -> str:
        """Return the figure of a chart, whose numbers go into the page."""
        shown = chart.lines[:MOST_LINES]
        for line in shown:
            self.add_series(line.run, line.tag)
        values = [value for line in shown for value in self._finite(line.run, line.tag)]
        self.charts.append(
            {
                "series": [
                    {
                        "run": line.run,
                        "tag": line.tag,
                        "name": line.name,
                        "colour": line.colour,
                        "dash": line.dash,
                    }
                    for line in shown
                ],
                "limits": [
                    {"y": y, "label": label, "kind": kind}
                    for y, label, kind in chart.limits
                    if math.isfinite(y)
                ],
                "band": chart.band,
                "marks": [{"x": x, "label": label} for x, label in chart.marks],
                "log": _spans_decades([*values, *(y for y, _, _ in chart.limits if math.isfinite(y))]),
            }
        )
        notes = [note for note in (chart.note, *self._left_out(chart)) if note]
        described = self._describe(chart.title, shown)
        return (
            f'<figure data-chart="{len(self.charts) - 1}" data-alt="{attribute(described)}">'
            f'<figcaption>{text(chart.title)}</figcaption><div class="plot"></div>'
            + "".join(f'<p class="note">{text(note)}</p>' for note in notes)
            + "</figure>"
        )

    def add_series(self, run: int, tag: str) -> None:
        """Put a tag's numbers into the page."""
        if (run, tag) not in self._numbers:
            points = thin(self.runs[run].scalars[tag])
            steps = tuple(step for step, _ in points)
            place = self._steps.setdefault(steps, len(self._steps))
            self._numbers[run, tag] = place, [rounded(value) for _, value in points]

    def content(self) -> dict[str, Any]:
        """Return all that the script reads."""
        runs: list[dict[str, Any]] = [{} for _ in self.runs]
        for (run, tag), (place, values) in self._numbers.items():
            runs[run][tag] = [place, values]
        return {"steps": [list(steps) for steps in self._steps], "runs": runs, "charts": self.charts}

    def _finite(self, run: int, tag: str) -> list[float]:
        return [value for _, value in self.runs[run].scalars[tag] if math.isfinite(value)]

    def _left_out(self, chart: Chart) -> list[str]:
        """Return what the chart does not show."""
        notes = []
        if len(chart.lines) > MOST_LINES:
            notes.append(f"{MOST_LINES} of {len(chart.lines)} lines; the others are under All numbers")
        for line in chart.lines[:MOST_LINES]:
            bad = [step for step, value in self.runs[line.run].scalars[line.tag] if not math.isfinite(value)]
            if bad:
                notes.append(f"{line.name} is NaN or infinite at {len(bad)} steps, first at step {bad[0]}")
        return notes

    def _describe(self, title: str, lines: Sequence[Line]) -> str:
        """Return the chart in words, for those who do not see it."""
        parts = []
        for line in lines[:_COLOURS]:
            points = self.runs[line.run].scalars[line.tag]
            (first, start), (last, end) = points[0], points[-1]
            parts.append(f"{line.name} from {number(start)} at step {first} to {number(end)} at step {last}")
        more = f"; and {len(lines) - _COLOURS} more lines" if len(lines) > _COLOURS else ""
        return f"{title}: {'; '.join(parts)}{more}"


def look(index: int) -> tuple[int, int]:
    """Return (colour, dash) of the line number `index`: 28 lines look different."""
    return index % _COLOURS, index // _COLOURS


def healthy(limits: Limits | None) -> dict[str, Any]:
    """Return a chart's `band` and `limits` of a healthy range; nothing for a number that must be 0."""
    if limits is None or limits.warn == 0:
        return {}
    label = f"healthy: {healthy_range(limits)}"
    band = (limits.warn, None) if limits.low_is_bad else (None, limits.warn)
    return {"band": band, "limits": [(limits.warn, label, "healthy")]}


def rounded(value: float) -> float | None:
    """Return a number with six digits, None where it is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def thin(points: Points) -> Points:
    """Return the points, of more than 600 the extremes of each of 300 stretches and the last."""
    if len(points) <= 2 * _BUCKETS:
        return points
    kept: dict[int, float] = {}
    for bucket in range(_BUCKETS):
        stretch = points[bucket * len(points) // _BUCKETS : (bucket + 1) * len(points) // _BUCKETS]
        finite = [point for point in stretch if math.isfinite(point[1])] or stretch[:1]
        chosen = (min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1]))
        kept |= dict(sorted(chosen))
        kept |= dict([point for point in stretch if not math.isfinite(point[1])][:1])
    kept[points[-1][0]] = points[-1][1]
    return sorted(kept.items())


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 50 * min(values)
