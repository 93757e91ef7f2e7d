"""Findings on what happens inside of the model, where it is measured."""

from __future__ import annotations

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History

_DEAD, _ENTROPY, _LOGIT = (
    "activation/dead_fraction_max",
    "attention/relative_entropy_median",
    "attention/logit_max",
)
_EFFECTIVE, _CHOICES, _EXPERTS = (
    "experts/effective_experts_median",
    "experts/experts_per_token",
    "experts/num_experts",
)

_LEAST_LOGS = 3
_MANY_DEAD, _FEW_DEAD = 0.5, 0.1  # of a block's units, now and at the start
_SHARP, _WIDE = 0.05, 0.2  # of the largest entropy, now and at the start
_HUGE = 1e4  # logits at which training was seen to diverge (arXiv 2309.14322)
_COLLAPSED = 1.05  # times the experts of a token


def dead_units(history: History) -> list[Evidence] | None:
    """Find a block most of whose units died in training; those that were dead at the start are its design."""
    series = history.get(_DEAD)
    if series is None or series.count < _LEAST_LOGS:
        return None
    if min(series.last(_LEAST_LOGS)) < _MANY_DEAD or series.start[0][1] > _FEW_DEAD:
        return []
    reason = f"of a block's units, {100 * series.start[0][1]:.0f} % at the start"
    return [Evidence(_DEAD, series.newest, reason, limit=_MANY_DEAD)]


def attention_collapse(history: History) -> list[Evidence] | None:
    """Find attention that was wide at the start and rests on single keys now, in half of all heads."""
    series = history.get(_ENTROPY)
    if series is None or series.count < _LEAST_LOGS:
        return None
    if max(series.last(_LEAST_LOGS)) > _SHARP or series.start[0][1] < _WIDE:
        return []
    reason = f"of the largest entropy, {series.start[0][1]:.2g} at the start"
    return [Evidence(_ENTROPY, series.newest, reason, limit=_SHARP)]


def attention_logits_exploding(history: History) -> list[Evidence] | None:
    """Find logits beyond what training survives."""
    series = history.get(_LOGIT)
    if series is None or series.count < _LEAST_LOGS:
        return None
    if min(series.last(_LEAST_LOGS)) < _HUGE:
        return []
    return [Evidence(_LOGIT, series.newest, "training diverges at such logits", limit=_HUGE)]


def routing_collapse(history: History) -> list[Evidence] | None:
    """Find routers that send nearly all tokens to as few experts as one token takes."""
    series, choices, experts = history.get(_EFFECTIVE), history.get(_CHOICES), history.get(_EXPERTS)
    if series is None or choices is None or experts is None or series.count < _LEAST_LOGS:
        return None
    limit = _COLLAPSED * choices.newest
    if experts.newest < 2 * choices.newest or max(series.last(_LEAST_LOGS)) > limit:
        return []
    reason = f"of {experts.newest:.0f} experts in use, in half of the layers"
    return [Evidence(_EFFECTIVE, series.newest, reason, limit=limit)]


DETECTORS = (
    Detector("dead_units", dead_units, (_DEAD,)),
    Detector("attention_collapse", attention_collapse, (_ENTROPY,)),
    Detector("attention_logits_exploding", attention_logits_exploding, (_LOGIT,)),
    Detector("routing_collapse", routing_collapse, (_EFFECTIVE,), (_CHOICES, _EXPERTS)),
)
