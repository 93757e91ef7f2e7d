"""The alert rules: what on the merged values means that a run is ill. Bounds come from the catalog.

Each rule sees one evaluation's numbers at a time, the same on every rank and in the same order, and may
remember some of them.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.metrics.ssl.ema import expected_move
from hjepa_dist_metrics.monitor.health.alerts import Finding, Numbers
from hjepa_dist_metrics.values import Scalar, Value

_RECENT = 30
_LEAST_RECENT = 5
_LEAST_GAIN = 0.02  # of the start
_LEAST_KEPT = 0.5  # of the best gain
_LEAST_MOVE = 0.01  # of the move that the momentum implies
_LEAST_STEP = 1e-4  # below 1 - momentum = this, float32 weights may stand still rightly
_REPEATED_BATCHES = 0.25
_COLLISIONS = 0.5
_SPIKE_SCORE = 30.0
_SPIKE_RATIO = 1.5
_VANISHED = 1e-7
_VANISHING = 1e-5
_EXPLODING = 100.0
_IMBALANCE = 98.0
_OVERFIT = 1.1
_COUNT_OF_BAD = re.compile(r"[/_]nonfinite$")
_BAD_STEPS = "gradient/nonfinite_steps"
_CONTRIBUTION = re.compile(r"loss/contribution_h\d+")


@dataclass
class CollapseRule:
    """Judge every stream's rank, spread and similarity by the catalog's limits for its width and rows.

    Untrained networks map all images near each other: a number beyond its limit is excused while it is better
    than at the start of the run, so that a run which leaves a bad start is not called ill. It must keep half
    of what it has won at best: a fall back to the start is a collapse.
    """

    dims: Callable[[], Mapping[str, int]]
    _start: dict[str, float] = field(default_factory=dict)
    _best: dict[str, float] = field(default_factory=dict)

    def __call__(self, numbers: Numbers) -> list[Finding] | None:
        """Return what is beyond its limits; None where no stream was measured."""
        present = [(p, dim) for p, dim in self.dims().items() if f"{p}num_samples" in numbers]
        if not present:
            return None
        return [finding for prefix, dim in present for finding in self._judge(prefix, dim, numbers)]

    def _judge(self, prefix: str, dim: int, numbers: Numbers) -> Iterator[Finding]:
        count = int(numbers[f"{prefix}num_samples"])
        if count < 2:
            return
        for name in ("mean_similarity", "effective_rank", "mean_std_per_dim"):
            tag = prefix + name
            entry = catalog.find(tag)
            if tag not in numbers or entry is None or entry.limits is None:
                continue
            value, limits = numbers[tag], entry.limits(dim, count)
            sign = 1.0 if limits.low_is_bad else -1.0
            start, best = self._remember(tag, value, sign)
            least = max(_LEAST_GAIN * abs(start), _LEAST_KEPT * sign * (best - start))
            if limits.judge(value) == "bad" and not sign * (value - start) > least:
                side = "below" if limits.low_is_bad else "above"
                bound = f"{side} {limits.bad:.4g}, the bound for D={dim}, n={count}"
                yield Finding(tag, value, f"{bound}; {start:.4g} at the start, {best:.4g} at best")

    def _remember(self, tag: str, value: float, sign: float) -> tuple[float, float]:
        """Return the number's first value and its best so far."""
        start = self._start.setdefault(tag, value)
        best = self._best.setdefault(tag, start)
        if sign * (value - best) > 0:
            best = self._best[tag] = value
        return start, best


def frozen_teacher(numbers: Numbers) -> list[Finding] | None:
    """Find a teacher that moves less than a hundredth of what its momentum implies."""
    tag, needed = "ema/update_magnitude", ("ema/momentum_current", "ema/relative_divergence")
    if not {tag, *needed} <= numbers.keys():
        return None
    momentum, divergence = (numbers[name] for name in needed)
    due = expected_move(momentum, divergence)
    if 1.0 - momentum < _LEAST_STEP or not 0 < due < math.inf or not numbers[tag] < _LEAST_MOVE * due:
        return []
    reason = f"{due:.3g} follows from momentum {momentum:.4g}: does the update run?"
    return [Finding(tag, numbers[tag], reason)]


def repeated_masks(numbers: Numbers) -> list[Finding] | None:
    """Find batches of masks that repeat each other, and one mask for nearly all images."""
    batches, collision = "masking/repeated_batches", "masking/collision_probability"
    if not {batches, collision} & numbers.keys():
        return None
    found = []
    if numbers.get(batches, 0.0) >= _REPEATED_BATCHES:
        reason = "whole batches of masks come again: a shared seed, or a generator that stands still"
        found.append(Finding(batches, numbers[batches], reason))
    if numbers.get(collision, 0.0) > _COLLISIONS:
        found.append(Finding(collision, numbers[collision], "most images have the same mask"))
    return found


