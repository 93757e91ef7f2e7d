"""Findings on the course of the loss."""

from __future__ import annotations

import math
from itertools import product

from hjepa_dist_metrics.monitor.health.detector import TOTAL_LOSSES, Detector, first_of
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History, median, scatter

_SCORE, _HEIGHT = "stability/worst_spike_score", "stability/worst_spike_height"
_RANGE = "stability/loss_max_spike"
_VALIDATION = "val/loss"
_SHARES = r"loss/contribution_h\d+"
_RATIO = r"update/.+_ratio"

_SPIKE_SCORE, _SPIKE_RANGE, _HIGH_SCORE = 30.0, 1.5, 4.0  # the last where the loss doubles
_SPIKE_SHARE = 0.1  # of the loss at the start, as the least height of a spike
_BEFORE, _AFTER = 5, 2  # logs before and after a jump, at least
_SHIFT = 0.12  # of the loss
_DROP = 0.5  # of the loss
_CLEAR = 4.0  # times the scatter between logs
_PLATEAU_LOGS, _PLATEAU_STEPS, _PLATEAU_GAIN = 24, 100, 0.02
_MOVING = 1e-5  # of the weights in a step
_OVERFIT = 1.1
_IMBALANCE = 98.0


def loss_spike(history: History) -> list[Evidence] | None:
    """Find a step since the last log whose loss stands far above those before it."""
    score, ratio = history.value(_SCORE), history.value(_RANGE, math.inf)
    height, named = history.value(_HEIGHT), first_of(history, TOTAL_LOSSES)
    floor = _SPIKE_SHARE * abs(named[1].start_median()) if named else 0.0
    loss = abs(named[1].median(3)) if named else math.inf
    far = score > _SPIKE_SCORE and ratio > _SPIKE_RANGE
    if height <= floor or not (far or (score > _HIGH_SCORE and height > loss)):
        return []
    reason = "robust standard deviations above the losses before"
    return [Evidence(_SCORE, score, reason, limit=_SPIKE_SCORE, at_once=True)]


def loss_level_shift(history: History) -> list[Evidence] | None:
    """Find a loss that jumped up between two logs and stays there."""
    return _jump(history, 1.0, _SHIFT, "it jumped from {before:.4g} to {after:.4g} and stays")


def loss_drop(history: History) -> list[Evidence] | None:
    """Find a loss that fell between two logs far below a level that had been steady."""
    return _jump(history, -1.0, _DROP, "it fell at once from {before:.4g} to {after:.4g}")


def _jump(history: History, sign: float, share: float, words: str) -> list[Evidence] | None:
    """Find a step between steady levels of the total loss, the newer one at least `_AFTER` logs long."""
    named = first_of(history, TOTAL_LOSSES)
    if named is None or len(named[1].recent) < _BEFORE + _AFTER:
        return None
    tag, series = named
    values = series.last(16)
    if max(values) - min(values) <= share * abs(median(values)):
        return []
    # A log in between may hold steps of both levels.
    for after, between in product(range(_AFTER, len(values) - _BEFORE), (0, 1)):
        older, newer = values[: -after - between], values[-after:]
        if _is_step(older[-8:], newer, sign, share):
            before, level = median(older[-8:]), median(newer)
            limit = median(older[-3:]) if sign > 0 else before - share * abs(before)
            return [Evidence(tag, series.newest, words.format(before=before, after=level), limit=limit)]
    return []


def _is_step(older: list[float], newer: list[float], sign: float, share: float) -> bool:
    extreme = max(sign * value for value in older[-4:])
    gap = min(sign * value for value in newer) - extreme
    if gap <= share * abs(median(older)):
        return False
    noise = max(scatter(older), scatter(newer) if len(newer) > 2 else 0.0)
    drift = sign * (median(older[-3:]) - median(older[-6:-3] or older[:3]))
    return gap > 2.0 * drift and gap > _CLEAR * noise


def plateau(history: History) -> list[Evidence] | None:
    """Find a loss that has not fallen since the start although the weights move."""
    named = first_of(history, TOTAL_LOSSES)
    if named is None or named[1].count < _PLATEAU_LOGS or named[1].steps < _PLATEAU_STEPS:
        return None
    tag, series = named
    moved = max((s.median(5) for _, s in history.matching(_RATIO)), default=math.nan)
    if series.lowest is None or series.highest is None or not moved > _MOVING:
        return None
    start, lowest = series.start[0][1], series.lowest[1]
    fallen = start - lowest > _PLATEAU_GAIN * abs(start)
    ranged = series.highest[1] - lowest > 10 * _PLATEAU_GAIN * abs(start)
    if fallen or ranged or series.highest[1] == lowest:
        return []
    reason = f"within {100 * _PLATEAU_GAIN:.0f} % of its start, {start:.4g}, for {series.steps} steps"
    return [Evidence(tag, series.newest, reason, limit=start * (1 - _PLATEAU_GAIN), best=lowest)]


def overfitting(history: History) -> list[Evidence] | None:
    """Find a validation loss above its best while the training loss is below what it was then."""
    validation, named = history.get(_VALIDATION), first_of(history, TOTAL_LOSSES)
    if validation is None or named is None or validation.count < 3:
        return None
    points = (*validation.outline, *validation.recent)
    step, best = min(points, key=lambda point: point[1])
    then, now = named[1].at(step), named[1].median(3)
    if not (validation.newest > _OVERFIT * best > 0 and now < then):
        return []
    reason = f"{best:.4g} at best, at step {step}, while the training loss fell from {then:.4g} to {now:.4g}"
    return [Evidence(_VALIDATION, validation.newest, reason, limit=_OVERFIT * best, best=best)]


def level_imbalance(history: History) -> list[Evidence] | None:
    """Find a level that carries nearly all of the loss while there are others."""
    shares = history.matching(_SHARES)
    if len(shares) < 2:
        return None
    return [
        Evidence(tag, series.newest, "percent of the loss: the other levels are left untrained", _IMBALANCE)
        for tag, series in shares
        if series.median(3) > _IMBALANCE
    ]


DETECTORS = (
    Detector("loss_spike", loss_spike, (_SCORE,), (_HEIGHT, _RANGE, *TOTAL_LOSSES)),
    Detector("loss_level_shift", loss_level_shift, TOTAL_LOSSES),
    Detector("loss_drop", loss_drop, TOTAL_LOSSES),
    Detector("plateau", plateau, TOTAL_LOSSES, (_RATIO,)),
    Detector("overfitting", overfitting, (_VALIDATION,), TOTAL_LOSSES),
    Detector("level_imbalance", level_imbalance, (_SHARES,)),
)
