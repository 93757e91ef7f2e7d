"""Findings on a teacher that follows the student by a moving average."""

from __future__ import annotations

import math

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History

_LEAST_MOVE = 0.01  # of the move that the momentum implies
_LEAST_SHARE = 1e-7  # of the teacher's distance to the student, in a step, without a known momentum
_LEAST_STEP = 1e-4  # below 1 - momentum = this, float32 weights may rightly stand still

_MOVE, _DISTANCE, _MOMENTUM = "ema/weight_move", "ema/weight_distance", "ema/momentum_current"
_OPTIMIZED = "parameters/teacher_optimized"


def frozen_teacher(history: History) -> list[Evidence] | None:
    """Find a teacher that moves by less than a hundredth of what its momentum implies."""
    move, distance = history.value(_MOVE), history.value(_DISTANCE)
    if not (math.isfinite(move) and distance > 0):
        return None
    due = _due(history)
    if due is None:
        return _still_without_momentum(move, distance)
    if not 0 < due < math.inf:
        return []
    if move >= _LEAST_MOVE * due:
        return []
    momentum = history.value(_MOMENTUM)
    return [
        Evidence(
            _MOVE,
            move,
            f"of its weights a step; momentum {momentum:.4g} makes it {due:.3g}",
            limit=_LEAST_MOVE * due,
        )
    ]


def _still_without_momentum(move: float, distance: float) -> list[Evidence]:
    """Judge a teacher by its distance to the student: it stands still while the student leaves."""
    if move > _LEAST_SHARE * distance:
        return []
    reason = f"the student is {distance:.3g} of the teacher's norm away, and the teacher does not follow"
    return [Evidence(_MOVE, move, reason, limit=_LEAST_SHARE * distance)]


def _due(history: History) -> float | None:
    """Return the move that the momentum implies; None where it is unknown, NaN where it is too small."""
    momentum = history.value(_MOMENTUM)
    if not math.isfinite(momentum):
        return None
    if 1.0 - momentum < _LEAST_STEP:
        return math.nan
    return _expected_move(momentum, history.value(_DISTANCE))


def _expected_move(momentum: float, divergence: float) -> float:
    """Return the move that an average of `momentum` has just made, from the divergence that it left.

    t' = m t + (1 - m) c, hence t' - t = (1 - m) / m (c - t'). Infinity for m = 0, 0 for a divergence of 0.
    """
    move = (1.0 - momentum) * divergence
    if momentum == 0:
        return math.inf if move else 0.0
    return move / momentum


def teacher_is_student(history: History) -> list[Evidence] | None:
    """Find a teacher at distance 0 from the student while it should lag."""
    series = history.get(_DISTANCE)
    if series is None or series.count < 2:
        return None
    if series.last(2) != [0.0, 0.0]:
        return []
    return [Evidence(_DISTANCE, 0.0, "the encoders are the same at every log")]


def teacher_gets_gradients(history: History) -> list[Evidence]:
    """Find a teacher whose parameters an optimizer holds."""
    held = history.value(_OPTIMIZED, 0.0)
    if not held > 0:
        return []
    return [Evidence(_OPTIMIZED, held, "parameters of the teacher are in an optimizer", 0.0, at_once=True)]


DETECTORS = (
    Detector("teacher_is_student", teacher_is_student, (_DISTANCE,)),
    Detector("frozen_teacher", frozen_teacher, (_MOVE,), (_DISTANCE, _MOMENTUM)),
    Detector("teacher_gets_gradients", teacher_gets_gradients, (_OPTIMIZED,)),
)
