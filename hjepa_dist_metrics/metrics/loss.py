"""Losses of a hierarchical objective: exact means over the job, and what each level contributes (S0 1.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import Sum

Count = float | int | Tensor


def contributions(losses: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return each level's share of the weighted loss in percent: 100 w_i l_i / sum_j w_j l_j.

    The shares add up to 100. They are all 0 where the weighted loss is 0.
    """
    weighted = [w * loss for w, loss in zip(weights, losses, strict=True)]
    total = sum(weighted)
    return [100.0 * part / total if total != 0 else 0.0 for part in weighted]


class HierarchicalLoss(DistributedMetric):
    """Average the losses of every level over all that they were computed on, on all ranks.

    `weights` are the objective's level weights, all 1 by default. Tags: `loss/total`, `loss/h{i}`,
    `loss/unweighted`, `loss/contribution_h{i}`, `loss/nonfinite` (how many losses were NaN or infinite) and,
    where there were any, `loss/first_nonfinite_level`.
    """

    def __init__(self, num_levels: int, weights: Sequence[float] | None = None) -> None:
        if num_levels < 1:
            raise ConfigError(f"a hierarchical loss needs at least one level, got num_levels={num_levels}")
        self.num_levels = num_levels
        self.weights = [1.0] * num_levels if weights is None else [float(w) for w in weights]
        if len(self.weights) != num_levels:
            raise ConfigError(f"expected {num_levels} level weights, got {list(self.weights)}")
        self.keys = ["loss", *(f"loss_h{i}" for i in range(num_levels)), "loss_unweighted"]
        for name in ("sums", "counts", "bad"):
            self.add_state(name, Sum(shape=(len(self.keys),)))

    def update(self, losses: Mapping[str, Any], count: Count | Mapping[str, Count] = 1) -> None:
        """Add mean losses over `count` samples or tokens.

        `losses` holds "loss" and "loss_h0", ...; "loss_unweighted" is their mean where it is missing.
        `count` may differ between keys: a mapping with the same keys.
        """
        values = self._values(losses)
        counts = self._counts(count, values)
        seen = counts > 0
        # A mean over nothing is often NaN: with a count of zero it is no finding, it is nothing.
        self.sums.update(torch.where(seen, values * counts, torch.zeros_like(values)))
        self.counts.update(counts)
        self.bad.update((seen & ~torch.isfinite(values)).to(torch.float64))

    def _values(self, losses: Mapping[str, Any]) -> Tensor:
        missing = [key for key in self.keys[:-1] if key not in losses]
        if missing:
            raise ConfigError(
                f"expected the losses {self.keys[:-1]}, {missing} are missing from {sorted(losses)}"
            )
        given = [_scalar(losses[key]) for key in self.keys[:-1]]
        device = next((v.device for v in given if v.device.type != "cpu"), given[0].device)
        given = [v.to(device, non_blocking=True) for v in given]
        extra = losses.get("loss_unweighted")
        unweighted = torch.stack(given[1:]).mean() if extra is None else _scalar(extra)
        return torch.stack([*given, unweighted.to(device, non_blocking=True)])

    def _counts(self, count: Count | Mapping[str, Count], values: Tensor) -> Tensor:
        if not isinstance(count, Mapping):
            return _scalar(count).to(values.device, non_blocking=True).expand_as(values)
        levels = [_scalar(count[key]).to(values.device, non_blocking=True) for key in self.keys[1:-1]]
        ends = [count.get("loss"), count.get("loss_unweighted")]
        total, unweighted = (
            torch.stack(levels).sum() if end is None else _scalar(end).to(values.device, non_blocking=True)
            for end in ends
        )
        return torch.stack([total, *levels, unweighted])

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Divide the sums by the counts; {} before the first update."""
        sums, counts, bad = (states[name].value for name in ("sums", "counts", "bad"))
        if not counts.any():
            return {}
        means = [s / c if c > 0 else 0.0 for s, c in zip(sums, counts, strict=True)]
        levels = means[1:-1]
        shares = contributions(levels, self.weights)
        tags: dict[str, Any] = {
            "loss/total": means[0],
            "loss/unweighted": means[-1],
            "loss/nonfinite": bad.sum(),
        }
        tags |= {f"loss/h{i}": loss for i, loss in enumerate(levels)}
        tags |= {f"loss/contribution_h{i}": share for i, share in enumerate(shares)}
        first = next((i for i, n in enumerate(bad[1:-1]) if n > 0), None)
        return tags if first is None else {**tags, "loss/first_nonfinite_level": first}


def _scalar(value: Any) -> Tensor:
    tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(value)
    return tensor.to(torch.float64).reshape(())
