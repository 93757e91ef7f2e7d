"""Findings on gradients, updates and weights."""

from __future__ import annotations

import math
import re

from hjepa_dist_metrics.monitor.health.detector import TOTAL_LOSSES, Detector, first_of
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import HELD, History, Series, rank_correlation

_NORMS = (
    "gradient/global_norm_before_clip",
    "gradients/global_norm",
    "Train/Gradients/total_norm",
    "optimization/grad_norm",
)
_RATIO, _WEIGHTS = r"update/.+_ratio", r"weights/.+_norm"
_COUNTS = r".*[/_]nonfinite"
_BAD_STEPS, _SKIPPED = "gradient/nonfinite_steps", "gradient/skipped_steps"
_BAD_LEVEL = "loss/first_nonfinite_level"
_COEFFICIENT = "gradient/clipping_ratio"
_UNOPTIMIZED = "parameters/unoptimized"
_SEEN_NORM = "gradients/global_norm"

_JUMP = 100.0  # times the recent median
_GROWTH = 5.0  # times the norm that was held, in steps that lead upwards
_RISING = 0.6  # of all pairs of recent norms, less those that fall
_VANISHED, _FADED = 1e-3, 0.05  # of the usual norm, and while it falls from log to log
_LOSS_LEFT = 0.3  # of the loss at the start
_VIOLENT = 0.5  # of the weights in a step
_HIGH, _LARGE = 0.03, 0.1  # of the weights in a step, with a loss that rises, or has not recovered since
_WORSE, _HARDLY_LEFT, _LITTLE_LEFT = 1.2, 0.9, 0.6  # times the loss at the start
_IDLE, _NEARLY_IDLE = 2e-6, 1e-5  # of the weights in a step, at best; where the loss has not moved
_MOVED = 0.02  # of the loss at the start
_WARM_UP_LOGS = 20
_SHRUNK = 0.7  # of the norm that the weights had for long
_STRONGLY, _CLIPPED_LOGS = 0.05, 3  # of the gradient that clipping leaves, at as many logs in a row
_CEILING_LOGS, _ALIKE = 3, 1e-4  # logs with the same norm, and up to which difference it is the same
_LEAST_LOGS = 5


def nonfinite(history: History) -> list[Evidence] | None:
    """Find NaN and infinite losses, features and gradients; the first bad level first."""
    found = []
    if _BAD_LEVEL in history.fresh:
        level = history.value(_BAD_LEVEL)
        reason = "the first level that is NaN or infinite"
        found.append(Evidence(f"loss/h{int(level)}", math.nan, reason, at_once=True))
    for tag, series in history.matching("|".join(TOTAL_LOSSES)):
        if not math.isfinite(series.newest):
            found.append(Evidence(tag, series.newest, "the loss is NaN or infinite", at_once=True))
    for tag, series in history.matching(_COUNTS):
        if series.newest > 0:
            reason = "NaN or infinite values were seen"
            found.append(Evidence(tag, series.newest, reason, limit=0.0, at_once=True))
    return found + _bad_steps(history)


def _bad_steps(history: History) -> list[Evidence]:
    """Find steps since the last look whose gradient was bad, of a count over the whole run.

    Not at once: a loss scaler that seeks its scale makes a few, and without one the loss follows.
    """
    series = history.get(_BAD_STEPS)
    if series is None or not series.count:
        return []
    before = series.before(1)[-1] if series.count > 1 else 0.0
    if series.newest <= before:
        return []
    reason = f"steps had a NaN or infinite gradient by now, {series.newest - before:.0f} since the last log"
    return [Evidence(_BAD_STEPS, series.newest, reason)]


def skipped_steps(history: History) -> list[Evidence] | None:
    """Find an optimizer that has skipped nearly every step since the log before last."""
    series = history.get(_SKIPPED)
    if series is None or len(series.recent) < 3:
        return None
    (then, before), (now, after) = series.recent[-3], series.recent[-1]
    share = (after - before) / max(now - then, 1)
    if share < 0.9:
        return []
    return [Evidence(_SKIPPED, after, f"{100 * share:.0f} % of the steps since step {then} were skipped")]


def gradient_explosion(history: History) -> list[Evidence] | None:
    """Find a norm that jumped far above its recent range, or has grown step by step far above its start."""
    named = first_of(history, _NORMS)
    if named is None or named[1].count < _LEAST_LOGS:
        return None
    tag, series = named
    return _jump(tag, series) or _growth(tag, series)


