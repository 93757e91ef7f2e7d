"""Sums, and the spread about the mean, of tensors of any scale and however far the mean lies from zero.

The spread is the norm of the deviations from the mean, sqrt(sum (x - m)^2): with count and sum it gives
standard deviation and norm, and neither costs digits. From squares it is sqrt(sum x^2 - (sum x)^2 / n), which
float32 sums leave nothing of where the mean is a thousand times the standard deviation, or where squares
leave the type's range. There deviations are taken in float64: of gradients hardly ever, of a normalisation's
weights always.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.flat_tensors import FlatTensors, chunks, split_by_size
from hjepa_dist_metrics.metrics.kernels.norms import BLOCK, power_of_two, tensor_norms
from hjepa_dist_metrics.parallel.sharding.square_ranges import root, square_ranges

# A mean outweighs its deviation where sum^2 / n is more than this share of the squares: up to here float32
# sums, exact to 1e-7, give a variance that is exact to 2e-6.
_MEAN_DOMINATES = (15 / 16) ** 0.5
# What is left of equal elements is the rounding of float64 sums.
_ROUNDING = 1e-15
# Norms of a block outside of these have squares that the type does not hold to 1e-8.
_LEAST = {torch.float32: 4e-13, torch.float64: 1e-140}


def standard_deviation(count: float, total: float, spread: float) -> float:
    """Return spread / sqrt(n - 1) from float64 sums; 0 of equal elements, NaN of a sum that is not finite."""
    if not math.isfinite(total):
        return math.nan
    equal = spread <= _ROUNDING * abs(total) / math.sqrt(max(count, 1))
    return 0.0 if equal else spread / math.sqrt(max(count - 1, 1))


def about_mean(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and spread of float32 or float64 elements, 0-d float64, without asking the device.

    Deviations d from a mean m that may be rounded: sum = n m + sum d, spread^2 = sum d^2 - (sum d)^2 / n.
    """
    scale = torch.ones((), dtype=torch.float64, device=flat.device)
    if flat.dtype == torch.float64:
        scale = power_of_two(torch.linalg.vector_norm(flat, float("inf")))
        flat = flat / scale
    count, mean = flat.numel(), flat.mean(dtype=torch.float64).to(flat.dtype)
    mean = torch.where(torch.isfinite(mean), mean, torch.zeros_like(mean))
    deviations = flat - mean
    norm = torch.linalg.vector_norm(deviations, dtype=torch.float64)
    offset = deviations.sum(dtype=torch.float64)
    total = (count * mean.to(torch.float64) + offset) * scale
    return total, _spread(norm, offset, count) * scale


def _spread(norms: Tensor, sums: Tensor, counts: Any) -> Tensor:
    """Return spreads from norms and sums about any point; infinite where a norm is, not NaN."""
    return torch.where(norms.isinf(), norms, (norms * norms - sums * sums / counts).clamp(min=0).sqrt())


def block_moments_(
    blocks: Sequence[Tensor], sums: Tensor, norms: Tensor, largest: Tensor
) -> tuple[Tensor, list[int]]:
    """Return the spread of each host block, [n], and the blocks that were read again in float64.

    `sums`, `norms` and `largest` absolute values are float64 [n]; the sums of blocks read again are replaced.
    """
    counts = torch.tensor([block.numel() for block in blocks], dtype=torch.float64, device="cpu")
    spreads = _spread(norms, sums, counts)
    single = any(block.dtype != torch.float64 for block in blocks)
    least = _LEAST[torch.float32 if single else torch.float64]
    again = sums.abs() > _MEAN_DOMINATES * counts.sqrt() * norms
    again |= ~torch.isfinite(spreads) & torch.isfinite(largest)
    again |= (norms < least) & (largest > 0)
    places: list[int] = again.nonzero()[:, 0].tolist()
    for index in places:
        wide = [part.to(torch.float64) for part in torch.split(blocks[index].reshape(-1), BLOCK)]
        pairs = torch.stack([torch.stack(about_mean(part)) for part in wide])
        sizes = torch.tensor([part.numel() for part in wide], dtype=torch.float64, device="cpu")
        sums[index] = pairs[:, 0].sum()
        spreads[index] = pooled_spread(sizes, pairs[:, 0], pairs[:, 1])
    return spreads, places


def pooled_spread(counts: Tensor, sums: Tensor, spreads: Tensor) -> Tensor:
    """Return the spread about their common mean of sets of numbers, float64 0-d from [n] each."""
    return pooled_spreads(counts, sums, spreads, torch.zeros_like(counts, dtype=torch.int64), 1)[0]


def pooled_spreads(counts: Tensor, sums: Tensor, spreads: Tensor, index: Tensor, size: int) -> Tensor:
    """Return the spread of each of `size` groups, [size]; set i belongs to group `index[i]`.

    spread^2 = sum spread_i^2 + sum n_i (m_i - m)^2, after Chan et al. (1983).
    """
    zeros = counts.new_zeros(size)
    count, total = zeros.index_add(0, index, counts), zeros.index_add(0, index, sums)
    apart = sums / counts.clamp(min=1) - (total / count.clamp(min=1)).index_select(0, index)
    # What is not finite shows in the spreads.
    apart = torch.where(torch.isfinite(apart), apart.abs(), torch.zeros_like(apart)) * counts.sqrt()
    ranges = square_ranges(torch.cat([spreads, apart]))
    return root(counts.new_zeros((3, size)).index_add_(1, torch.cat([index, index]), ranges))


def moments(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sum and the spread of each tensor of float32 or float64, float64 [n] on `device`."""
    if device.type != "cpu":
        both = [torch.stack(about_mean(tensor.reshape(-1))) for tensor in tensors]
        sums, spreads = torch.stack(both, dim=1)
        return sums, spreads
    found = torch.zeros((2, len(tensors)), dtype=torch.float64, device="cpu")
    small, large = split_by_size(tensors)
    for start, stop in chunks([tensors[i].numel() for i in small]):
        members = small[start:stop]
        parts = [tensors[i] for i in members]
        joined = joined_moments(FlatTensors(parts, torch.float64), parts)
        found[:, torch.tensor(members, device="cpu")] = torch.stack(joined)
    if large:
        wide = [tensors[i] for i in large]
        sums = torch.stack([tensor.sum().to(torch.float64) for tensor in wide])
        norms = tensor_norms(wide, device)  # right at any scale: they tell zeros as well as extremes do
        spreads, _ = block_moments_(wide, sums, norms, norms)
        found[:, torch.tensor(large, device="cpu")] = torch.stack([sums, spreads])
    return found[0], found[1]


def joined_moments(joined: FlatTensors, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return sum and spread of each of the small host tensors `parts`, now joined; float64 [n] each."""
    sums, spreads = (torch.from_numpy(found) for found in joined.moments())
    if any(part.dtype == torch.float64 for part in parts):
        norms = torch.hypot(spreads, sums / torch.from_numpy(joined.sizes).sqrt())
        for index in (~((norms >= _LEAST[torch.float64]) & norms.isfinite())).nonzero()[:, 0].tolist():
            sums[index], spreads[index] = about_mean(parts[index].reshape(-1).to(torch.float64))
    return sums, spreads
