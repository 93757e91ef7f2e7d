"""Findings on models with several heads that reconstruct images."""

from __future__ import annotations

import re
from itertools import pairwise

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History, Series

_GAP = r"Eval/Gap/[^/]+_gap"
_NORM, _LOSS = "Train/Gradients/total_norm", "Train/Loss/total_loss"
_RATIO = r"Train/Gradients/[^/]+_to_[^/]+_ratio"
_SIMILARITY, _ACTIVE = r"Eval/Frame/val_([^/]+)_sim", r"Train/[^/]+_loss_active"
_RISE = 0.01
_WINDOW, _TURNS, _SWING = 8, 4, 0.2


def generalization_gap(history: History) -> list[Evidence] | None:
    """Find training frames far better than validation frames."""
    return _beyond_limits(history.matching(_GAP))


def gradient_range(history: History) -> list[Evidence] | None:
    """Find a gradient of the whole model that vanishes or explodes."""
    return _outside(history.matching(_NORM), *catalog.GRADIENT_NORM_RANGE)


def head_imbalance(history: History) -> list[Evidence] | None:
    """Find a head whose gradient drowns another's."""
    return _outside(history.matching(_RATIO), *catalog.HEAD_RATIO_RANGE)


def poor_semantics(history: History) -> list[Evidence] | None:
    """Find a semantic head that does not learn: its similarity is poor and no longer rises.

    It is judged from the first epoch on that trains the head.
    """
    judged = []
    for tag, series in history.matching(_SIMILARITY):
        match = re.fullmatch(_SIMILARITY, tag)
        active = history.value(f"Train/{match[1]}_loss_active", 1.0) if match else 1.0
        before = series.before(1)
        rises = bool(before) and series.newest > before[-1] + _RISE
        if active > 0 and before and not rises:
            judged.append((tag, series))
    return _beyond_limits(judged)


def loss_oscillation(history: History) -> list[Evidence] | None:
    """Find an epoch loss that swings: its direction turns again and again, by a good part of its size."""
    series = history.get(_LOSS)
    if series is None or series.count < _WINDOW:
        return None
    values = series.last(_WINDOW)
    moves = [after - before for before, after in pairwise(values)]
    turns = sum(one * other < 0 for one, other in pairwise(moves))
    swing = sum(map(abs, moves)) / len(moves)
    level = sum(map(abs, values)) / len(values)
    if turns < _TURNS or swing <= _SWING * level:
        return []
    reason = f"turned {turns} times in {_WINDOW} epochs, by {100 * swing / level:.0f} % of its size"
    return [Evidence(_LOSS, values[-1], reason)]


def _beyond_limits(tagged: list[tuple[str, Series]]) -> list[Evidence]:
    """Compare with the catalog's limits."""
    found = []
    for tag, series in tagged:
        entry = catalog.find(tag)
        if entry is None or entry.limits is None:
            continue
        limits = entry.limits(0, 0)
        if limits.judge(series.newest) == "bad":
            side = "below" if limits.low_is_bad else "above"
            found.append(Evidence(tag, series.newest, f"{side} {limits.bad:g}", limit=limits.bad))
    return found


def _outside(tagged: list[tuple[str, Series]], low: float, high: float) -> list[Evidence]:
    return [
        Evidence(tag, series.newest, f"not between {low:g} and {high:g}")
        for tag, series in tagged
        if not low <= series.newest <= high  # NaN is bad too
    ]


DETECTORS = (
    Detector("generalization_gap", generalization_gap, (_GAP,)),
    Detector("gradient_range", gradient_range, (_NORM,)),
    Detector("head_imbalance", head_imbalance, (_RATIO,)),
    Detector("poor_semantics", poor_semantics, (_SIMILARITY,), (_ACTIVE,)),
    Detector("loss_oscillation", loss_oscillation, (_LOSS,)),
)
