"""Findings on probes: features that lose what they held while the loss goes on falling."""

from __future__ import annotations

import math

from hjepa_dist_metrics.monitor.health.detector import TOTAL_LOSSES, Detector, first_of
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import HELD, History, Series, rank_correlation

_ACCURACY, _ROWS = r"probe/.+_(?:linear|knn)_top1", r"probe/.+_(?:linear|knn)_rows"
_LOGS, _STEPS = 8, 100  # before which an untrained network's accuracy may go anywhere
_LOST = 0.25  # of the accuracy that the run held
_ERRORS = 5.0  # standard errors of the accuracy, the least fall
_COMES_BACK = 0.4  # of all pairs of recent accuracies, less those that fall
_BEST = 1.02  # times the lowest loss


def forgetting(history: History) -> list[Evidence] | None:
    """Find an accuracy far below the level that was held, with a loss that is at its lowest."""
    named = first_of(history, TOTAL_LOSSES)
    judged = [
        (tag, series)
        for tag, series in history.matching(_ACCURACY)
        if tag in history.fresh and series.count >= _LOGS and series.steps >= _STEPS
    ]
    if named is None or not judged:
        return None
    if not _is_at_its_lowest(named[1]):
        return []
    found = []
    for tag, series in judged:
        level, now = series.sustained(HELD), series.median(3)
        limit = level - max(_LOST * level, _ERRORS * _error(history, tag, level))
        if now < limit and rank_correlation(series.last(8)) < _COMES_BACK:
            reason = f"it was {level:.3g} for long, and the loss is at its lowest"
            found.append(Evidence(tag, series.newest, reason, limit=limit, best=level))
    return found


def _is_at_its_lowest(loss: Series) -> bool:
    return loss.lowest is not None and loss.median(3) <= loss.lowest[1] + (_BEST - 1.0) * abs(loss.lowest[1])


def _error(history: History, tag: str, accuracy: float) -> float:
    """Return the standard error of an accuracy; a third as many rows are held out as are learned from."""
    held_out = history.value(tag.replace("_top1", "_rows"), 0.0) / 3.0
    return math.sqrt(max(accuracy * (1.0 - accuracy), 0.01) / max(held_out, 1.0))


DETECTORS = (Detector("forgetting", forgetting, (_ACCURACY,), (_ROWS, *TOTAL_LOSSES)),)
