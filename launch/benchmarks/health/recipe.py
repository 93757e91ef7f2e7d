"""What a recipe is: a small training job with an objective of its own, which failures can be planted in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hjepa_dist_metrics import ProcessContext, TrainingMonitor


@dataclass(frozen=True)
class Setting:
    """What differs between healthy runs of a recipe; factors multiply the recipe's own numbers."""

    seed: int = 0
    rate_factor: float = 1.0
    batch_factor: float = 1.0


@dataclass
class Step:
    """Hold what the forward pass of one batch gives.

    `losses` are detached, by name, "loss" among them; `observed` are further arguments of
    `TrainingMonitor.step`.
    """

    loss: Tensor
    losses: Mapping[str, Tensor]
    samples: int
    observed: dict[str, Any] = field(default_factory=dict)


class Recipe:
    """A training job: `model`, `optimizer`, an endless stream of batches, and a loss.

    Subclasses fill in the methods; attributes that change the objective, such as the weight of a term, are
    public, so that a failure can turn them.
    """

    steps: ClassVar[int] = 160
    log_every: ClassVar[int] = 5
    batch_size: ClassVar[int] = 128
    rate: ClassVar[float] = 1e-3
    warmup: ClassVar[int] = 0
    cosine: ClassVar[bool] = False
    clip: float | None = None
    variants: ClassVar[int] = 3
    probe_every: ClassVar[int | None] = None
    """Logs between two probes that the run publishes; None: it has none."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    encoders: tuple[nn.Module, nn.Module] | None = None
    level_weights: Sequence[float] | None = None

    logs_features: bool = False
    """Whether the coming step logs features: those that cost something are made only then."""

    def __init__(self, setting: Setting, context: ProcessContext) -> None:
        self.setting, self.context = setting, context
        self.samples = max(int(self.batch_size * setting.batch_factor) // context.world_size, 2)
        # Which part of the samples this process sees: (rank, world size).
        self.shard = (context.rank, context.world_size)
        self.base_rate = self.rate * setting.rate_factor
        self.generator = torch.Generator().manual_seed(1000 * setting.seed + context.rank)
        torch.manual_seed(setting.seed)
        self.build()

    def build(self) -> None:
        """Make model and optimizer."""
        raise NotImplementedError

    def attach(self, monitor: TrainingMonitor) -> None:
        """Add metrics of the job's own to the monitor, before the first step."""

    def batches(self) -> Iterator[Any]:
        """Yield batches without end."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Step:
        """Return the loss of a batch."""
        raise NotImplementedError

    def after_step(self, step: int) -> dict[str, Any]:
        """Do what follows the optimizer's step; return further arguments of `TrainingMonitor.step`."""
        return {}

    def represent(self) -> tuple[Tensor, Tensor] | None:
        """Return features [N, D] of samples that are not trained on, and their classes; None without any."""
        return None

    def embed(self) -> Tensor | None:
        """Return what the loss sees of those samples, [N, D]; None where that is no set of rows."""
        return None

    def more_facts(self) -> dict[str, float]:
        """Return further numbers that show a failure of this recipe's own."""
        return {}

    def fixed_batch(self) -> Any:
        """Return a batch on which the true loss is followed; the same one at each call."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Return what the run itself logs of a validation; {} where it has none."""
        return {}

    def factor(self, step: int) -> float:
        """Return the learning rate of a step over the base rate: linear warm-up, then constant or cosine."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if not self.cosine:
            return 1.0
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
