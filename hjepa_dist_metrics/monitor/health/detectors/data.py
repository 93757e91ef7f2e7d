"""Findings on what a loader hands over."""

from __future__ import annotations

import math
from collections.abc import Callable

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History

_MOST = 0.5  # of the batches that were looked at
_UNEVEN = 0.01  # of the steps, by which shards rightly differ


def _share(tag: str, words: str) -> Callable[[History], list[Evidence]]:
    """Return a detector's function: a share of batches above a half."""

    def detect(history: History) -> list[Evidence]:
        value = history.value(tag, 0.0)
        if value <= _MOST:
            return []
        return [Evidence(tag, value, f"{100 * value:.0f} % of the batches {words}", limit=_MOST)]

    return detect


def early_end(history: History) -> list[Evidence]:
    """Find a rank that ran out of data before the others, by more than uneven shards make."""
    missing, rank = history.value("data/steps_missing", 0.0), history.value("data/ended_early_rank")
    if not missing > max(1.0, _UNEVEN * history.step):
        return []
    who = f"rank {rank:.0f}" if math.isfinite(rank) else "a rank"
    reason = f"{who} ended {missing:.0f} steps before the last"
    return [Evidence("data/steps_missing", missing, reason, limit=0.0, at_once=True)]


_REPEATED, _SHARED, _CONSTANT = "data/repeated_batches", "data/shared_batches", "data/constant_batches"
DETECTORS = (
    Detector("repeated_batches", _share(_REPEATED, "came before"), (_REPEATED,)),
    Detector("shared_shards", _share(_SHARED, "were the same on several ranks"), (_SHARED,)),
    Detector("constant_inputs", _share(_CONSTANT, "hold one value only"), (_CONSTANT,)),
    Detector("early_end", early_end, ("data/steps_missing",), ("data/ended_early_rank",)),
)
