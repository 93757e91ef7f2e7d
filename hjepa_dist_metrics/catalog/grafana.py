"""The dashboards of configs/dashboards/ as one Grafana dashboard over what Prometheus has scraped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from hjepa_dist_metrics.catalog.dashboards import DASHBOARDS, Chart, load_dashboard
from hjepa_dist_metrics.catalog.prometheus import PREFIX, label_names, metric_name
from hjepa_dist_metrics.catalog.registry import find_pattern

_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Grafana's names of the catalog's units.
_UNITS = {"s": "s", "ms": "ms", "%": "percent", "GB": "decgbytes", "B": "bytes", "dB": "dB"}


def grafana_dashboard(names: Iterable[str] | Literal["default"] = "default") -> dict[str, Any]:
    """Return the dashboard as Grafana imports it: a row for each dashboard, a panel for each chart.

    It asks for the data source and the run by two variables at its top. ConfigError for an unknown name.
    """
    panels = [_stuck_panel()]
    top = _HEIGHT
    for name in DASHBOARDS if names == "default" else names:
        dashboard = load_dashboard(name)
        panels.append(_row(dashboard.title, top))
        for index, chart in enumerate(dashboard.charts):
            place = {"x": _WIDTH * (index % _PER_ROW), "y": top + 1 + _HEIGHT * (index // _PER_ROW)}
            panels.append(_panel(chart, {**place, "w": _WIDTH, "h": _HEIGHT}))
        top += 1 + _HEIGHT * -(-len(dashboard.charts) // _PER_ROW)
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "title": "Training run (hjepa-dist-metrics)",
        "uid": "hjepa-dist-metrics",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """Yield the PromQL expressions of a dashboard, its variable `run` open."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$run", ".*")


def _variables() -> list[dict[str, Any]]:
    query = f"label_values({PREFIX}last_step, run)"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "run",
            "type": "query",
            "label": "Run",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": "run"},
            "definition": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
        },
    ]


def _row(title: str, top: int) -> dict[str, Any]:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
        "panels": [],
    }


def _panel(chart: Chart, place: dict[str, int]) -> dict[str, Any]:
    targets = [_target(pattern, chr(ord("A") + index)) for index, pattern in enumerate(chart.tags)]
    first = find_pattern(chart.tags[0])
    panel = _time_series(chart.title.replace(" {i}", ""), targets, place)
    panel["fieldConfig"]["defaults"]["unit"] = _UNITS.get(first.unit if first else "", "short")
    panel["description"] = first.meaning if first else ""
    return panel


def _target(pattern: str, reference: str) -> dict[str, Any]:
    labels = " ".join(f"{{{{{name}}}}}" for name in label_names(pattern))
    return {
        "refId": reference,
        "datasource": _SOURCE,
        "expr": f'{metric_name(pattern)}{{run=~"$run"}}',
        "legendFormat": f"{{{{run}}}} {pattern if not labels else pattern.split('{')[0]}{labels}",
    }


def _stuck_panel() -> dict[str, Any]:
    target = {
        "refId": "A",
        "datasource": _SOURCE,
        "expr": f'time() - {PREFIX}last_step_timestamp_seconds{{run=~"$run"}}',
        "legendFormat": "{{run}}",
    }
    panel = _time_series("Since the last log", [target], {"x": 0, "y": 0, "w": 24, "h": _HEIGHT})
    panel["fieldConfig"]["defaults"]["unit"] = "s"
    panel["description"] = "Rises without an end where a run is stuck or gone."
    return panel


def _time_series(title: str, targets: list[dict[str, Any]], place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": targets,
    }
