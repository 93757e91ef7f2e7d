"""Alert rules on models with several heads that reconstruct images (S2, warning signs)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.monitor.health.alerts import Finding, Numbers, Rule

_RATIO = re.compile(r"Train/Gradients/[^/]+_to_[^/]+_ratio")
_SIMILARITY = re.compile(r"Eval/Frame/val_([^/]+)_sim")
_RISE = 0.01
_WINDOW = 8
_TURNS = 4
_SWING = 0.2


def reconstruction_rules() -> dict[str, Rule]:
    """Return the rules by name, fresh: some of them remember what they have seen."""
    return {
        "generalization_gap": gap_rule,
        "gradient_range": gradient_range_rule,
        "head_imbalance": head_imbalance_rule,
        "poor_semantics": SemanticsRule(),
        "loss_oscillation": OscillationRule(),
    }


def gap_rule(numbers: Numbers) -> list[Finding] | None:
    """Find training frames far better than validation frames."""
    return _judge(numbers, [tag for tag in numbers if re.fullmatch(r"Eval/Gap/[^/]+_gap", tag)])


def gradient_range_rule(numbers: Numbers) -> list[Finding] | None:
    """Find a gradient of the whole model that vanishes or explodes."""
    return _within(numbers, ["Train/Gradients/total_norm"], *catalog.GRADIENT_NORM_RANGE)


def head_imbalance_rule(numbers: Numbers) -> list[Finding] | None:
    """Find a head whose gradient drowns another's."""
    tags = [tag for tag in numbers if _RATIO.fullmatch(tag)]
    return _within(numbers, tags, *catalog.HEAD_RATIO_RANGE)


class SemanticsRule:
    """Find a semantic head that does not learn: its similarity is poor and no longer rises.

    It judges from the first epoch on that trains the head.
    """

    def __init__(self) -> None:
        self._in_warmup: set[str] = set()
        self._last: dict[str, float] = {}

    def __call__(self, numbers: Numbers) -> list[Finding] | None:
        """Judge the similarity of validation frames."""
        for tag, active in numbers.items():
            if match := re.fullmatch(r"Train/([^/]+)_loss_active", tag):
                (self._in_warmup.discard if active > 0 else self._in_warmup.add)(match[1])
        seen = [(tag, match[1]) for tag in numbers if (match := _SIMILARITY.fullmatch(tag))]
        judged = [tag for tag, name in seen if name not in self._in_warmup]
        rising = [tag for tag in judged if numbers[tag] > self._last.get(tag, -2.0) + _RISE]
        self._last |= {tag: numbers[tag] for tag in judged}
        found = _judge(numbers, judged)
        return found and [finding for finding in found if finding.tag not in rising]


@dataclass
class OscillationRule:
    """Find an epoch loss that swings: its direction turns again and again, by a good part of its size."""

    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def __call__(self, numbers: Numbers) -> list[Finding] | None:
        """Judge the last 8 epochs."""
        tag = "Train/Loss/total_loss"
        if tag not in numbers:
            return None
        self._recent.append(numbers[tag])
        if len(self._recent) < _WINDOW:
            return None
        values = list(self._recent)
        moves = [after - before for before, after in pairwise(values)]
        turns = sum(one * other < 0 for one, other in pairwise(moves))
        swing = sum(map(abs, moves)) / len(moves)
        level = sum(map(abs, values)) / len(values)
        if turns < _TURNS or swing <= _SWING * level:
            return []
        reason = f"turned {turns} times in {_WINDOW} epochs, by {100 * swing / level:.0f} % of its size"
        return [Finding(tag, values[-1], reason)]


def _judge(numbers: Numbers, tags: Iterable[str]) -> list[Finding] | None:
    """Compare with the catalog's limits; None where no tag has any."""
    limited = [(tag, entry.limits(0, 0)) for tag in tags if (entry := catalog.find(tag)) and entry.limits]
    found = []
    for tag, limits in limited:
        if limits.judge(numbers[tag]) == "bad":
            side = "below" if limits.low_is_bad else "above"
            found.append(Finding(tag, numbers[tag], f"{side} {limits.bad:g}"))
    return found if limited else None


def _within(numbers: Numbers, tags: Iterable[str], low: float, high: float) -> list[Finding] | None:
    present = [tag for tag in tags if tag in numbers]
    found = [
        Finding(tag, numbers[tag], f"not between {low:g} and {high:g}")
        for tag in present
        if not low <= numbers[tag] <= high  # NaN is bad too
    ]
    return found if present else None
