"""Alert rules on modalities that ought to match (S3): right pairs stand out, and matrices have a diagonal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from hjepa_dist_metrics.monitor.health.alerts import Finding, Numbers, Rule

_PAIR = re.compile(r"(alignment/[^/]+_vs_[^/]+/)(diagonal_similarity|diagonal_contrast)")
_CHANCE = 3.0  # standard errors within which a contrast may come from pairs without any relation


def matching_rules() -> dict[str, Rule]:
    """Return the rules by name."""
    return {"misaligned_modalities": misaligned_rule, "no_diagonal": no_diagonal_rule}


def misaligned_rule(numbers: Numbers) -> list[Finding] | None:
    """Find pairs of modalities whose right pairs are no more alike than all pairs; None without any."""
    found = []
    pairs = _pairs(numbers, "diagonal_similarity")
    seen = [(prefix, diagonal) for prefix, diagonal in pairs if prefix + "mean_similarity" in numbers]
    for prefix, diagonal in seen:
        everything = numbers[prefix + "mean_similarity"]
        if not diagonal > everything:  # NaN is bad too
            reason = f"not above the {everything:.4g} of all pairs"
            found.append(Finding(prefix + "diagonal_similarity", diagonal, reason))
    return found if seen else None


def no_diagonal_rule(numbers: Numbers) -> list[Finding] | None:
    """Find similarity matrices whose diagonal could be chance; None without any."""
    seen = list(_pairs(numbers, "diagonal_contrast"))
    bound = _CHANCE / math.sqrt(max(numbers.get("alignment/sample_pairs", 1.0), 1.0))
    return (
        [
            Finding(prefix + "diagonal_contrast", contrast, f"not above {bound:.4g}, which chance gives")
            for prefix, contrast in seen
            if not contrast > bound
        ]
        if seen
        else None
    )


def _pairs(numbers: Numbers, name: str) -> Iterator[tuple[str, float]]:
    for tag, value in numbers.items():
        match = _PAIR.fullmatch(tag)
        if match is not None and match[2] == name:
            yield match[1], value
