"""Settings of the text, image and audio run: the sections `model` and `data` of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass

from hjepa_dist_metrics.reference.checks import require, require_at_least, require_range


@dataclass(frozen=True)
class ModelConfig:
    """Width of the common space, and the contrastive losses."""

    embed_dim: int = 64
    """Width of the space that all modalities are embedded in."""
    temperature: float = 0.1
    """Cosines are divided by it before the softmax; it is learned from there."""
    pair_weight: float = 1.0
    """Weight of the mean over all pairs of modalities."""
    global_weight: float = 0.5
    """Weight of the loss between the global embedding and each modality; 0 only reports it."""

    def __post_init__(self) -> None:
        require_at_least("model.embed_dim", self.embed_dim, 2)
        require(0.01 <= self.temperature <= 1.0, "model.temperature", self.temperature, "0.01 to 1")
        require_at_least("model.pair_weight", self.pair_weight, 0)
        require_at_least("model.global_weight", self.global_weight, 0)
        ok = self.pair_weight + self.global_weight > 0
        require(ok, "model.pair_weight", self.pair_weight, "more than 0 where global_weight is 0")


@dataclass(frozen=True)
class DataConfig:
    """How the digits are shown, told and dialled."""

    batch_size: int = 128
    """Samples of one step over ALL ranks and accumulation steps: each is the others' negative."""
    max_shift: int = 1
    """Augmentation: move each image by up to so many pixels, drawn by its index and the epoch; 0: off."""
    audio_noise: tuple[float, float] = (0.1, 1.0)
    """Smallest and largest standard deviation of the noise, over the tones' amplitude."""
    audio_level_db: float = 12.0
    """Loudest over softest signal, in decibels."""

    def __post_init__(self) -> None:
        require_at_least("data.batch_size", self.batch_size, 2)
        require_at_least("data.max_shift", self.max_shift, 0)
        require_range("data.audio_noise", self.audio_noise, 0.0, 10.0)
        require_at_least("data.audio_level_db", self.audio_level_db, 0)
