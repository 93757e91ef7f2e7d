"""The page: verdict, headline numbers, curves, figures, everything else, settings, environment.

The curves are drawn by uPlot (MIT, version 1.6.32), whose 50 kB are written into the page. It is the smallest
plotting library that hovers, zooms, toggles series and lets one draw below the curves: Plotly takes 3.5 MB,
ECharts 1 MB, Chart.js 200 kB and a plug-in to zoom. It draws 100,000 points, which a report of several long
runs may hold, in a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from hjepa_dist_metrics.commands.report import facts, figures, findings, numbers
from hjepa_dist_metrics.commands.report.charts import ChartData
from hjepa_dist_metrics.commands.report.curves import curves
from hjepa_dist_metrics.commands.report.markup import attribute, text
from hjepa_dist_metrics.commands.runs import Run
from hjepa_dist_metrics.commands.verdict import judge
from hjepa_dist_metrics.version import __version__

_ASSETS = Path(__file__).with_name("assets")
# The page may run its own script and show its own pictures, and may ask nobody for anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_SECTIONS = {
    "verdict": "Verdict",
    "numbers": "Numbers",
    "curves": "Curves",
    "figures": "Figures",
    "all": "All numbers",
    "settings": "Settings",
    "environment": "Environment",
}


def render_report(runs: Sequence[Run], refresh: float | None = None) -> str:
    """Return the page of one or several runs; it refers to nothing outside itself.

    With `refresh` the page loads itself again every so many seconds.
    """
    title, judged, data = ", ".join(run.name for run in runs), [judge(run) for run in runs], ChartData(runs)
    sections = {
        "verdict": findings.verdicts(runs, judged, data),
        "numbers": numbers.headlines(runs),
        "curves": curves(runs, data),
        "figures": figures.pictures(runs),
        "all": numbers.everything(runs, data),
        "settings": facts.settings(runs),
        "environment": facts.environment(runs),
    }
    written = {name: "\n".join(parts) for name, parts in sections.items()}
    written = {name: part for name, part in written.items() if part}
    body = "\n".join(
        f'<section id="{name}"><h2>{_SECTIONS[name]}</h2>\n{part}\n</section>'
        for name, part in written.items()
    )
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(_tab_title(title, judged[0].health.verdict, len(runs)))}</title>",
            f"<style>{_asset('uPlot.min.css')}\n{_asset('report.css')}</style></head>\n<body>\n",
            f"<header><h1>{text(title)}</h1>{''.join(facts.header(runs))}{_made(refresh)}</header>\n",
            f"<nav>{''.join(_links(written))}<button id='theme' type='button'>Dark / light</button></nav>\n",
            "<noscript><p>The curves need JavaScript; everything else is here.</p></noscript>\n",
            f"<main>\n{body}\n</main>\n",
            f'<script type="application/json" id="data">{_json(data, refresh)}</script>\n',
            f"<script>{_script('uPlot.iife.min.js')}</script>\n<script>{_script('report.js')}</script>\n",
            "</body></html>\n",
        ]
    )


def _tab_title(title: str, verdict: str, count: int) -> str:
    return title if count > 1 else f"{verdict}: {title}"


def _links(written: dict[str, str]) -> Iterator[str]:
    for name in written:
        yield f'<a href="#{attribute(name)}">{_SECTIONS[name]}</a>'


def _made(refresh: float | None) -> str:
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    live = f"; live, made anew every {refresh:g} s" if refresh else ""
    return f'<p class="facts">Report of {now}{live}; hjepa-metrics {__version__}</p>'


def _json(data: ChartData, refresh: float | None) -> str:
    """Return the numbers as JSON that no browser takes for markup."""
    content = json.dumps({**data.content(), "refresh": refresh}, allow_nan=False, separators=(",", ":"))
    return content.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    return _asset(name).replace("</script", "<\\/script")
