"""Learning rates as the optimizer holds them (S0 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import Replicated


class LearningRate(DistributedMetric):
    """Report `learning_rate/base_lr` (the first group's) and `learning_rate/param_group_{i}`.

    Every rank must have the same: ranks that do not are named in a `DesyncError`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.add_state("rates", Replicated(shape=(len(optimizer.param_groups),)))

    def update(self) -> None:
        """Read the rates."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if any(isinstance(rate, Tensor) for rate in rates):
            self.rates.update(
                torch.stack([torch.as_tensor(r, dtype=torch.float64).reshape(()) for r in rates])
            )
        else:
            self.rates.update(rates)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return one tag a group; {} before the first update."""
        rates = states["rates"].value
        if rates[0] != rates[0]:
            return {}
        groups = {f"learning_rate/param_group_{i}": rate for i, rate in enumerate(rates)}
        return {"learning_rate/base_lr": rates[0], **groups}
