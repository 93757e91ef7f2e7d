"""Findings on parameters that the optimizers hold."""

from __future__ import annotations

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History, Series

_MOVE, _RATE = r"update/.+(?<!exp_avg)_norm", r"learning_rate/param_group_\d+"
_LOGS, _STEPS = 12, 100  # a group may be switched on after a warm-up


def unmoved_parameters(history: History) -> list[Evidence] | None:
    """Find parameter groups that no optimizer's step has changed, while others move.

    A rate of 0 says that a group is meant to stay; tags do not tell of which group it is.
    """
    judged = [pair for pair in history.matching(_MOVE) if pair[1].count >= _LOGS and pair[1].steps >= _STEPS]
    if not judged:
        return None
    if any(series.newest == 0 for _, series in history.matching(_RATE)):
        return []
    if all(_never_moved(series) for _, series in judged):
        return []
    reason = "no logged step has changed the group's parameters since the start"
    return [
        Evidence(tag, series.newest, reason, limit=0.0)
        for tag, series in judged
        if tag in history.fresh and _never_moved(series)
    ]


def _never_moved(series: Series) -> bool:
    points = (*series.start, *series.outline, *series.recent, *([series.highest] if series.highest else []))
    return all(value == 0 for _, value in points)


DETECTORS = (Detector("unmoved_parameters", unmoved_parameters, (_MOVE,), (_RATE,)),)
