"""`hjepa-metrics summary`: final values against healthy ranges, and alerts."""

from __future__ import annotations

from collections.abc import Iterator

from hjepa_dist_metrics.commands.judge import alerts, judge
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number, render

_WIDEST = 60


def summarize(run: Run, dim: int | None = None, every_tag: bool = False) -> tuple[list[str], bool]:
    """Return the lines to print of a run, and whether it looks healthy.

    Healthy is: no final value is bad and no alert fired. Tags that the catalog does not know are left out
    unless `every_tag`.
    """
    rows = judge(run, dim)
    shown = [row for row in rows if every_tag or row.verdict or row.healthy or row.tag.startswith("loss/")]
    fired = alerts(run)
    lines = [f"Run {run.name}: {run.last_step + 1} steps, {len(run.scalars)} tags", ""]
    header = ("tag", "first", "last", "unit", "verdict", "healthy")
    table = [
        (row.tag, number(row.first), number(row.last), row.unit, row.verdict or "-", _short(row.healthy))
        for row in shown
    ]
    lines += render(header, table, numbers=(1, 2)).splitlines()
    if len(shown) < len(rows):
        lines += ["", f"{len(rows) - len(shown)} tags without a healthy range are left out: --all shows them"]
    lines += ["", *_alert_lines(fired)]
    return lines, not fired and all(row.verdict != "bad" for row in rows)


def _alert_lines(fired: list[str]) -> Iterator[str]:
    if not fired:
        yield "No alert fired."
        return
    yield "Alerts:"
    for text in fired:
        yield f"  {text}"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
