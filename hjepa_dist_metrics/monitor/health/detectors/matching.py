"""Findings on modalities that ought to match: right pairs stand out, and matrices have a diagonal."""

from __future__ import annotations

import math

from hjepa_dist_metrics.monitor.health.detector import Detector
from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History

_DIAGONAL = r"alignment/[^/]+_vs_[^/]+/diagonal_similarity"
_CONTRAST = r"alignment/[^/]+_vs_[^/]+/diagonal_contrast"
_MEAN = r"alignment/[^/]+_vs_[^/]+/mean_similarity"
_PAIRS = "alignment/sample_pairs"
_CHANCE = 3.0  # standard errors within which a contrast may come from pairs without any relation


def misaligned_modalities(history: History) -> list[Evidence] | None:
    """Find pairs of modalities whose right pairs are no more alike than all pairs."""
    found = []
    for tag, diagonal in history.matching(_DIAGONAL):
        everything = history.value(tag.replace("/diagonal_", "/mean_"))
        if not math.isnan(everything) and not diagonal.newest > everything:  # NaN is bad too
            reason = f"not above the {everything:.4g} of all pairs"
            found.append(Evidence(tag, diagonal.newest, reason, limit=everything))
    return found


def no_diagonal(history: History) -> list[Evidence] | None:
    """Find similarity matrices whose diagonal could be chance."""
    bound = _CHANCE / math.sqrt(max(history.value(_PAIRS, 1.0), 1.0))
    return [
        Evidence(tag, contrast.newest, f"not above {bound:.4g}, which chance gives", limit=bound)
        for tag, contrast in history.matching(_CONTRAST)
        if not contrast.newest > bound
    ]


DETECTORS = (
    Detector("misaligned_modalities", misaligned_modalities, (_DIAGONAL,), (_MEAN,)),
    Detector("no_diagonal", no_diagonal, (_CONTRAST,), (_PAIRS,)),
)
