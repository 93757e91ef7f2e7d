"""The loss of H-JEPA over the global batch: the same run at every number of ranks.

Two rules make it so. Statistics (the targets' mean and variance, the pooled context's moments) and counts are
merged over ranks before they are used, all in one sum. And the loss that a rank differentiates is

    world_size * (its samples' share of  sum_l w_l * S_l / C_l),

S_l summed over this rank's valid tokens, C_l counted over all ranks': the mean of gradients that
DistributedDataParallel takes is then the gradient of the global loss, also with uneven shares.

With gradient accumulation call the objective for every micro-step, whose samples of all ranks are one
micro-batch of the global batch, and divide the loss by the number of micro-steps: statistics and counts are
the micro-batch's, at every number of ranks alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hjepa_dist_metrics.reference.hjepa.config import ObjectiveConfig
from hjepa_dist_metrics.reference.hjepa.model import HJEPAOutput
from hjepa_dist_metrics.reference.hjepa.vicreg import PooledMoments, pooled_moments, vicreg_terms

ReduceSum = Callable[[torch.Tensor], torch.Tensor]

_EPS = 1e-4


@dataclass(frozen=True)
class ObjectiveResult:
    """Hold one step's loss. Everything but `loss` is detached; nothing has visited the host."""

    loss: torch.Tensor
    """Scalar to differentiate: this rank's part, scaled by world_size so that DDP's mean of gradients is
    right."""
    losses: dict[str, torch.Tensor]
    """`loss`, `loss_h0`, ..., `loss_unweighted` (and `loss_variance`, `loss_covariance` with vicreg), scaled
    so that their mean over ranks weighted by `count` is the loss of the global batch, exactly. On one
    process: the loss."""
    count: int
    """Samples of this rank."""
    sums: torch.Tensor
    """float64 [L]: sum of the loss over this rank's valid tokens."""
    counts: torch.Tensor
    """int64 [L]: this rank's valid tokens."""
    targets: list[torch.Tensor]
    """Normalised targets, what the predictions are to match: [B, N_l, D]."""


def identity(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor: the sum over the ranks of a world of one."""
    return tensor


class HJEPAObjective:
    """Compare predictions with normalised targets, level by level.

    `reduce_sum` sums a float64 vector over ranks (out of place, without gradient); it is called once a step,
    on every rank, with the same length.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        hierarchy_weights: Sequence[float],
        reduce_sum: ReduceSum = identity,
        world_size: int = 1,
    ) -> None:
        self.config, self.weights = config, tuple(hierarchy_weights)
        self.reduce_sum, self.world_size = reduce_sum, world_size

    def __call__(self, output: HJEPAOutput) -> ObjectiveResult:
        """Return the loss of `output`; a collective call where `reduce_sum` is one."""
        masks, count = output["masks_valid"], len(output["context_features"])
        counts = torch.stack([mask.sum() for mask in masks])
        vicreg = self.config.regularization == "vicreg"
        pooled = pooled_moments(output["context_features"], output["context_valid"]) if vicreg else None
        batch = self.config.target_normalization == "batch"
        stats = (
            [_target_sums(t, v) for t, v in zip(output["targets"], output["tokens_valid"], strict=True)]
            if batch
            else []
        )
        parts = [counts.double(), counts.new_tensor([count]).double(), *stats]
        merged = self._reduce(parts + ([] if pooled is None else [pooled.sums]))
        targets = self._normalise(output["targets"], merged[2 : 2 + len(stats)])
        sums = torch.stack(
            [self._level_sum(p, t, m) for p, t, m in zip(output["predictions"], targets, masks, strict=True)]
        )
        per_level = sums / merged[0].clamp(min=1).to(sums.dtype)
        share = merged[1][0] / max(count, 1)
        return self._result(per_level, share, sums, counts, count, targets, pooled, merged[-1])

    def _reduce(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Sum every float64 tensor over the ranks in one call."""
        flat = self.reduce_sum(torch.cat([part.reshape(-1) for part in parts]))
        pieces = torch.split(flat, [part.numel() for part in parts])
        return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]

    def _normalise(self, targets: list[torch.Tensor], merged: list[torch.Tensor]) -> list[torch.Tensor]:
        if self.config.target_normalization == "layer":
            return [F.layer_norm(t.float(), t.shape[-1:]) for t in targets]
        return [_standardise(t.float(), stats) for t, stats in zip(targets, merged, strict=True)]

    def _level_sum(self, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Sum the tokens' losses (mean over channels) where `mask` is set."""
        prediction = prediction.float()
        if self.config.loss == "cosine":
            token = 1.0 - F.cosine_similarity(prediction, target, dim=-1)
        else:
            token = F.smooth_l1_loss(prediction, target, reduction="none").mean(dim=-1)
        return torch.where(mask, token, 0.0).sum()

    def _result(
        self,
        per_level: torch.Tensor,
        share: torch.Tensor,
        sums: torch.Tensor,
        counts: torch.Tensor,
        count: int,
        targets: list[torch.Tensor],
        pooled: PooledMoments | None,
        merged_pooled: torch.Tensor,
    ) -> ObjectiveResult:
        weighted = (per_level * per_level.new_tensor(self.weights[: len(per_level)])).sum()
        scaled = per_level.detach() * share.to(per_level.dtype)
        total = weighted.detach() * share.to(per_level.dtype)
        losses = {f"loss_h{i}": value for i, value in enumerate(scaled.unbind())}
        losses["loss_unweighted"] = scaled.mean()
        if pooled is not None:
            config = self.config
            terms = vicreg_terms(pooled, merged_pooled, config.variance_weight, config.covariance_weight)
            weighted = weighted + terms.surrogate
            total = (
                total + config.variance_weight * terms.variance + config.covariance_weight * terms.covariance
            )
            losses |= {"loss_variance": terms.variance, "loss_covariance": terms.covariance}
        detached = [target.detach() for target in targets]
        loss = weighted * self.world_size
        return ObjectiveResult(
            loss, {"loss": total, **losses}, count, sums.detach().double(), counts, detached
        )


def _target_sums(target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return count, sum and sum of squares over the batch for each position and channel: float64 [3, N_l,
    D]."""
    x = target.detach().double() * valid.unsqueeze(-1)
    count = valid.sum(dim=0).double().unsqueeze(-1).expand(x.shape[1:])
    return torch.stack([count, x.sum(dim=0), x.square().sum(dim=0)])


def _standardise(target: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Return (target - mean) / sqrt(var + eps) with the merged batch's statistics of each position and
    channel."""
    count = sums[0].clamp(min=1)
    mean = sums[1] / count
    variance = (sums[2] / count - mean.square()).clamp(min=0)
    return (target - mean.to(target.dtype)) * (variance + _EPS).rsqrt().to(target.dtype)
