"""Losses of a step: means by level, the mean of an epoch, and whether the loss holds its course."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hjepa_dist_metrics.metrics import HierarchicalLoss, TrainingStability, WeightedMean
from hjepa_dist_metrics.metrics.optimization.stability import WINDOW
from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.monitor.schedule import EPOCH

# Spikes are looked for in at most as many steps between two logs: each takes memory and bytes of a sync.
_MOST_STEPS = 10_000


class Losses(Observer):
    """Average the losses of every step over all ranks' samples, or tokens."""

    takes = ("losses",)
    also = ("samples", "count")
    family = None

    def __init__(self, level_weights: Iterable[float] | None = None) -> None:
        self.level_weights = None if level_weights is None else list(level_weights)

    def observe(self, losses: Any, samples: Any, count: Any = None) -> None:
        """Add means over `count` samples: one loss, or several by name with "loss" for the total."""
        named = losses if isinstance(losses, Mapping) else {"loss": losses}
        counts = samples if count is None else count
        total = total_count(counts)
        self._loss(named).update(named, counts)
        self._epoch_loss().update(named["loss"], total)
        self._stability().update(named["loss"], total, self.scope.step)

    def validate(self, loss: float) -> None:
        """Take note of a validation loss, the same on every rank."""
        self._stability().validate(loss)

    def forget(self) -> None:
        """Judge no loss by those of the steps before: from now on they mean something else."""
        self._stability().reset()

    def _loss(self, losses: Mapping[str, Any]) -> HierarchicalLoss:
        return self.scope.metric("loss", HierarchicalLoss, lambda: self._make_loss(losses))

    def _make_loss(self, losses: Mapping[str, Any]) -> HierarchicalLoss:
        levels = sum(1 for key in losses if key.removeprefix("loss_h").isdigit())
        regular = {"loss", "loss_unweighted", *(f"loss_h{i}" for i in range(levels))}
        extra = sorted(key for key in losses if key not in regular)
        return HierarchicalLoss(levels, self.level_weights if levels else None, extra)

    def _epoch_loss(self) -> WeightedMean:
        return self.scope.metric(
            "epoch_loss", WeightedMean, lambda: WeightedMean("train_epoch/loss"), family=EPOCH
        )

    def _stability(self) -> TrainingStability:
        """Return the metric of the last steps, which reaches back over the steps between two logs."""
        return self.scope.metric("stability", TrainingStability, self._make_stability)

    def _make_stability(self) -> TrainingStability:
        steps = self.scope.steps_between("scalars") or 0
        return TrainingStability(reach=WINDOW + min(steps, _MOST_STEPS))


def total_count(count: Any) -> Any:
    """Return the count of the total loss: the one count, or the sum over levels."""
    if not isinstance(count, Mapping):
        return count
    return count["loss"] if "loss" in count else sum(count.values())
