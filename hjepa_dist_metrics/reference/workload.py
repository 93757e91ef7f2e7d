"""What a workload tells the trainer; the loop, the schedules and the logging are the trainer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from hjepa_dist_metrics import TrainingMonitor


@dataclass(frozen=True)
class MicroStep:
    """Hold the result of one forward pass over this rank's share of a micro-batch."""

    loss: Tensor
    """Scalar to differentiate."""
    losses: Mapping[str, Tensor]
    """Detached losses by name, means over `samples`."""
    samples: int
    """Samples of this rank."""
    tokens: int = 0
    """Tokens of this rank."""
    observations: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `TrainingMonitor.step` besides the counts and losses."""


class Workload(Protocol):
    """Describe a training job."""

    @property
    def model(self) -> nn.Module:
        """Return the model, on its device, not wrapped."""

    @property
    def level_weights(self) -> Sequence[float] | None:
        """Return the objective's weights of its hierarchy levels, None without levels."""

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of an epoch."""

    def attach(self, monitor: TrainingMonitor) -> None:
        """Add metrics, alert rules and second names of its own to the monitor, before the first step."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups."""

    def batches(self, epoch: int, start_step: int) -> Iterable[Any]:
        """Return the epoch's micro-batches of this rank, from optimizer step `start_step` of the epoch on."""

    def forward(self, model: nn.Module, batch: Any, epoch: int) -> MicroStep:
        """Return the losses of one micro-batch; `model` is the (wrapped) model to call."""

    def after_step(self, step: int) -> Mapping[str, Any]:
        """Do what follows the optimizer's step; return further keyword arguments of `TrainingMonitor.step`.

        `{"scalars": {tag: number}}`, for instance, for numbers that every rank has alike.
        """

    def evaluate(self) -> Mapping[str, Any]:
        """Return validation numbers and values by tag, the same on every rank. A collective call."""
