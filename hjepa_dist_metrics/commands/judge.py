"""Judge a run's final values by the catalog's limits, and list what its alerts said."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.catalog.entry import Limits
from hjepa_dist_metrics.catalog.limits import is_fixed
from hjepa_dist_metrics.commands.runs import Run

_ALERTS = "alerts/"


@dataclass(frozen=True)
class Row:
    """Hold one tag; the verdict is "ok", "warn" or "bad", and "" where there are no limits."""

    tag: str
    first: float
    last: float
    verdict: str
    unit: str
    healthy: str


def judge(run: Run, dim: int | None = None) -> list[Row]:
    """Return a row for each tag, in the catalog's order, unknown tags last.

    `dim` is the width of the features; by default what the run has written beside them, or its settings. A
    value that is NaN or infinite is bad whatever the tag.
    """
    order = {entry.pattern: place for place, entry in enumerate(catalog.entries())}

    def place(tag: str) -> tuple[int, str]:
        entry = catalog.find(tag)
        return (order[entry.pattern] if entry else len(order), tag)

    tags = sorted((tag for tag in run.scalars if not tag.startswith(_ALERTS)), key=place)
    return [_row(tag, run, dim) for tag in tags]


def alerts(run: Run) -> list[str]:
    """Return a sentence for each stretch in which an alert fired."""
    return [
        f"{tag.removeprefix(_ALERTS)} fired {_span(first, last)}"
        for tag, points in sorted(run.scalars.items())
        if tag.startswith(_ALERTS)
        for first, last in _stretches(points)
    ]


def findings(run: Run, dim: int | None = None) -> list[str]:
    """Return a sentence for each bad or suspicious final value, bad ones first, and the alerts."""
    rows = [row for row in judge(run, dim) if row.verdict in ("bad", "warn")]
    rows.sort(key=lambda row: row.verdict != "bad")
    said = [
        f"{row.verdict}: {row.tag} = {row.last:.4g}" + (f" (healthy: {row.healthy})" if row.healthy else "")
        for row in rows
    ]
    return said + [f"alert: {text}" for text in alerts(run)]


def _row(tag: str, run: Run, dim: int | None) -> Row:
    entry = catalog.find(tag)
    points = run.scalars[tag]
    last = points[-1][1]
    return Row(
        tag,
        points[0][1],
        last,
        _verdict(tag, last, run, dim),
        entry.unit if entry else "",
        entry.healthy if entry else "",
    )


def _verdict(tag: str, value: float, run: Run, dim: int | None) -> str:
    if not math.isfinite(value):
        return "bad"
    limits = _limits(tag, run, dim)
    return "" if limits is None else limits.judge(value)


def _limits(tag: str, run: Run, dim: int | None) -> Limits | None:
    """Return the limits of a tag for the run's size; None where it has none or the size is not known."""
    entry = catalog.find(tag)
    if entry is None or entry.limits is None:
        return entry.bounds if entry else None
    if is_fixed(entry.limits):
        return entry.limits(0, 0)
    width, count = dim or _beside(tag, run, "num_features") or run.dim, _beside(tag, run, "num_samples")
    return entry.limits(width, count) if width and count and count >= 2 else None


def _beside(tag: str, run: Run, size: str) -> int | None:
    """Return a size of the stream behind a representation: `collapse/level0_num_samples` for level 0.

    It is the stream with the longest name that the tag begins with, or the whole run's; of images where the
    number is of images.
    """
    group, _, name = tag.partition("/")
    prefixes = [
        other.removeprefix("collapse/").removesuffix(size)
        for other in run.scalars
        if other.startswith("collapse/") and other.endswith(size)
    ]
    stream = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
    if stream is None:
        return None
    if group == "train" or name.endswith("lidar"):
        stream = next((p for p in (f"{stream}pooled_", stream) if p in prefixes), stream)
    return int(run.scalars[f"collapse/{stream}{size}"][-1][1])


def _stretches(points: list[tuple[int, float]]) -> Iterator[tuple[int, int | None]]:
    """Yield (first step, last step) of each stretch above 0; None for one that lasts to the end."""
    first: int | None = None
    last = 0
    for step, value in points:
        if value > 0:
            first = step if first is None else first
            last = step
        elif first is not None:
            yield first, last
            first = None
    if first is not None:
        yield first, None


def _span(first: int, last: int | None) -> str:
    if last is None:
        return f"from step {first} to the end"
    return f"at step {first}" if first == last else f"from step {first} to step {last}"
