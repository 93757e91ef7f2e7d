"""Does the loss hold its course? Smoothness, trend, spikes, validation against training."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.buffered import BufferedMetric, keepable, number_row
from hjepa_dist_metrics.metrics.validation import device_of
from hjepa_dist_metrics.states import Replicated, StepWindow
from hjepa_dist_metrics.states.scales import standard_deviation

SPIKE_BOUND = 6.0
WINDOW = 50
_LEAST_REFERENCE = 8
_CONSISTENT = 1.4826  # of the median absolute deviation with a Gaussian's standard deviation
_RELATIVE_FLOOR = 1e-3
_TINY = float(np.finfo(np.float64).tiny)

Losses = npt.NDArray[np.float64]
# The step's number, its loss and the count of samples behind it.
_Step = tuple[int, float | Tensor, float | Tensor]


class TrainingStability(BufferedMetric[_Step]):
    """Watch the job's loss over the last `window` steps.

    Each step's loss is the mean over all ranks' samples. Tags under `stability/`: `loss_smoothness` (standard
    deviation), `loss_trend_slope` (of a quadratic fit, at the newest step), `spike_score` of the newest step,
    and with a validation loss `val_train_loss_ratio`. Nonfinite losses are left out of all but their count.

    Spikes are looked for in the last `reach` steps, the window by default: it should hold those since the
    last look and some before. Their tags are `loss_max_spike` (largest over smallest), `worst_spike_score`,
    `worst_spike_height`, `spike_count`, `nonfinite_steps` and, where there are any, `first_nonfinite_step`.

    >>> stability = TrainingStability(window=4)
    >>> for step, loss in enumerate([1.0, 1.1, 0.9, float("nan")]):
    ...     stability.update(loss, step=step)
    >>> values = stability.compute()
    >>> values["stability/nonfinite_steps"], values["stability/first_nonfinite_step"]
    (1.0, 3.0)
    """

    persistent = True

    def __init__(self, window: int = WINDOW, reach: int | None = None) -> None:
        if window < 2:
            raise ConfigError(f"the window must hold at least two steps, got window={window}")
        self.window, self.reach = window, window if reach is None else reach
        if self.reach < window:
            raise ConfigError(f"the reach must hold the window of {window} steps, got reach={reach}")
        self.add_state("recent", StepWindow(self.reach))
        self.add_state("validation_loss", Replicated())
        self._next = 0

    def update(self, loss: Tensor | float, count: Tensor | float = 1, step: int | None = None) -> None:
        """Add one step: this rank's mean loss over `count` samples.

        `step` is the step's number, the same on every rank; by default updates are numbered from 0.
        """
        number = self._next if step is None else step
        self._defer((number, keepable("loss", loss), keepable("count", count)))
        self._next = number + 1

    def _flush(self, steps: Sequence[_Step]) -> None:
        numbers, losses, counts = zip(*steps, strict=True)
        device = device_of(item for item in (*losses, *counts) if isinstance(item, Tensor))
        self.recent.update_many(numbers, number_row(losses, device), number_row(counts, device))

    def load_states(self, packed: Mapping[str, Any], *, holder: bool) -> None:
        """Replace the states, of any reach; every rank goes on numbering where the saved ones ended."""
        packed = {**packed, "recent": self.recent.refit(packed["recent"])}
        super().load_states(packed, holder=holder)
        self._next = int(packed["recent"]["data"][0].max().item()) + 1

    def reset(self) -> None:
        """Forget everything seen."""
        super().reset()
        self._next = 0

    def validate(self, loss: Tensor | float) -> None:
        """Take note of a validation loss, the same on every rank."""
        self.validation_loss.update(loss)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to the window's losses in their order; {} before the first step."""
        losses: Losses = states["recent"].means
        if not len(losses):
            return {}
        finite = losses[np.isfinite(losses)]
        scores = spike_scores(losses, self.window)
        tags = {
            "stability/spike_score": scores[-1],
            **_worst(losses, scores),
            "stability/spike_count": int((scores > SPIKE_BOUND).sum()),
            "stability/nonfinite_steps": len(losses) - len(finite),
        }
        if len(finite) < len(losses):
            tags["stability/first_nonfinite_step"] = int(states["recent"].steps[~np.isfinite(losses)][0])
        return tags | (self._shape(finite, states["validation_loss"].value) if len(finite) else {})

    def _shape(self, reached: Losses, validation: float) -> dict[str, float]:
        losses = reached[-self.window :]
        scale = float(np.abs(losses).max()) or 1.0  # squares of what is divided by it are of ordinary size
        tags = {
            "stability/loss_smoothness": standard_deviation(losses),
            "stability/loss_trend_slope": scale * slope_at_end(losses / scale),
            **_quotient("stability/loss_max_spike", reached.max(), reached.min()),
        }
        if validation == validation:
            tags |= _quotient("stability/val_train_loss_ratio", validation, losses.mean())
        return tags


