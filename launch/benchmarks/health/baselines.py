"""What the judge is compared with: fixed thresholds, the rules before it, and every number by itself."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.health.traces import Trace
from hjepa_dist_metrics.catalog.limits import effective_rank_limits, mean_similarity_limits, mean_std_limits

_PATIENCE = 3
_COMMON = 0.2  # of the healthy runs must have a number that is judged by itself
_COLLAPSE = re.compile(
    r"collapse/(?:\w+?_)??(mean_std_per_dim|min_std_per_dim|mean_similarity|effective_rank)"
)
_JUDGED = ("mean_similarity", "effective_rank", "mean_std_per_dim")
# These tell how far a run is, how busy the machine was, or what the recipe is, and not how the run does.
_COUNTERS = (
    *("performance/total_", "performance/samples_per_second", "performance/tokens_per_second"),
    *("learning_rate/", "train/lr", "system/", "sync/", "collapse/num_", "collapse/pooled_num_"),
)
_MILLISECONDS = re.compile(r"performance/.*(time_ms|percent|ratio)(_max)?(_rank)?")
_FIXED = {"mean_std_per_dim": (0.01, True), "min_std_per_dim": (0.001, True), "mean_similarity": (0.5, False)}


class FixedThresholds:
    """Collapse by the limits of the first document: spread 0.01, least spread 0.001, similarity 0.5."""

    def update(self, step: int, values: Mapping[str, float]) -> Sequence[str]:
        """Return ["collapse"] where any stream is beyond a limit."""
        for tag, value in values.items():
            match = _COLLAPSE.fullmatch(tag)
            if match is not None and match[1] in _FIXED:
                limit, low = _FIXED[match[1]]
                if not (value > limit if low else value < limit):
                    return ["collapse"]
        return []


class PreviousRules:
    """The alert rules that the judge replaced: bad in three evaluations in a row, each by itself."""

    def __init__(self) -> None:
        self._bad: dict[str, int] = {}
        self._start: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._norms: deque[float] = deque(maxlen=30)
        self._validation, self._training_then, self._training = math.inf, math.nan, math.nan
        self._steps = 0.0

    def update(self, step: int, values: Mapping[str, float]) -> Sequence[str]:
        """Return the rules that fire, by the names of today's findings."""
        verdicts = {
            "nonfinite": self._nonfinite(values),
            "collapse": self._collapse(values),
            "frozen_teacher": _frozen_teacher(values),
            "repeated_masks": _repeated_masks(values),
            "loss_spike": _loss_spike(values),
            "level_imbalance": _level_imbalance(values),
            "gradient_vanishing": self._norm(values, low=True),
            "gradient_explosion": self._norm(values, low=False),
            "overfitting": self._overfitting(values),
        }
        for name, bad in verdicts.items():
            if bad is not None:
                self._bad[name] = self._bad.get(name, 0) + 1 if bad else 0
        at_once = ("nonfinite", "loss_spike")
        return [name for name, bad in self._bad.items() if bad >= (1 if name in at_once else _PATIENCE)]

    def _collapse(self, values: Mapping[str, float]) -> bool | None:
        prefixes = [tag.removesuffix("num_samples") for tag in values if tag.endswith("num_samples")]
        judged = [p for p in prefixes if not re.search(r"pooled_$|level\d|prediction\d", p)]
        if not judged:
            return None
        return any(self._is_beyond(prefix, name, values) for prefix in judged for name in _JUDGED)

    def _is_beyond(self, prefix: str, name: str, values: Mapping[str, float]) -> bool:
        tag, limits_of = prefix + name, _LIMITS[name]
        if tag not in values:
            return False
        limits = limits_of(int(values[prefix + "num_features"]), int(values[prefix + "num_samples"]))
        value, sign = values[tag], 1.0 if limits.low_is_bad else -1.0
        start = self._start.setdefault(tag, value)
        best = self._best.setdefault(tag, start)
        if sign * (value - best) > 0:
            best = self._best[tag] = value
        least = max(0.02 * abs(start), 0.5 * sign * (best - start))
        return limits.judge(value) == "bad" and not sign * (value - start) > least

    def _nonfinite(self, values: Mapping[str, float]) -> bool:
        steps, before = values.get("gradient/nonfinite_steps", self._steps), self._steps
        self._steps = steps
        return steps > before or any(v > 0 for tag, v in values.items() if re.search(r"[/_]nonfinite$", tag))

    def _norm(self, values: Mapping[str, float], low: bool) -> bool | None:
        value = values.get("gradient/global_norm_before_clip")
        if value is None or not math.isfinite(value):
            return None
        usual = median(self._norms) if len(self._norms) >= 5 else math.nan
        vanished = value < max(1e-7, 1e-5 * usual) if usual == usual else value < 1e-7
        exploded = value > 100.0 * max(usual, 1e-7)
        if not low and not (vanished or exploded):
            self._norms.append(value)
        return vanished if low else exploded

    def _overfitting(self, values: Mapping[str, float]) -> bool | None:
        self._training = values.get("loss/total", self._training)
        value = values.get("val/loss")
        if value is None:
            return None
        if not value > self._validation:
            self._validation, self._training_then = value, self._training
            return False
        return value > 1.1 * self._validation and self._training < self._training_then


