"""VICReg's variance and covariance terms (2105.04906) on moments merged over ranks.

With C = sum_i (z_i - mu)(z_i - mu)^T / (n - 1) over all ranks' samples and a function R(C), dR/dz_i =
2/(n - 1) * G (z_i - mu), G = dR/dC: the part through mu vanishes, because the centred rows add to 0. So each
rank needs only the merged moments to know the exact gradient of its own rows; no gradient travels through the
collective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_EPS = 1e-4


@dataclass(frozen=True)
class PooledMoments:
    """Hold a rank's pooled rows [B, D] (with gradient), their weights [B], and float64 sums [1 + D + D * D]:
    n, sum, second moment."""

    rows: torch.Tensor
    weight: torch.Tensor
    sums: torch.Tensor


@dataclass(frozen=True)
class VicregTerms:
    """Hold the merged terms, and a surrogate whose gradient (not value) is this rank's part of their weighted
    sum."""

    variance: torch.Tensor
    covariance: torch.Tensor
    surrogate: torch.Tensor


def pooled_moments(features: torch.Tensor, valid: torch.Tensor) -> PooledMoments:
    """Average the valid tokens of each sample (features [B, K, D], valid bool [B, K]); samples without one
    weigh 0."""
    mask = valid.unsqueeze(-1).float()
    rows = (features.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    weight = valid.any(dim=1).double()
    z = rows.detach().double() * weight.unsqueeze(-1)
    sums = torch.cat([weight.sum().view(1), z.sum(dim=0), (z.T @ z).reshape(-1)])
    return PooledMoments(rows, weight, sums)


def vicreg_terms(
    local: PooledMoments, merged: torch.Tensor, variance_weight: float, covariance_weight: float
) -> VicregTerms:
    """Return mean relu(1 - sqrt(Var + 1e-4)) and sum_{i != j} C_ij^2 / D of the merged sums, and the
    surrogate."""
    dim = local.rows.shape[1]
    count, mean = merged[0].clamp(min=2), merged[1 : 1 + dim] / merged[0].clamp(min=1)
    second = merged[1 + dim :].view(dim, dim)
    cov = (second - merged[0] * torch.outer(mean, mean)) / (count - 1)
    var = cov.diagonal().clamp(min=0)
    std = (var + _EPS).sqrt()
    off = cov - torch.diag(cov.diagonal())
    slope = torch.where(std < 1, -0.5 / (dim * std), 0.0)
    grad_cov = variance_weight * torch.diag(slope) + covariance_weight * 2.0 / dim * off
    centred = (local.rows.detach().double() - mean) * local.weight.unsqueeze(-1)
    grad_rows = (2.0 / (count - 1) * centred @ grad_cov).to(local.rows.dtype)
    surrogate = (grad_rows * local.rows).sum()
    return VicregTerms((1 - std).clamp(min=0).mean().float(), (off.square().sum() / dim).float(), surrogate)
