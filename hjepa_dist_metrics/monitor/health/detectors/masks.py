"""Findings on masks."""

from __future__ import annotations

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History

_REPEATED_BATCHES = 0.25  # share of batches whose masks come again
_COLLISIONS = 0.5  # chance that two images have the same mask
_LEAK = 0.01  # share of the targets that the context sees
_NONE, _ALL = 0.001, 0.999

_BATCHES, _COLLISION = "masking/repeated_batches", "masking/collision_probability"
_OVERLAP, _RATIO = "masking/context_target_overlap", "masking/mask_ratio"


def repeated_masks(history: History) -> list[Evidence]:
    """Find batches of masks that repeat each other, and one mask for nearly all images."""
    found = []
    if (value := history.value(_BATCHES, 0.0)) >= _REPEATED_BATCHES:
        reason = f"{100 * value:.0f} % of the batches repeat the masks of an earlier one"
        found.append(Evidence(_BATCHES, value, reason, limit=_REPEATED_BATCHES))
    if (value := history.value(_COLLISION, 0.0)) > _COLLISIONS:
        found.append(Evidence(_COLLISION, value, "most images have the same mask", limit=_COLLISIONS))
    return found


def mask_leak(history: History) -> list[Evidence]:
    """Find contexts that see what is to be predicted."""
    value = history.value(_OVERLAP, 0.0)
    if value <= _LEAK:
        return []
    return [Evidence(_OVERLAP, value, "the context holds target patches; expected 0", limit=_LEAK)]


def degenerate_masks(history: History) -> list[Evidence]:
    """Find masks that hide nothing or everything."""
    value = history.value(_RATIO)
    if value <= _NONE:
        return [Evidence(_RATIO, value, "no patch is masked", limit=_NONE)]
    if value >= _ALL:
        return [Evidence(_RATIO, value, "every patch is masked", limit=_ALL)]
    return []


DETECTORS = (
    Detector("repeated_masks", repeated_masks, (_BATCHES, _COLLISION)),
    Detector("mask_leak", mask_leak, (_OVERLAP,)),
    Detector("degenerate_masks", degenerate_masks, (_RATIO,)),
)
