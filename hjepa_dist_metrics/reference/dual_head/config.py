"""Settings of the dual-head run: the sections `model` and `data` of its YAML file.

Every dataclass is frozen and checks itself: a bad value raises ConfigError naming key, value and what is
valid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hjepa_dist_metrics.reference.checks import require, require_at_least, require_choice

EncoderKind = Literal["handcrafted", "clip"]

GRID = (2, 4)
"""Rows and columns of a frame's patches: 8 patches a frame."""
PATCHES_PER_FRAME = GRID[0] * GRID[1]
UPSCALING = 8
"""The decoder starts from an eighth of a patch's sides."""


@dataclass(frozen=True)
class SemanticConfig:
    """The semantic head and the frozen encoder that it imitates."""

    encoder: EncoderKind = "handcrafted"
    """`handcrafted`: edges, colours and frequencies, nothing to download. `clip`: a CLIP from `path`."""
    path: str | None = None
    """Folder of a CLIP as `save_pretrained` of transformers writes it (only with `clip`)."""
    weight: float = 0.1
    """Weight of the semantic loss, 1 - cosine, beside the pixel loss."""
    warmup_epochs: int = 5
    """Epochs without the semantic loss."""

    def __post_init__(self) -> None:
        require_choice("model.semantic.encoder", self.encoder, EncoderKind)
        ok = self.encoder != "clip" or bool(self.path)
        require(ok, "model.semantic.path", self.path, "a folder with a CLIP that transformers saved")
        require_at_least("model.semantic.weight", self.weight, 0)
        require_at_least("model.semantic.warmup_epochs", self.warmup_epochs, 0)


@dataclass(frozen=True)
class ModelConfig:
    """The implicit video representation."""

    width: int = 48
    """Channels of the decoder's first stage, an even number; the last stages have half as many."""
    hidden: int = 256
    """Width of the layer that reads the coordinates."""
    frequencies: int = 6
    """Octaves of sines and cosines of the time: more follow faster motion and generalise less."""
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    """Semantic head."""

    def __post_init__(self) -> None:
        ok = self.width >= 2 and self.width % 2 == 0
        require(ok, "model.width", self.width, "an even number of 2 or more")
        require_at_least("model.hidden", self.hidden, 1)
        require_at_least("model.frequencies", self.frequencies, 1)


@dataclass(frozen=True)
class DataConfig:
    """Videos made from photographs, and how their patches are served."""

    frames_per_video: int = 40
    """Frames of each of the two videos, one for each photograph."""
    frame_size: tuple[int, int] = (48, 96)
    """Height and width of a frame: multiples of 16 and 32, so that 2 x 4 patches have sides of 8 n."""
    val_every: int = 5
    """Every so many frames one is kept for validation."""
    batch_size: int = 32
    """Patches of one step over ALL ranks and accumulation steps."""

    def __post_init__(self) -> None:
        require_at_least("data.frames_per_video", self.frames_per_video, 2)
        sides = [UPSCALING * parts for parts in GRID]
        ok = all(size >= side and size % side == 0 for size, side in zip(self.frame_size, sides, strict=True))
        require(ok, "data.frame_size", self.frame_size, f"multiples of {sides[0]} and {sides[1]}")
        require_at_least("data.val_every", self.val_every, 2)
        frames, first = self.frames_per_video, self.val_every // 2
        allowed = f"at most {2 * frames - 1}: the validation split of {frames} frames a video would be empty"
        require(first < frames, "data.val_every", self.val_every, allowed)
        require_at_least("data.batch_size", self.batch_size, 1)