_LIMITS = {
    "mean_similarity": mean_similarity_limits,
    "effective_rank": effective_rank_limits,
    "mean_std_per_dim": mean_std_limits,
}


def _frozen_teacher(values: Mapping[str, float]) -> bool | None:
    move, momentum = values.get("ema/update_magnitude"), values.get("ema/momentum_current")
    if move is None or momentum is None:
        return None
    due = (1 - momentum) * values["ema/relative_divergence"] / max(momentum, 1e-12)
    return 1 - momentum >= 1e-4 and due > 0 and move < 0.01 * due


def _repeated_masks(values: Mapping[str, float]) -> bool | None:
    if "masking/repeated_batches" not in values:
        return None
    return values["masking/repeated_batches"] >= 0.25 or values["masking/collision_probability"] > 0.5


def _loss_spike(values: Mapping[str, float]) -> bool | None:
    score = values.get("stability/worst_spike_score")
    return None if score is None else score > 30 and values.get("stability/loss_max_spike", math.inf) > 1.5


def _level_imbalance(values: Mapping[str, float]) -> bool | None:
    shares = [v for tag, v in values.items() if re.fullmatch(r"loss/contribution_h\d+", tag)]
    return None if len(shares) < 2 else max(shares) > 98.0


@dataclass(frozen=True)
class SingleMetric:
    """One number with the threshold that tells failing runs from healthy ones best on these very traces."""

    tag: str
    side: str
    threshold: float
    detected: float
    alarmed: float


def single_metrics(traces: Sequence[Trace]) -> list[SingleMetric]:
    """Return the best threshold of every number, those that gain most first.

    A run is found where the number is beyond the threshold at any log, of a failing run after the failure
    began. The threshold is chosen by the runs that it is measured on, which flatters it.
    """
    reach: dict[str, tuple[list[float], list[float], list[float], list[float]]] = {}
    failing = healthy = 0
    for trace in traces:
        fails = trace.run["failure"] is not None
        failing, healthy = failing + fails, healthy + (not fails)
        for tag, (low, high) in _extremes(trace).items():
            row = reach.setdefault(tag, ([], [], [], []))
            row[0 if fails else 2].append(high)
            row[1 if fails else 3].append(-low)
    found = [
        _best(tag, side, np.array(row[i]), np.array(row[i + 2]), failing, healthy)
        for tag, row in reach.items()
        if len(row[2]) >= _COMMON * healthy
        for i, side in enumerate(("above", "below"))
    ]
    return sorted(found, key=lambda metric: metric.alarmed - metric.detected)


def canonical(tag: str) -> str:
    """Return a tag without the names of streams, modules, groups and levels."""
    tag = re.sub(r"(?<=[a-z])\d+", "*", tag)
    tag = re.sub(
        r"^(gradients)/\w+?_(?=total_norm|std|max|min|mean|avg|abs_sum|zero_fraction)", r"\1/*_", tag
    )
    return re.sub(r"^collapse/(encoder|projector|context|level\*|prediction\*|target)_", "collapse/", tag)


def _extremes(trace: Trace) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each number; NaN counts as both ends."""
    planted = trace.run["planted_at"] or 0
    found: dict[str, tuple[float, float]] = {}
    for step, values in trace.logs:
        for tag, value in values.items() if step >= planted else ():
            name = canonical(tag)
            if name.startswith(_COUNTERS) or _MILLISECONDS.fullmatch(name):
                continue
            low, high = found.get(name, (math.inf, -math.inf))
            ends = (-math.inf, math.inf) if math.isnan(value) else (value, value)
            found[name] = min(low, ends[0]), max(high, ends[1])
    return found


def _best(tag: str, side: str, bad: np.ndarray, good: np.ndarray, failing: int, healthy: int) -> SingleMetric:
    candidates = np.unique(np.concatenate([bad, good]))
    detected = (bad[None, :] >= candidates[:, None]).sum(axis=1) / max(failing, 1)
    alarmed = (good[None, :] >= candidates[:, None]).sum(axis=1) / max(healthy, 1)
    best = int(np.argmax(detected - alarmed))
    threshold = float(candidates[best]) if side == "above" else -float(candidates[best])
    return SingleMetric(tag, side, threshold, float(detected[best]), float(alarmed[best]))
