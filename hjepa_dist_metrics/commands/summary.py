"""`hjepa-metrics summary`: the verdict on a run, and its final values."""

from __future__ import annotations

from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number, render
from hjepa_dist_metrics.commands.values import values
from hjepa_dist_metrics.commands.verdict import judge, verdict_lines

_WIDEST = 60


def summarize(run: Run, every_tag: bool = False) -> tuple[list[str], bool]:
    """Return the lines to print of a run, and whether it is healthy.

    Unless `every_tag`, at most five findings are shown, and tags that the catalog does not know are left out.
    """
    judged, rows = judge(run), values(run)
    shown = [row for row in rows if every_tag or row.healthy or row.tag.startswith("loss/")]
    lines = [f"Run {run.name}: {run.last_step + 1} steps, {len(run.scalars)} tags", ""]
    lines += [*verdict_lines(judged, every_tag), ""]
    table = [(row.tag, number(row.first), number(row.last), row.unit, _short(row.healthy)) for row in shown]
    lines += render(("tag", "first", "last", "unit", "healthy"), table, numbers=(1, 2)).splitlines()
    if len(shown) < len(rows):
        lines += ["", f"{len(rows) - len(shown)} tags without a healthy range are left out: --all shows them"]
    return lines, judged.health.verdict == "healthy"


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
