"""`hjepa-metrics summary`: the verdict on a run, its findings, and a dozen numbers."""

from __future__ import annotations

from hjepa_dist_metrics.commands.headline import Number, headline_numbers
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number, render
from hjepa_dist_metrics.commands.terminal import wrap
from hjepa_dist_metrics.commands.values import values
from hjepa_dist_metrics.commands.verdict import judge, verdict_lines


def summarize(run: Run, every_tag: bool = False) -> tuple[list[str], bool]:
    """Return the lines to print of a run, and whether it is healthy.

    Unless `every_tag`, at most five findings and twelve numbers are shown.
    """
    judged = judge(run)
    lines = [f"Run {run.name}: {run.last_step + 1} steps, {len(run.scalars)} tags"]
    lines += ["", *verdict_lines(judged, every_tag), ""]
    lines = wrap(lines)
    numbers = headline_numbers(run)
    if numbers:
        lines += _headline(numbers)
    if every_tag:
        lines += ["", *_everything(run)]
    elif len(numbers) < len(run.scalars):
        lines += [
            "",
            f"--all shows all {len(run.scalars)} tags; `hjepa-metrics explain TAG` says what one means",
        ]
    return lines, judged.health.verdict == "healthy"


def _headline(numbers: list[Number]) -> list[str]:
    rows = [(n.label, number(n.first), number(n.last), n.unit, n.limit) for n in numbers]
    return render(("", "start", "end", "unit", "healthy"), rows, numbers=(1, 2)).splitlines()


def _everything(run: Run) -> list[str]:
    rows = [(row.tag, number(row.first), number(row.last), row.unit) for row in values(run)]
    return render(("tag", "first", "last", "unit"), rows, numbers=(1, 2)).splitlines()
