"""The section `training` of a run: what the trainer that all workloads share can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hjepa_dist_metrics.reference.checks import require, require_at_least, require_choice

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation, length and checkpoints of the run."""

    epochs: int = 40
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after so many optimizer steps; the schedules keep the length of all epochs. null: run all."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    min_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises linearly from 0."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay; not applied to biases, norms and tokens."""
    clip_grad: float = 1.0
    """Largest global L2 norm of the gradient."""
    accumulation_steps: int = 1
    """Micro-steps a step; each takes an equal share of the global batch."""
    precision: Precision = "auto"
    """`auto`: bf16 autocast on devices that have it, else fp32."""
    compile: bool = False
    """Run the model through torch.compile."""
    seed: int = 0
    """Seed of weights, order, masks and augmentations."""
    probe_every_epochs: int = 10
    """Probe the target encoder every so many epochs, besides before and after the run; 0: only those."""
    checkpoint_dir: str | None = None
    """Where checkpoints are written; `{run_name}` in it keeps runs apart; null writes none."""
    checkpoint_every_epochs: int = 10
    """Epochs between checkpoints."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints, besides those of the epochs; null: only those."""
    resume: bool = False
    """Continue from the newest checkpoint in `checkpoint_dir`."""

    def __post_init__(self) -> None:
        require_at_least("training.epochs", self.epochs, 1)
        if self.max_steps is not None:
            require_at_least("training.max_steps", self.max_steps, 1)
        require(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "more than 0")
        low = self.min_learning_rate
        require(0 <= low <= self.learning_rate, "training.min_learning_rate", low, "0 to learning_rate")
        warmup = self.warmup_fraction
        require(0.0 <= warmup < 1.0, "training.warmup_fraction", warmup, "0 or more and less than 1")
        require_at_least("training.weight_decay", self.weight_decay, 0)
        require(self.clip_grad > 0, "training.clip_grad", self.clip_grad, "more than 0")
        require_at_least("training.accumulation_steps", self.accumulation_steps, 1)
        require_choice("training.precision", self.precision, Precision)
        require_at_least("training.seed", self.seed, 0)
        require_at_least("training.probe_every_epochs", self.probe_every_epochs, 0)
        require_at_least("training.checkpoint_every_epochs", self.checkpoint_every_epochs, 1)
        if self.checkpoint_every_steps is not None:
            require_at_least("training.checkpoint_every_steps", self.checkpoint_every_steps, 1)
        ok = not self.resume or self.checkpoint_dir is not None
        require(ok, "training.resume", self.resume, "true only with training.checkpoint_dir")
