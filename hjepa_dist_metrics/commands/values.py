"""A run's first and final values, in the catalog's order."""

from __future__ import annotations

from dataclasses import dataclass

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.commands.runs import Run

_OF_THE_JUDGE = ("alerts/", "health/")


@dataclass(frozen=True)
class Row:
    """Hold one tag's values and what the catalog says of it."""

    tag: str
    first: float
    last: float
    unit: str
    healthy: str


def values(run: Run) -> list[Row]:
    """Return a row for each tag, in the catalog's order, unknown tags last."""
    order = {entry.pattern: place for place, entry in enumerate(catalog.entries())}

    def place(tag: str) -> tuple[int, str]:
        entry = catalog.find(tag)
        return (order[entry.pattern] if entry else len(order), tag)

    tags = sorted((tag for tag in run.scalars if not tag.startswith(_OF_THE_JUDGE)), key=place)
    return [_row(tag, run) for tag in tags]


def _row(tag: str, run: Run) -> Row:
    entry, points = catalog.find(tag), run.scalars[tag]
    return Row(tag, points[0][1], points[-1][1], entry.unit if entry else "", entry.healthy if entry else "")