def _jump(tag: str, series: Series) -> list[Evidence]:
    usual = max(_middle(series), series.start_median())
    now = min(series.last(2))
    if usual <= 0 or now <= _JUMP * usual:
        return []
    reason = f"more than {_JUMP:g} times its usual {usual:.3g}"
    return [Evidence(tag, series.newest, reason, limit=_JUMP * usual)]


def _growth(tag: str, series: Series) -> list[Evidence]:
    if series.count < 2 * _LEAST_LOGS or rank_correlation(series.last(12)) < _RISING:
        return []
    level, now = series.sustained(HELD, -1.0), series.median(3)
    if not now > _GROWTH * level > 0:
        return []
    reason = f"it was {level:.3g} for long, has grown {now / level:.0f} times and still grows"
    return [Evidence(tag, series.newest, reason, limit=_GROWTH * level)]


def gradient_vanishing(history: History) -> list[Evidence] | None:
    """Find a norm that fell to next to nothing, or still falls, while most of the loss is left."""
    named = first_of(history, _NORMS)
    if named is None or named[1].count < _LEAST_LOGS:
        return None
    tag, series = named
    falls = rank_correlation(series.last(12)) < -_RISING
    level, now = series.sustained(HELD), series.median(3)
    usual = max(level if math.isfinite(level) else 0.0, series.start_median(), _middle(series))
    limit = (_FADED if falls else _VANISHED) * usual
    if usual <= 0 or now >= limit or not _has_loss_left(history):
        return []
    reason = f"{now / usual:.1g} of its usual {usual:.3g}, while the loss is far from 0"
    return [Evidence(tag, series.newest, reason, limit=limit)]


