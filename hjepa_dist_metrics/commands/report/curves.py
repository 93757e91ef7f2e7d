"""The curves that a person looks at first, runs overlaid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hjepa_dist_metrics.catalog.run_limits import limits_of
from hjepa_dist_metrics.commands.headline import CURVES, Curve
from hjepa_dist_metrics.commands.report.charts import LIMIT, Chart, ChartData, Line, healthy, look
from hjepa_dist_metrics.commands.runs import Run


def curves(runs: Sequence[Run], data: ChartData) -> Iterator[str]:
    """Yield the charts for which a run has numbers."""
    charts = [(curve, _lines(curve, runs)) for curve in CURVES]
    drawn = [data.add(_chart(curve, runs, lines)) for curve, lines in charts if lines]
    if drawn:
        yield (
            '<p class="note hint">Hover for values, drag to zoom, double-click to see all again, click a '
            "name to hide or show its line.</p>"
        )
        yield f'<div class="charts">{"".join(drawn)}</div>'


def _chart(curve: Curve, runs: Sequence[Run], lines: Sequence[Line]) -> Chart:
    ranges = {limits_of(curve.limited, run.latest) for run in runs if curve.limited in run.scalars}
    agreed = healthy(ranges.pop()) if len(ranges) == 1 else {}
    return Chart(curve.title, lines, **agreed)


def _lines(curve: Curve, runs: Sequence[Run]) -> list[Line]:
    """Return a chart's lines: of one run a colour a tag, of several a colour a run and a dash a tag."""
    tags = list(dict.fromkeys(tag for run in runs for tag in curve.tags(run)))
    if len(runs) == 1:
        limits = [tag for tag in curve.limits if tags and tag in runs[0].scalars]
        return [
            *(Line(0, tag, tag, *look(index)) for index, tag in enumerate(tags)),
            *(Line(0, tag, tag, LIMIT, dash) for dash, tag in enumerate(limits, start=1)),
        ]
    return [
        Line(number, tag, f"{run.name}: {tag}" if len(tags) > 1 else run.name, number, index)
        for index, tag in enumerate(tags)
        for number, run in enumerate(runs)
        if tag in run.scalars
    ]
