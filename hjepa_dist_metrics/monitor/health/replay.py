"""Judge a run again from its logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from hjepa_dist_metrics.monitor.health.findings import Finding
from hjepa_dist_metrics.monitor.health.judge import Judge
from hjepa_dist_metrics.settings.schema import AlertsConfig

_OWN = ("alerts/", "health/")


def replay(
    scalars: Mapping[str, Sequence[tuple[int, float]]], config: AlertsConfig | None = None
) -> tuple[Judge, list[tuple[int, Finding]]]:
    """Return the judge at the end of a run's logs, and every finding that began with its step.

    `scalars` maps tags to their points, as event files and JSON lines hold them.
    """
    logs: dict[int, dict[str, float]] = defaultdict(dict)
    for tag, points in scalars.items():
        if not tag.startswith(_OWN):
            for step, value in points:
                logs[step][tag] = value
    judge, begun = Judge(config), []
    for step in sorted(logs):
        judge.update(step, logs[step])
        begun += [(step, finding) for finding in judge.change.begun]
    return judge, begun