def _worst(losses: Losses, scores: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the highest spike score, and how far its loss is above the median of the losses."""
    if np.isnan(scores).all():
        return {"stability/worst_spike_score": math.nan}
    worst = int(np.nanargmax(scores))
    height = losses[worst] - np.nanmedian(losses[np.isfinite(losses)])
    return {
        "stability/worst_spike_score": float(scores[worst]),
        "stability/worst_spike_height": float(height),
    }


def _quotient(tag: str, numerator: float, denominator: float) -> dict[str, float]:
    """Return the quotient under a tag; {} where a loss of exactly 0 leaves none."""
    return {} if denominator == 0 else {tag: float(numerator / denominator)}


def slope_at_end(losses: Losses) -> float:
    """Return the slope, per step, of a quadratic least-squares fit at its newest point.

    Of fewer than three losses, the slope of the line; 0 of one.
    """
    if len(losses) < 2:
        return 0.0
    x = np.linspace(-1.0, 0.0, len(losses))
    coefficients = np.polynomial.polynomial.polyfit(x, losses, min(2, len(losses) - 1))
    return float(coefficients[1] / (len(losses) - 1))


def spike_scores(losses: Losses, window: int = WINDOW) -> npt.NDArray[np.float64]:
    """Return for each loss how many robust standard deviations it lies above those before it.

    (x - median) / (1.4826 * MAD), against the last `window` losses before that are finite and no spikes
    themselves; the deviation counts as a thousandth of the median at least. 0 for the first few; NaN for a
    nonfinite loss.
    """
    calm: list[float] = []  # rising
    order: deque[float] = deque()  # the same, as they came
    scores = np.zeros(len(losses))
    for index, loss in enumerate(losses.tolist()):
        if not math.isfinite(loss):
            scores[index] = math.nan
            continue
        if len(calm) >= _LEAST_REFERENCE:
            median = _middle(calm)
            spread = _CONSISTENT * _middle(sorted(abs(value - median) for value in calm))
            floor = max(_RELATIVE_FLOOR * abs(median), _TINY)
            scores[index] = (loss - median) / max(spread, floor)
        if scores[index] <= SPIKE_BOUND:
            bisect.insort(calm, loss)
            order.append(loss)
            if len(order) > window:
                del calm[bisect.bisect_left(calm, order.popleft())]
    return scores


def _middle(rising: Sequence[float]) -> float:
    """Return the median of rising numbers: of fifty, in a tenth of NumPy's time."""
    half = len(rising) // 2
    return rising[half] if len(rising) % 2 else 0.5 * (rising[half - 1] + rising[half])


_stability = partial(Entry, dashboard="stability")

ENTRIES = (
    _stability(
        "stability/loss_smoothness",
        "scatter of the loss",
        "Standard deviation of the total loss over the last 50 steps.",
        healthy="small against the loss, and falling",
    ),
    _stability(
        "stability/val_train_loss_ratio",
        "validation loss over training loss",
        "Validation loss over the mean training loss of the last 50 steps; absent where that is exactly 0.",
        healthy="near 1; rising steadily is overfitting",
    ),
    _stability(
        "stability/loss_trend_slope",
        "slope of the loss",
        "Slope, at the newest point, of a quadratic fitted to a window of the loss.",
        unit="1/step",
        healthy="negative or near 0",
        deviation="often that of a fit to the whole history, at its first step",
    ),
    _stability(
        "stability/loss_max_spike",
        "largest over smallest loss",
        "Largest over smallest loss of the steps since the last log and the 50 before; absent where the "
        "smallest is exactly 0.",
        healthy="near 1; explodes near a loss of 0, void for negative ones: see stability/spike_score",
    ),
    _stability(
        "stability/spike_score",
        "robust spike score",
        "(loss - median) / (1.4826 * MAD) over the 50 losses before, without spikes and nonfinite values.",
        unit="robust standard deviations",
        healthy="within 6; above that the step is a spike",
    ),
    _stability(
        "stability/worst_spike_score",
        "worst spike score",
        "Largest spike score of the steps since the last log and the 50 before.",
        unit="robust standard deviations",
        healthy="within 6",
    ),
    _stability(
        "stability/worst_spike_height",
        "height of the worst spike",
        "Loss of the step with the largest spike score, less the median of the losses.",
        healthy="small against loss/total",
    ),
    _stability(
        "stability/spike_count",
        "spikes",
        "Steps whose spike score passed 6, of those since the last log and the 50 before.",
        unit="steps",
        healthy="0, or a few early ones",
    ),
    _stability(
        "stability/nonfinite_steps",
        "nonfinite steps in the window",
        "Steps whose loss was NaN or infinite, of those since the last log and the 50 before: no total, it "
        "falls as the window moves on. They are left out of the rest.",
        unit="steps",
        healthy="0",
        bounds=NOTHING,
    ),
    _stability(
        "stability/first_nonfinite_step",
        "first nonfinite step in the window",
        "Number of the first step, of those since the last log and the 50 before, whose loss was NaN or "
        "infinite: where it came, and not where it was logged. Written only where there was one.",
        unit="step",
        healthy="absent",
    ),
)