def _middle(series: Series) -> float:
    values = sorted(value for _, value in series.outline)
    return values[len(values) // 2]


def _has_loss_left(history: History) -> bool:
    named = first_of(history, TOTAL_LOSSES)
    if named is None:
        return True
    return abs(named[1].median(3)) > _LOSS_LEFT * abs(named[1].start_median())


def learning_rate_too_high(history: History) -> list[Evidence] | None:
    """Find steps of the size of the weights, and large ones that the loss has not recovered from."""
    ratios = [(tag, series) for tag, series in history.matching(_RATIO) if series.count > 1]
    if not ratios:
        return None
    found = []
    for tag, series in ratios:
        now, peak = min(series.last(2)), _second_highest(series)
        if now > _VIOLENT:
            reason = f"above {_VIOLENT:g}: most of the weights are replaced in a step"
            found.append(Evidence(tag, series.newest, reason, limit=_VIOLENT))
        elif now > _HIGH and _loss_rises(history):
            reason = f"above {_HIGH:g}, and the loss is above its best"
            found.append(Evidence(tag, series.newest, reason, limit=_HIGH))
        elif peak > _LARGE and _loss_is_damaged(history):
            reason = f"it was {peak:.2g}, and the loss has not recovered since"
            found.append(Evidence(tag, series.newest, reason))
    return sorted(found, key=lambda evidence: -evidence.value)


def _second_highest(series: Series) -> float:
    """Return the second highest number: one alone may be a module that began at zero."""
    values = dict((*series.start, *series.outline, *series.recent))
    return sorted(values.values())[-2] if len(values) > 1 else 0.0


def _loss_rises(history: History) -> bool:
    named = first_of(history, TOTAL_LOSSES)
    if named is None or named[1].count < 2:
        return False
    series = named[1]
    best = series.lowest[1] if series.lowest else series.start[0][1]
    return min(series.last(2)) > best + (_WORSE - 1.0) * abs(best)


def _loss_is_damaged(history: History) -> bool:
    """Return whether the loss is near its start, or far from what it can be after it has risen above it."""
    named = first_of(history, TOTAL_LOSSES)
    if named is None or named[1].count < 2:
        return False
    series = named[1]
    start, now = series.start[0][1], series.median(3)
    highest = series.highest[1] if series.highest else now
    if highest > start + (_WORSE - 1.0) * abs(start):
        return now > _LITTLE_LEFT * start
    return now > _HARDLY_LEFT * start


def learning_rate_too_low(history: History) -> list[Evidence] | None:
    """Find steps that have never changed the weights by more than some millionths.

    A rate that rises is in its warm-up, and is judged later.
    """
    ratios = [pair for pair in history.matching(_RATIO) if pair[1].count >= _LEAST_LOGS]
    if not ratios:
        return None
    tag, series = max(ratios, key=lambda pair: pair[1].median(3))
    best = max(s.highest[1] if s.highest else s.median(3) for _, s in ratios)
    rises = rank_correlation(series.last(12)) > _RISING
    if rises and series.count < _WARM_UP_LOGS:
        return None
    if best >= (_IDLE if _loss_has_moved(history) else _NEARLY_IDLE):
        return []
    return [Evidence(tag, series.newest, f"never above {best:.2g} of the weights in a step", limit=_IDLE)]


def _loss_has_moved(history: History) -> bool:
    named = first_of(history, TOTAL_LOSSES)
    if named is None or named[1].lowest is None:
        return True
    start = named[1].start[0][1]
    return named[1].lowest[1] < start - _MOVED * abs(start)


def weights_vanishing(history: History) -> list[Evidence] | None:
    """Find weights that have lost most of their norm and still shrink."""
    series_of = [(tag, series) for tag, series in history.matching(_WEIGHTS) if series.count >= _LEAST_LOGS]
    if not series_of:
        return None
    found = []
    for tag, series in series_of:
        level, now = series.sustained(HELD), series.median(3)
        if 0 < now < _SHRUNK * level and rank_correlation(series.last(8)) < -_RISING:
            reason = f"it was {level:.3g} for long, and still shrinks"
            found.append(Evidence(tag, series.newest, reason, limit=_SHRUNK * level, best=level))
    return found


def clipping_every_step(history: History) -> list[Evidence] | None:
    """Find a run in which clipping leaves a small part of every gradient."""
    coefficient = history.get(_COEFFICIENT)
    if coefficient is None or coefficient.count < _CLIPPED_LOGS:
        return None
    most = max(coefficient.last(_CLIPPED_LOGS))
    if most >= _STRONGLY:
        return []
    reason = f"clipping leaves at most {100 * most:.2g} % of the gradient"
    return [Evidence(_COEFFICIENT, coefficient.newest, reason, limit=_STRONGLY)]


def clipped_unseen(history: History) -> list[Evidence] | None:
    """Find a norm that comes to the same largest value again and again: no gradient does so by itself."""
    norm = history.get(_SEEN_NORM)
    if norm is None or norm.count < _CEILING_LOGS:
        return None
    values = [value for _, value in norm.recent]
    largest = max(values)
    at_ceiling = sum(value >= (1.0 - _ALIKE) * largest for value in values)
    if largest <= 0 or at_ceiling < max(_CEILING_LOGS, len(values) / 2):
        return []
    reason = f"in {at_ceiling} of {len(values)} logs, which is what clipping leaves"
    return [Evidence(_SEEN_NORM, norm.newest, reason, limit=largest)]


def unoptimized_parameters(history: History) -> list[Evidence]:
    """Find trainable parameters that no optimizer holds."""
    value = history.value(_UNOPTIMIZED, 0.0)
    if not value > 0:
        return []
    reason = "tensors have requires_grad and are in no optimizer"
    return [Evidence(_UNOPTIMIZED, value, reason, limit=0.0, at_once=True)]


_ANY_NORM = tuple(re.escape(tag) for tag in _NORMS)
DETECTORS = (
    Detector("nonfinite", nonfinite, (_COUNTS, *TOTAL_LOSSES, _BAD_STEPS, _BAD_LEVEL)),
    Detector("learning_rate_too_high", learning_rate_too_high, (_RATIO,), TOTAL_LOSSES),
    Detector("gradient_explosion", gradient_explosion, _ANY_NORM),
    Detector("gradient_vanishing", gradient_vanishing, _ANY_NORM, TOTAL_LOSSES),
    Detector("learning_rate_too_low", learning_rate_too_low, (_RATIO,), TOTAL_LOSSES),
    Detector("skipped_steps", skipped_steps, (_SKIPPED,)),
    Detector("weights_vanishing", weights_vanishing, (_WEIGHTS,)),
    Detector("clipping_every_step", clipping_every_step, (_COEFFICIENT,)),
    Detector("clipped_unseen", clipped_unseen, (_SEEN_NORM,)),
    Detector("unoptimized_parameters", unoptimized_parameters, (_UNOPTIMIZED,)),
)
