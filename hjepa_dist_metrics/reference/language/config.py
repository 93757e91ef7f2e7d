"""Settings of the language run: the sections `model` and `data` of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass

from hjepa_dist_metrics.reference.checks import require, require_at_least


@dataclass(frozen=True)
class ModelConfig:
    """Size of the language model, and over which ranks it lies."""

    width: int = 32
    """Features of a token."""
    layers: int = 4
    """Blocks of attention and a mixture of experts."""
    heads: int = 2
    """Attention heads of a block."""
    experts: int = 4
    """Experts of a block, of which each token takes one."""
    stages: int = 1
    """Pipeline stages; each has layers / stages blocks on ranks of its own."""
    expert_ranks: int = 1
    """Ranks over which the experts of a block are dealt out."""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "experts", "stages", "expert_ranks"):
            require_at_least(f"model.{name}", getattr(self, name), 1)
        require(self.width % (2 * self.heads) == 0, "model.width", self.width, "a multiple of 2 * heads")
        require(self.layers % self.stages == 0, "model.stages", self.stages, "a divisor of model.layers")
        dealt = self.experts % self.expert_ranks == 0
        require(dealt, "model.expert_ranks", self.expert_ranks, "a divisor of model.experts")
        alone = self.stages == 1 or self.expert_ranks == 1
        require(alone, "model.expert_ranks", self.expert_ranks, "1 where there are pipeline stages")


@dataclass(frozen=True)
class DataConfig:
    """How many sums there are."""

    batch_size: int = 32
    """Sums of one step over ALL ranks."""
    samples: int = 2048
    """Sums of an epoch, drawn by their index and the seed."""

    def __post_init__(self) -> None:
        require_at_least("data.batch_size", self.batch_size, 1)
        require_at_least("data.samples", self.samples, self.batch_size)