def loss_spike(numbers: Numbers) -> list[Finding] | None:
    """Find a step of the window whose loss stands far above those before it."""
    tag = "stability/worst_spike_score"
    if tag not in numbers:
        return None
    high = numbers[tag] > _SPIKE_SCORE and numbers.get("stability/loss_max_spike", math.inf) > _SPIKE_RATIO
    reason = "robust standard deviations above the losses before"
    return [Finding(tag, numbers[tag], reason, at_once=True)] if high else []


@dataclass
class Nonfinite:
    """Find NaN and infinite losses, features and gradients by their counts; the first bad level first.

    Not every log has every count: one that was bad stays so until it is seen again.
    """

    _bad: set[str] = field(default_factory=set)
    _steps: float = 0.0

    def __call__(self, numbers: Numbers) -> list[Finding] | None:
        """Judge the counts that are there; None where there are none, or only clean ones beside a bad one."""
        counts = {tag: value for tag, value in numbers.items() if _COUNT_OF_BAD.search(tag)}
        bad = {tag: value for tag, value in counts.items() if value > 0}
        self._bad = (self._bad - counts.keys()) | bad.keys()
        found = [Finding(tag, value, "NaN or infinite values were seen", True) for tag, value in bad.items()]
        found += self._gradients(numbers)
        level = numbers.get("loss/first_nonfinite_level")
        if level is not None:
            reason = "the first level that is NaN or infinite"
            found.insert(0, Finding(f"loss/h{int(level)}", math.nan, reason, at_once=True))
        known = counts or _BAD_STEPS in numbers
        return found if found or (known and not self._bad) else None

    def _gradients(self, numbers: Numbers) -> list[Finding]:
        """Find steps since the last look whose gradient was bad; their count goes on over the whole run.

        Not at once: a loss scaler that seeks its scale makes a few, and without one the loss follows.
        """
        steps, before = numbers.get(_BAD_STEPS, self._steps), self._steps
        self._steps = steps
        reason = "steps had a NaN or infinite gradient by now, and they go on"
        return [Finding(_BAD_STEPS, steps, reason)] if steps > before else []


def level_imbalance(numbers: Numbers) -> list[Finding] | None:
    """Find a level that carries nearly all of the loss while there are others."""
    shares = {tag: value for tag, value in numbers.items() if _CONTRIBUTION.fullmatch(tag)}
    if len(shares) < 2:
        return None
    return [
        Finding(tag, value, "percent of the loss: the other levels are left untrained")
        for tag, value in shares.items()
        if value > _IMBALANCE
    ]


@dataclass
class NormRule:
    """Compare a norm with the median of its recent values: vanishing (`low`) or exploding."""

    tag: str
    low: bool
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def __call__(self, numbers: Numbers) -> list[Finding] | None:
        """Return the norm where it has left its range; what left it does not move the range."""
        value = numbers.get(self.tag)
        if value is None:
            return None
        if not math.isfinite(value):  # the rule of nonfinite values tells of these
            return []
        usual = statistics.median(self._recent) if len(self._recent) >= _LEAST_RECENT else None
        reason = self._reason(value, usual)
        if reason is None:
            self._recent.append(value)
            return []
        return [Finding(self.tag, value, reason)]

    def _reason(self, value: float, usual: float | None) -> str | None:
        if self.low:
            bound = _VANISHED if usual is None else max(_VANISHED, _VANISHING * usual)
            return f"below {bound:.3g}" if value < bound else None
        if usual is not None and value > _EXPLODING * max(usual, _VANISHED):
            return f"more than {_EXPLODING:g} times its recent median, {usual:.3g}"
        return None


@dataclass
class Overfitting:
    """Find a validation loss that rises from its best while the training loss still falls."""

    _training: float = math.nan
    _best: float = math.inf
    _training_then: float = math.nan

    def __call__(self, numbers: Numbers) -> list[Finding] | None:
        """Judge at each validation."""
        self._training = numbers.get("loss/total", self._training)
        value = numbers.get("val/loss")
        if value is None:
            return None
        if not value > self._best:
            self._best, self._training_then = value, self._training
            return []
        if value > _OVERFIT * self._best and self._training < self._training_then:
            return [Finding("val/loss", value, f"rose from {self._best:.4g} while the training loss fell")]
        return []


@dataclass
class Convergence:
    """Tell how fast the losses change: (now - before) / (|before| * steps), from one log to the next."""

    _before: dict[str, tuple[int, float]] = field(default_factory=dict)

    def rates(self, step: int, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return `loss/convergence_rate` and `loss/convergence_rate_h{i}` from the second log on."""
        found: dict[str, Value] = {}
        for tag, value in values.items():
            level = re.fullmatch(r"loss/(?:total|(h\d+))", tag)
            if level is None or not isinstance(value, Scalar):
                continue
            name = "loss/convergence_rate" + (f"_{level[1]}" if level[1] else "")
            last, before = self._before.get(tag, (step, 0.0))
            if step > last:
                change = value.value - before
                found[name] = Scalar(change / (max(abs(before), 1e-12) * (step - last)))
            self._before[tag] = (step, value.value)
        return found
