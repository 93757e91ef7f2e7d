"""Settings of the reference H-JEPA run: the sections `model` and `data` of its YAML file.

Every dataclass is frozen and checks itself: a bad value raises ConfigError naming key, value and what is
valid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hjepa_dist_metrics.reference.checks import require, require_at_least, require_choice, require_range

LossKind = Literal["smooth_l1", "cosine"]
TargetNormalization = Literal["batch", "layer"]
Regularization = Literal["none", "vicreg"]
DataKind = Literal["digits", "image_folder"]

MIN_LEVELS, MAX_LEVELS = 2, 4


@dataclass(frozen=True)
class EMAConfig:
    """Momentum of the target encoder, rising along a half cosine over the run."""

    momentum_start: float = 0.98
    """Momentum at step 0. 0.996 suits many thousand steps; over a few hundred it freezes the teacher."""
    momentum_end: float = 1.0
    """Momentum at the last step."""
    frozen: bool = False
    """True leaves the teacher as it starts while the schedule runs on: a fault on purpose."""

    def __post_init__(self) -> None:
        start, end = self.momentum_start, self.momentum_end
        require(0.0 <= start <= 1.0, "model.ema.momentum_start", start, "0 to 1")
        require(start <= end <= 1.0, "model.ema.momentum_end", end, f"momentum_start ({start}) to 1")


@dataclass(frozen=True)
class MaskingConfig:
    """Rectangular blocks of patches that the predictor has to fill in."""

    num_target_blocks: int = 3
    """Blocks drawn for every image; they may overlap."""
    scale: tuple[float, float] = (0.15, 0.35)
    """Smallest and largest area of a block, as a fraction of the grid."""
    aspect_ratio: tuple[float, float] = (0.66, 1.5)
    """Smallest and largest height over width of a block."""
    min_visible: int = 3
    """Patches that stay visible in every image; a block that would leave fewer is dropped."""
    repeat: bool = False
    """True draws the same masks at every step and on every rank: a fault on purpose."""

    def __post_init__(self) -> None:
        require_at_least("model.masking.num_target_blocks", self.num_target_blocks, 1)
        require_range("model.masking.scale", self.scale, 0.0, 1.0)
        require_range("model.masking.aspect_ratio", self.aspect_ratio, 0.0, 100.0)
        require_at_least("model.masking.min_visible", self.min_visible, 1)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the predictor is asked for."""

    loss: LossKind = "smooth_l1"
    """Distance between prediction and target."""
    target_normalization: TargetNormalization = "batch"
    """`batch`: standardise each position and channel over the global batch, which learns. `layer`: layer norm
    of each target token, with which the predictor learns the positions' part and the content quietly
    collapses."""
    regularization: Regularization = "vicreg"
    """`vicreg`: variance and covariance terms on the pooled context features of the global batch."""
    variance_weight: float = 1.0
    """Weight of the variance term (only with `vicreg`)."""
    covariance_weight: float = 0.2
    """Weight of the covariance term (only with `vicreg`)."""
    stop_gradient: bool = True
    """False takes the targets from the context encoder, with gradient: a collapse on purpose."""

    def __post_init__(self) -> None:
        require_choice("model.objective.loss", self.loss, LossKind)
        require_choice("model.objective.target_normalization", self.target_normalization, TargetNormalization)
        require_choice("model.objective.regularization", self.regularization, Regularization)
        require_at_least("model.objective.variance_weight", self.variance_weight, 0)
        require_at_least("model.objective.covariance_weight", self.covariance_weight, 0)


@dataclass(frozen=True)
class ModelConfig:
    """Architecture, hierarchy, masking, teacher and objective."""

    patch_size: int | None = None
    """Side of a square patch in pixels; null takes a quarter of the image's shorter side."""
    embed_dim: int = 64
    """Width of the encoders, a multiple of 4 and of `num_heads`."""
    depth: int = 3
    """Transformer blocks of each encoder."""
    num_heads: int = 4
    """Attention heads of encoders and predictor."""
    mlp_ratio: float = 2.0
    """Hidden width of the blocks' MLP over their width."""
    predictor_dim: int = 64
    """Width of the predictor, a multiple of 4 and of `num_heads`."""
    predictor_depth: int = 2
    """Transformer blocks of the predictor."""
    num_hierarchies: int = 3
    """Levels, 2 to 4; each halves the grid of the one before."""
    hierarchy_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    """Weight of every level's loss, fine to coarse."""
    ema: EMAConfig = field(default_factory=EMAConfig)
    """Teacher."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Masked blocks."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """Loss."""

    def __post_init__(self) -> None:
        if self.patch_size is not None:
            require_at_least("model.patch_size", self.patch_size, 1)
        for key, value in (("depth", self.depth), ("predictor_depth", self.predictor_depth)):
            require_at_least(f"model.{key}", value, 1)
        require_at_least("model.num_heads", self.num_heads, 1)
        for key, width in (("embed_dim", self.embed_dim), ("predictor_dim", self.predictor_dim)):
            ok = width > 0 and width % 4 == 0 and width % self.num_heads == 0
            require(ok, f"model.{key}", width, f"a multiple of 4 and of num_heads ({self.num_heads})")
        require(self.mlp_ratio > 0, "model.mlp_ratio", self.mlp_ratio, "more than 0")
        levels, weights = self.num_hierarchies, self.hierarchy_weights
        require(
            MIN_LEVELS <= levels <= MAX_LEVELS,
            "model.num_hierarchies",
            levels,
            f"{MIN_LEVELS} to {MAX_LEVELS}",
        )
        ok = len(weights) == levels and min(weights) >= 0 and sum(weights) > 0
        require(ok, "model.hierarchy_weights", weights, f"{levels} numbers of 0 or more, not all 0")


@dataclass(frozen=True)
class DataConfig:
    """Images and how they are served."""

    kind: DataKind = "digits"
    """`digits`: scikit-learn's handwritten digits. `image_folder`: any folder; class = first sub-folder."""
    root: str | None = None
    """Folder of the images (only with `image_folder`)."""
    image_size: tuple[int, int] | None = None
    """Height and width; null takes 8 x 8 for digits, 32 x 32 for a folder (resized, centre-cropped)."""
    batch_size: int = 128
    """Images of one step over ALL ranks and accumulation steps."""
    num_workers: int = 0
    """Loader processes of each rank."""
    max_shift: int = 0
    """Augmentation: move each image by up to so many pixels, drawn by its index and the epoch; 0: off."""
    val_fraction: float = 0.2
    """Share of a folder's images that is kept for the probe."""
    labels_per_class: int = 10
    """Labels that the probe may use for each class."""

    def __post_init__(self) -> None:
        require_choice("data.kind", self.kind, DataKind)
        require(self.kind != "image_folder" or bool(self.root), "data.root", self.root, "a folder of images")
        if self.image_size is not None:
            require(
                min(self.image_size) >= 2, "data.image_size", self.image_size, "two sides of 2 pixels or more"
            )
            ok = self.kind != "digits" or tuple(self.image_size) == (8, 8)
            require(ok, "data.image_size", self.image_size, "null or [8, 8] for the digits")
        require_at_least("data.batch_size", self.batch_size, 2)
        require_at_least("data.num_workers", self.num_workers, 0)
        require_at_least("data.max_shift", self.max_shift, 0)
        require(0.0 < self.val_fraction < 1.0, "data.val_fraction", self.val_fraction, "between 0 and 1")
        require_at_least("data.labels_per_class", self.labels_per_class, 1)
