"""What a head is to the job: its module, target, loss and quality. Two are made here; any set will do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from hjepa_dist_metrics.metrics import Reconstruction, SemanticSimilarity, psnr
from hjepa_dist_metrics.metrics.reconstruction.per_frame import FrameMetric
from hjepa_dist_metrics.reference.dual_head.config import SemanticConfig
from hjepa_dist_metrics.reference.dual_head.encoders import build_encoder, encode
from hjepa_dist_metrics.reference.dual_head.model import RGBHead, SemanticHead
from hjepa_dist_metrics.reference.dual_head.video import Patches

Pairwise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Head:
    """Describe one head of the model.

    `targets` are those of all patches of each split, [N, ...]; `distance` returns the loss of each patch,
    [B], from outputs and targets; `quality` makes the metric of a split from its name, its number of frames
    and the patches of each. `score`, a name and a function as `distance`, is reported for every batch.
    """

    name: str
    """The part of the model is `{name}_head`."""
    loss_name: str
    """The loss is `{loss_name}_loss` in tags."""
    module: Callable[[int], nn.Module]
    targets: Mapping[str, Tensor]
    distance: Pairwise
    quality: Callable[[str, int, int], FrameMetric]
    score: tuple[str, Pairwise] | None = None
    weight: float = 1.0
    warmup_epochs: int = 0

    def weight_at(self, epoch: int) -> float:
        """Return the weight of the loss in an epoch, 0 in the warm-up."""
        return 0.0 if epoch < self.warmup_epochs else self.weight


def rgb_head(splits: Mapping[str, Patches]) -> Head:
    """Return the head that paints the patch: mean squared error, PSNR."""
    return Head(
        name="rgb",
        loss_name="pixel",
        module=RGBHead,
        targets={name: patches.pixels for name, patches in splits.items()},
        distance=lambda output, target: (output - target).square().flatten(1).mean(dim=1),
        quality=lambda split, frames, patches: Reconstruction(
            split, num_frames=frames, patches_per_frame=patches
        ),
        score=("PSNR", psnr),
    )


def semantic_head(splits: Mapping[str, Patches], config: SemanticConfig) -> Head:
    """Return the head that imitates a frozen image encoder: 1 - cosine, after the warm-up."""
    encoder = build_encoder(config, splits["train"].pixels)
    return Head(
        name="clip",
        loss_name="clip",
        module=partial(SemanticHead, dim=encoder.dim),
        targets={name: encode(encoder, patches.pixels) for name, patches in splits.items()},
        distance=lambda output, target: 1.0 - F.cosine_similarity(output, target, dim=1),
        quality=lambda split, frames, patches: SemanticSimilarity(
            "clip", split, num_frames=frames, patches_per_frame=patches
        ),
        weight=config.weight,
        warmup_epochs=config.warmup_epochs,
    )
