"""Does the loss hold its course? Smoothness, trend, spikes, validation against training (S0 5.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import Replicated, Sum

SPIKE_BOUND = 6.0
_LEAST_REFERENCE = 8
_CONSISTENT = 1.4826  # of the median absolute deviation with a Gaussian's standard deviation
_RELATIVE_FLOOR = 1e-3
_EPS = 1e-8

Losses = npt.NDArray[np.float64]


class TrainingStability(DistributedMetric):
    """Watch the job's loss over the last `window` steps.

    Each step's loss is the mean over all ranks' samples. Tags under `stability/`: `loss_smoothness` (standard
    deviation), `loss_trend_slope` (of a quadratic fit, at the newest step), `loss_max_spike` (largest over
    smallest), `spike_score` of the newest step, `spike_count` and `nonfinite_steps` in the window, and with a
    validation loss `val_train_loss_ratio`. Nonfinite losses are left out of all but their count.
    """

    persistent = True

    def __init__(self, window: int = 50) -> None:
        if window < 2:
            raise ConfigError(f"the window must hold at least two steps, got window={window}")
        self.window = window
        self.add_state("sums", Sum(shape=(window,)))  # by step number modulo the window
        self.add_state("counts", Sum(shape=(window,)))
        self.add_state("steps", Replicated())
        self.add_state("validation_loss", Replicated())

    def update(self, loss: Tensor | float, count: Tensor | float = 1) -> None:
        """Add one step: this rank's mean loss over `count` samples. Every rank takes every step."""
        step = int(self.steps.value) if self.steps.value == self.steps.value else 0
        value = torch.as_tensor(loss).detach().to(torch.float64).reshape(())
        weight = torch.as_tensor(count).to(device=value.device, dtype=torch.float64, non_blocking=True)
        total = torch.where(weight > 0, value * weight, torch.zeros_like(value))
        for state, number in ((self.sums, total), (self.counts, weight)):
            data = state.data.to(value.device, non_blocking=True).clone()
            data[0, step % self.window] = number
            state.data = data
        self.steps.update(step + 1)

    def validate(self, loss: Tensor | float) -> None:
        """Take note of a validation loss, the same on every rank."""
        self.validation_loss.update(loss)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to the window's losses in their order; {} before the first step."""
        steps = states["steps"].value
        if not steps > 0:
            return {}
        sums, counts = states["sums"].value, states["counts"].value
        order = [step % self.window for step in range(max(0, int(steps) - self.window), int(steps))]
        order = [slot for slot in order if counts[slot] > 0]
        losses: Losses = sums[order] / counts[order]
        finite = losses[np.isfinite(losses)]
        if not len(losses):
            return {}
        scores = spike_scores(losses)
        tags = {
            "stability/spike_score": scores[-1],
            "stability/spike_count": int((scores > SPIKE_BOUND).sum()),
            "stability/nonfinite_steps": len(losses) - len(finite),
        }
        return tags | (self._shape(finite, states["validation_loss"].value) if len(finite) else {})

    @staticmethod
    def _shape(losses: Losses, validation: float) -> dict[str, float]:
        tags = {
            "stability/loss_smoothness": float(losses.std()),
            "stability/loss_trend_slope": slope_at_end(losses),
            "stability/loss_max_spike": float(losses.max() / (losses.min() + _EPS)),
        }
        if validation == validation:
            tags["stability/val_train_loss_ratio"] = float(validation / (losses.mean() + _EPS))
        return tags


def slope_at_end(losses: Losses) -> float:
    """Return the slope, per step, of a quadratic least-squares fit at its newest point.

    Of fewer than three losses, the slope of the line; 0 of one.
    """
    if len(losses) < 2:
        return 0.0
    x = np.linspace(-1.0, 0.0, len(losses))
    coefficients = np.polynomial.polynomial.polyfit(x, losses, min(2, len(losses) - 1))
    return float(coefficients[1] / (len(losses) - 1))


def spike_scores(losses: Losses) -> npt.NDArray[np.float64]:
    """Return for each loss how many robust standard deviations it lies above those before it.

    (x - median) / (1.4826 * MAD), against the losses before that are finite and no spikes themselves; the
    deviation counts as a thousandth of the median at least. 0 for the first few; NaN for a nonfinite loss.
    """
    calm: list[float] = []
    scores = np.zeros(len(losses))
    for index, loss in enumerate(losses):
        if not math.isfinite(loss):
            scores[index] = math.nan
            continue
        if len(calm) >= _LEAST_REFERENCE:
            median = float(np.median(calm))
            spread = _CONSISTENT * float(np.median(np.abs(np.asarray(calm) - median)))
            floor = max(_RELATIVE_FLOOR * abs(median), np.finfo(np.float64).tiny)
            scores[index] = (loss - median) / max(spread, floor)
        if scores[index] <= SPIKE_BOUND:
            calm.append(float(loss))
    return scores
