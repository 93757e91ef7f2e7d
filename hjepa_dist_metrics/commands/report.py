"""`hjepa-metrics report`: one HTML file with findings, plots, final values and configuration."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from hjepa_dist_metrics.catalog.dashboards import DASHBOARDS, REQUESTED_DASHBOARDS, load_dashboards
from hjepa_dist_metrics.commands.charts import Points, line_chart
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.table import number
from hjepa_dist_metrics.commands.values import values
from hjepa_dist_metrics.commands.verdict import judge, verdict_lines
from hjepa_dist_metrics.version import __version__

_MOST_LINES = 12
_LEVELS = 8
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 1000px }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid #ccc }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 1em }
figure { margin: 0 } img { width: 100% }
figcaption { font-weight: 600 } svg { width: 100%; background: #fafafa }
svg text { font-size: 11px; fill: #444 } .grid { stroke: #ddd }
.legend { margin: 0; font-size: 12px } .legend span { margin-right: 1em; display: inline-block }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 4px }
table { border-collapse: collapse }
td, th { padding: 2px 10px; text-align: left; border-bottom: 1px solid #eee }
td.n { text-align: right; font-variant-numeric: tabular-nums } .failing { color: #a40000 }
.warning { color: #8a5a00 } .healthy { color: #1b6e1b }
pre { white-space: pre-wrap }
"""


# By run and tag: the step, and a PNG file.
Pictures = Mapping[str, Mapping[str, tuple[int, bytes]]]


def render_report(runs: Sequence[Run], pictures: Pictures | None = None) -> str:
    """Return the page: it refers to nothing outside itself and runs no script."""
    title = ", ".join(run.name for run in runs)
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            f"<p>{'; '.join(f'{escape(run.name)}: {run.last_step + 1} steps' for run in runs)}</p>",
            *_findings(runs),
            *_charts(runs),
            *_pictures(runs, pictures or {}),
            *_values(runs),
            *_settings(runs),
            f"<p><small>hjepa-metrics {__version__}</small></p>",
        ]
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _pictures(runs: Sequence[Run], pictures: Pictures) -> Iterator[str]:
    """Yield each run's last figures, inside the page."""
    for run in runs:
        shown = pictures.get(run.name, {})
        if not shown:
            continue
        yield f"<h2>Figures{f' of {escape(run.name)}' if len(runs) > 1 else ''}</h2><div class='charts'>"
        for tag, (step, png) in sorted(shown.items()):
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            caption = f"{escape(tag)}, step {step}"
            yield f"<figure><img alt='{caption}' src='{source}'><figcaption>{caption}</figcaption></figure>"
        yield "</div>"


def _findings(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        first, *rest = verdict_lines(judged := judge(run), everything=True)
        name = f"{escape(run.name)}: " if len(runs) > 1 else ""
        yield f'<h2 class="{judged.health.verdict}">{name}{escape(first)}</h2>'
        if rest:
            yield f"<pre>{escape(chr(10).join(rest))}</pre>"


def _charts(runs: Sequence[Run]) -> Iterator[str]:
    for section, charts in load_dashboards((*DASHBOARDS, *REQUESTED_DASHBOARDS), _LEVELS).items():
        drawn = []
        for title, (kind, tags) in charts.items():
            patterns = tags if kind == "Multiline" else [f"^{re.escape(tag)}$" for tag in tags]
            lines = _lines(runs, patterns)
            if lines:
                drawn.append(line_chart(title, lines))
        if drawn:
            yield f'<h2>{escape(section)}</h2><div class="charts">{"".join(drawn)}</div>'


def _lines(runs: Sequence[Run], patterns: Sequence[str]) -> dict[str, Points]:
    """Return the lines of a chart by name, at most twelve."""
    found: dict[str, Points] = {}
    for run in runs:
        for tag in sorted(run.scalars):
            if any(re.match(pattern, tag) for pattern in patterns):
                found[tag if len(runs) == 1 else f"{run.name}: {tag}"] = run.scalars[tag]
    return dict(list(found.items())[:_MOST_LINES])


def _values(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        yield f"<h2>Final values: {escape(run.name)}</h2>"
        rows = (
            f'<tr><td>{escape(row.tag)}</td><td class="n">{number(row.first)}</td>'
            f'<td class="n">{number(row.last)}</td><td>{escape(row.unit)}</td>'
            f"<td>{escape(row.healthy)}</td></tr>"
            for row in values(run)
        )
        yield _table(("tag", "first", "last", "unit", "healthy"), rows)


def _settings(runs: Sequence[Run]) -> Iterator[str]:
    keys = sorted({key for run in runs for key in run.settings})
    yield "<h2>Configuration</h2>"
    if not keys:
        yield "<p>The runs recorded no settings.</p>"
        return
    rows = (
        f"<tr><td>{escape(key)}</td>"
        + "".join(f"<td>{escape(str(run.settings.get(key, '-')))}</td>" for run in runs)
        + "</tr>"
        for key in keys
    )
    yield _table(("setting", *(run.name for run in runs)), rows)


def _table(header: Sequence[str], rows: Iterator[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"
