"""Sums and sums of squares that keep what a variance needs, however far the mean lies from zero.

A variance is squares - sum^2 / n, which float32 sums leave nothing of where the mean is a thousand times the
standard deviation. Where it outweighs that, both sums are made again in float64: of gradients hardly ever,
of a normalisation's weights always.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.flat_tensors import joined_sums, split_by_size
from hjepa_dist_metrics.metrics.kernels.norms import BLOCK, square_sums

# A mean outweighs its deviation where sum^2 / n is more than this share of the squares: up to here float32
# sums, exact to 1e-7, give a variance that is exact to 2e-6.
MEAN_DOMINATES = 15 / 16
# What is left of equal elements is the rounding of float64 sums.
_ROUNDING = 1e-13


def variance(count: float, total: float, squares: float) -> float:
    """Return (squares - total^2 / n) / (n - 1) from float64 sums; 0 of equal elements, NaN of NaN."""
    centred = squares - total * total / count
    if abs(centred) < _ROUNDING * squares:
        return 0.0
    return max(centred, 0.0) / max(count - 1, 1) if centred == centred else centred


def recompute_in_float64_(blocks: Sequence[Tensor], sums: Tensor, squares: Tensor) -> None:
    """Make sums and sums of squares of host tensors, float64 [n], again where the mean outweighs."""
    counts = torch.tensor([block.numel() for block in blocks], dtype=torch.float64, device="cpu")
    for index in (sums * sums > MEAN_DOMINATES * counts * squares).nonzero()[:, 0].tolist():
        parts = [part.to(torch.float64) for part in torch.split(blocks[index].reshape(-1), BLOCK)]
        # Deviations, and not plain squares: of equal elements those round alike, and a variance shows it.
        pairs = [torch.stack(sums_about_mean(part)) for part in parts]
        sums[index], squares[index] = torch.stack(pairs).sum(dim=0)


def sums_about_mean(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and sum of squares of float32 or float64 elements, 0-d float64, without asking the device.

    Deviations d from a mean m that may be rounded: sum = n m + sum d, squares = sum d^2 + m (2 sum d + n m).
    """
    count, mean = flat.numel(), flat.mean()
    mean = torch.where(torch.isfinite(mean), mean, torch.zeros_like(mean))
    deviations = flat - mean
    norm = torch.linalg.vector_norm(deviations).to(torch.float64)
    offset, pivot = deviations.sum().to(torch.float64), mean.to(torch.float64)
    about_zero = norm * norm
    shifted = about_zero + pivot * (2 * offset + count * pivot)
    return count * pivot + offset, torch.where(pivot == 0, about_zero, shifted)


def sums_and_squares(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sum and the sum of squares of each tensor of float32 or float64, float64 [n] on `device`."""
    if device.type != "cpu":
        both = [torch.stack(sums_about_mean(tensor.reshape(-1))) for tensor in tensors]
        sums, squares = torch.stack(both, dim=1)
        return sums, squares
    found = torch.zeros((2, len(tensors)), dtype=torch.float64, device=device)
    small, large = split_by_size(tensors)
    if small:
        found[:, torch.tensor(small, device="cpu")] = joined_sums([tensors[i] for i in small])
    if large:
        wide = [tensors[i] for i in large]
        sums = torch.stack([tensor.sum().to(torch.float64) for tensor in wide])
        squares = square_sums(wide, device)
        recompute_in_float64_(wide, sums, squares)
        found[:, torch.tensor(large, device="cpu")] = torch.stack([sums, squares])
    return found[0], found[1]
