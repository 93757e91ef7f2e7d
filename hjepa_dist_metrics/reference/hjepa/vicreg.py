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
    """Hold a rank's rows to regularise and their sums."""

    rows: torch.Tensor
    """float32 [B, D], with gradient."""
    weight: torch.Tensor
    """float64 [B], 1 or 0: rows that count."""
    sums: torch.Tensor
    """float64 [1 + D + D * D]: number, sum and second moment of the rows."""


@dataclass(frozen=True)
class VicregTerms:
    """Hold the terms over all ranks' rows."""

    variance: torch.Tensor
    """mean_d relu(1 - sqrt(C_dd + 1e-4))."""
    covariance: torch.Tensor
    """sum_{i != j} C_ij^2 / D."""
    value: torch.Tensor
    """Their weighted sum."""
    surrogate: torch.Tensor
    """0, with this rank's part of the gradient of `value`."""


def pooled_moments(features: torch.Tensor, valid: torch.Tensor) -> PooledMoments:
    """Average each sample's valid tokens: features [B, K, D], valid bool [B, K]; without one it weighs 0."""
    mask = valid.unsqueeze(-1).float()
    rows = (features.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    weight = valid.any(dim=1).double()
    z = rows.detach().double() * weight.unsqueeze(-1)
    sums = torch.cat([weight.sum().view(1), z.sum(dim=0), (z.T @ z).reshape(-1)])
    return PooledMoments(rows, weight, sums)


def vicreg_terms(
    local: PooledMoments, merged: torch.Tensor, variance_weight: float, covariance_weight: float
) -> VicregTerms:
    """Return the terms of `merged`, the sum over ranks of `PooledMoments.sums`."""
    dim = local.rows.shape[1]
    mean, cov = _mean_and_covariance(merged, dim)
    std = (cov.diagonal().clamp(min=0) + _EPS).sqrt()
    off = cov - torch.diag(cov.diagonal())
    variance, covariance = (1 - std).clamp(min=0).mean(), off.square().sum() / dim
    value = variance_weight * variance + covariance_weight * covariance
    slope = torch.where(std < 1, -0.5 / (dim * std), 0.0)
    grad_cov = variance_weight * torch.diag(slope) + covariance_weight * 2.0 / dim * off
    centred = (local.rows.detach().double() - mean) * local.weight.unsqueeze(-1)
    grad_rows = 2.0 / (merged[0] - 1).clamp(min=1) * centred @ grad_cov
    inner = (grad_rows.to(local.rows.dtype) * local.rows).sum()
    return VicregTerms(variance.float(), covariance.float(), value.float(), inner - inner.detach())


def _mean_and_covariance(sums: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean [D] and covariance [D, D] (divisor n - 1; 0 for less than two rows)."""
    count, total, second = sums[0], sums[1 : 1 + dim], sums[1 + dim :].view(dim, dim)
    mean = total / count.clamp(min=1)
    return mean, (second - count * torch.outer(mean, mean)) / (count - 1).clamp(min=1)
