"""Learning rates as the optimizer holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import optimizer_list
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.states import Replicated

WARMUP, MAIN, END = 0, 1, 2
_PATIENCE = 3  # updates without change before a plateau is believed


class LearningRate(DistributedMetric):
    """Report `learning_rate/base_lr` (the first group's) and `learning_rate/param_group_{i}`.

    Groups of several optimizers are numbered through, in the order in which these are given.
    From the second update on also `learning_rate/warmup_stage`, told from the course of the base rate: 0
    while it rises, 1 once it falls or has stayed for three updates, 2 where it has fallen and stays. Every
    rank must have the same: ranks that do not are named in a `DesyncError`.

    >>> optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    >>> rate = LearningRate(optimizer)
    >>> rate.update()
    >>> rate.compute()["learning_rate/base_lr"]
    0.1
    """

    def __init__(self, optimizers: Optimizer | Sequence[Optimizer]) -> None:
        self.optimizers = optimizer_list(optimizers)
        groups = sum(len(optimizer.param_groups) for optimizer in self.optimizers)
        self.add_state("rates", Replicated(shape=(groups,)))
        self.add_state("stage", Replicated())
        # Not a state: a rank that ran out of batches has seen less of the schedule than the others.
        self.stages = Stages()

    def update(self) -> None:
        """Read the rates."""
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        if len(rates) != self.rates.size:  # groups were added, as layers are unfrozen
            self._states = {**self._states, "rates": Replicated(shape=(len(rates),))}
        if any(isinstance(rate, Tensor) for rate in rates):
            self.rates.update(torch.stack([as_number("a learning rate", r) for r in rates]))
        else:
            self.rates.update(rates)
            stage = self.stages.after(float(rates[0]))
            if stage is not None:
                self.stage.update(stage)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return one tag a group; {} before the first update."""
        rates = states["rates"].value
        if rates[0] != rates[0]:
            return {}
        groups = {f"learning_rate/param_group_{i}": rate for i, rate in enumerate(rates)}
        tags = {"learning_rate/base_lr": rates[0], **groups}
        stage = states["stage"].value
        return tags | ({"learning_rate/warmup_stage": stage} if stage == stage else {})


class Stages:
    """Tell the stage of a schedule from the rates seen so far."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._stage: int | None = None
        self._unchanged = 0
        self._fell = False

    def after(self, rate: float) -> int | None:
        """Return the stage with this rate as the newest; None after the first."""
        last, self._last = self._last, rate
        if last is None:
            return None
        self._unchanged = self._unchanged + 1 if rate == last else 0
        if rate > last:
            self._stage = WARMUP
        elif rate < last or self._stage is None:
            self._stage = MAIN
        elif self._unchanged >= _PATIENCE:
            self._stage = END if self._stage == END or self._fell else MAIN
        self._fell = rate < last or (self._fell and rate == last)
        return self._stage

    def state_dict(self) -> dict[str, Any]:
        """Return the course so far as plain data."""
        return {
            "last": self._last,
            "stage": self._stage,
            "unchanged": self._unchanged,
            "fell": self._fell,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._last, self._stage = state["last"], state["stage"]
        self._unchanged, self._fell = state["unchanged"], state["fell"]


_rate = partial(Entry, dashboard="learning_rate")

ENTRIES = (
    _rate("learning_rate/base_lr", "learning rate", "Learning rate of the first parameter group."),
    _rate("learning_rate/param_group_{i}", "learning rate of group i", "Learning rate of parameter group i."),
    _rate(
        "learning_rate/warmup_stage",
        "stage of the schedule",
        "0 in warmup, 1 at or after the peak, 2 at the end value.",
        healthy="0, then 1",
    ),
    Entry("train/lr", "learning rate", "Learning rate of the first parameter group."),
    _rate(
        "optimization/lr",
        "learning rate",
        "Learning rate of the first parameter group, under this name too.",
        dashboard="multimodal_optimization",
    ),
)
