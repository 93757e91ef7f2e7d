"""What a workload tells the trainer; the loop, the schedules and the logging are the trainer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from hjepa_dist_metrics import ParallelLayout, TrainingMonitor


@dataclass(frozen=True)
class MicroStep:
    """Hold the result of one forward pass over this rank's share of a micro-batch."""

    loss: Tensor | None
    """Scalar to differentiate; None on ranks that have no loss."""
    losses: Mapping[str, Tensor] | None
    """Detached losses by name, means over `samples`; None on ranks that have none."""
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
        """Add metrics, rules and second names of its own to the monitor, before the first step."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups."""

    def batches(self, epoch: int, start_step: int) -> Iterable[Any]:
        """Return the epoch's micro-batches of this rank, from optimizer step `start_step` of the epoch on."""

    def after_step(self, step: int) -> Mapping[str, Any]:
        """Do what follows the optimizer's step; return further keyword arguments of `TrainingMonitor.step`.

        `{"scalars": {tag: number}}`, for instance, for numbers that every rank has alike.
        """

    def evaluate(self) -> Mapping[str, Any]:
        """Return validation numbers and values by tag, the same on every rank. A collective call."""


@runtime_checkable
class LossWorkload(Workload, Protocol):
    """Describe a training job whose loss the trainer differentiates, under DDP on many ranks."""

    def forward(self, model: nn.Module, batch: Any, epoch: int) -> MicroStep:
        """Return the losses of one micro-batch; `model` is the (wrapped) model to call."""


@runtime_checkable
class LayoutWorkload(Workload, Protocol):
    """Describe a training job that lies over ranks in its own way: the trainer wraps nothing."""

    @property
    def layout(self) -> ParallelLayout | None:
        """Return how the model lies over ranks; None in one process."""

    def micro_step(self, monitor: TrainingMonitor, batch: Any, epoch: int) -> MicroStep:
        """Run forward and backward of a micro-batch, and reduce the gradients."""
