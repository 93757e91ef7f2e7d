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
from hjepa_dist_metrics.reference.hjepa.vicreg import (
    PooledMoments,
    VicregTerms,
    pooled_moments,
    vicreg_terms,
)

ReduceSum = Callable[[torch.Tensor], torch.Tensor]

_EPS = 1e-4


@dataclass(frozen=True)
class ObjectiveResult:
    """Hold one step's loss. Everything but `loss` is detached; nothing has visited the host."""

    loss: torch.Tensor
    """Scalar to differentiate: this rank's part, scaled for DDP's mean of gradients."""
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
        masks, samples = output["masks_valid"], len(output["context_features"])
        counts = torch.stack([mask.sum() for mask in masks])
        stats, pooled = self._target_stats(output), self._pooled(output)
        parts = [counts.double(), counts.new_tensor([samples]).double(), *stats]
        merged = self._reduce(parts if pooled is None else [*parts, pooled.sums])
        targets = self._normalise(output["targets"], merged[2 : 2 + len(stats)])
        pairs = zip(output["predictions"], targets, masks, strict=True)
        sums = torch.stack([self._level_sum(p, t, m) for p, t, m in pairs])
        per_level = sums / merged[0].clamp(min=1).to(sums.dtype)
        terms = None if pooled is None else self._vicreg(pooled, merged[-1])
        share = (merged[1][0] / max(samples, 1)).to(sums.dtype)
        losses = self._report(per_level.detach() * share, terms)
        detached = [target.detach() for target in targets]
        loss = self._differentiable(per_level, terms)
        return ObjectiveResult(loss, losses, samples, sums.detach().double(), counts, detached)

    def _target_stats(self, output: HJEPAOutput) -> list[torch.Tensor]:
        if self.config.target_normalization == "layer":
            return []
        return [_target_sums(t, v) for t, v in zip(output["targets"], output["tokens_valid"], strict=True)]

    def _pooled(self, output: HJEPAOutput) -> PooledMoments | None:
        if self.config.regularization == "none":
            return None
        return pooled_moments(output["context_features"], output["context_valid"])

    def _vicreg(self, pooled: PooledMoments, merged: torch.Tensor) -> VicregTerms:
        return vicreg_terms(pooled, merged, self.config.variance_weight, self.config.covariance_weight)

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

    def _weighted(self, per_level: torch.Tensor) -> torch.Tensor:
        return (per_level * per_level.new_tensor(self.weights[: len(per_level)])).sum()

    def _differentiable(self, per_level: torch.Tensor, terms: VicregTerms | None) -> torch.Tensor:
        """Return what to differentiate; its mean over ranks is the global loss, in value and gradient."""
        share = self._weighted(per_level)
        if terms is None:
            return share * self.world_size
        return (share + terms.surrogate) * self.world_size + terms.value

    def _report(self, per_level: torch.Tensor, terms: VicregTerms | None) -> dict[str, torch.Tensor]:
        total = self._weighted(per_level)
        losses = {f"loss_h{i}": value for i, value in enumerate(per_level.unbind())}
        losses["loss_unweighted"] = per_level.mean()
        if terms is None:
            return {"loss": total, **losses}
        regular = {"loss_variance": terms.variance, "loss_covariance": terms.covariance}
        return {"loss": total + terms.value, **losses, **regular}


def _target_sums(target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return float64 [N_l, 1 + 2 D]: each position's count over the batch, sums and sums of squares."""
    x = target.detach().double() * valid.unsqueeze(-1)
    return torch.cat([valid.sum(dim=0).double().unsqueeze(-1), x.sum(dim=0), x.square().sum(dim=0)], dim=1)


def _standardise(target: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Return (target - mean) / sqrt(var + eps), with each position's and channel's merged statistics."""
    dim = target.shape[-1]
    count, total, squares = torch.split(sums, [1, dim, dim], dim=1)
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    return (target - mean.to(target.dtype)) * (variance + _EPS).rsqrt().to(target.dtype)
