"""Element statistics on the host: one block after the other, in the cache, by torch's own kernels.

Each block is fetched from memory once; what else is done with it finds it, and one scratch buffer, in the
cache. Sums are made in float32 within a block and in float64 beyond, so that the error does not grow with
the number of elements; in float64 throughout where float32 would leave nothing of the variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.centred import sharpen_
from hjepa_dist_metrics.metrics.elements import BINS, Elements, ElementStats
from hjepa_dist_metrics.metrics.norms import BLOCK

_EXPONENT_SHIFT = 23


def read(tensors: Sequence[Tensor], columns: Sequence[int], size: int, counting: bool) -> Elements:
    """Return the statistics of each tensor, and the counts by column; see `elements.read_elements`."""
    blocks = [
        (index, block)
        for index, tensor in enumerate(tensors)
        for block in torch.split(tensor.reshape(-1), BLOCK)
        if block.numel()
    ]
    counts = torch.zeros((size, BINS), dtype=torch.int64, device="cpu") if counting else None
    rows = None if counts is None else counts.unbind()
    owners = [index for index, _ in blocks]
    targets = [None if rows is None else rows[columns[index]] for index in owners]
    whole = _stats([block for _, block in blocks], targets, _widest(tensors))
    return Elements(whole.by_column(owners, len(tensors)), counts)


def _stats(
    blocks: Sequence[Tensor], targets: Sequence[Tensor | None], wide_type: torch.dtype
) -> ElementStats:
    """Return the statistics of each block; add its counts to its target, where it has one."""
    bits_type = torch.int64 if wide_type == torch.float64 else torch.int32
    found = torch.zeros((len(blocks), 3), dtype=wide_type, device="cpu")  # abs sum, sum, squares
    extremes = torch.zeros((len(blocks), 2), dtype=bits_type, device="cpu")
    scratch = torch.empty((2, BLOCK), dtype=wide_type, device="cpu")
    cells, ends = found.view(-1).unbind(), extremes.view(-1).unbind()
    for i, (block, target) in enumerate(zip(blocks, targets, strict=True)):
        wide = block if block.dtype == wide_type else scratch[1, : block.numel()].copy_(block)
        absolute = torch.abs(wide, out=scratch[0, : block.numel()])
        torch.sum(absolute, 0, out=cells[3 * i])
        torch.sum(wide, 0, out=cells[3 * i + 1])
        torch.dot(wide, wide, out=cells[3 * i + 2])
        bits = absolute.view(bits_type)  # in order as the absolute values are, and faster to compare
        torch.amax(bits, 0, out=ends[2 * i])
        torch.amin(bits, 0, out=ends[2 * i + 1])
        if target is not None:
            target += _count(wide, bits, bool(ends[2 * i]))
    sums = found.to(torch.float64).T
    sharpen_(blocks, sums[1], sums[2])
    rare = _rare(blocks, found, extremes)
    numels = torch.tensor([block.numel() for block in blocks], dtype=torch.float64, device="cpu")
    largest, smallest = extremes.view(wide_type).to(torch.float64).unbind(1)
    return ElementStats(
        torch.cat([numels[None], sums, rare]),
        largest,
        torch.where(largest.isnan(), largest, smallest),
    )


def _rare(blocks: Sequence[Tensor], found: Tensor, extremes: Tensor) -> Tensor:
    """Count zeros and nonfinite elements, in those blocks alone that have any: counting costs four reads."""
    rare = torch.zeros((2, len(blocks)), dtype=torch.float64, device="cpu")
    for index in (extremes[:, 1] == 0).nonzero()[:, 0].tolist():
        rare[0, index] = blocks[index].numel() - torch.count_nonzero(blocks[index])
    for index in (~torch.isfinite(found[:, 0])).nonzero()[:, 0].tolist():
        rare[1, index] = (~torch.isfinite(blocks[index])).sum()
    return rare


def _count(wide: Tensor, scratch: Tensor, nonzero: bool) -> Tensor:
    """Count a block by sign and exponent of its float32 values; `scratch` may be overwritten."""
    if not nonzero:  # equal codes are the slowest to count, and a dead module is nothing but those
        negative = int(torch.signbit(wide).sum())
        counts = torch.zeros(BINS, dtype=torch.int64, device="cpu")
        counts[0], counts[BINS // 2] = wide.numel() - negative, negative
        return counts
    single = wide.to(torch.float32).view(torch.int32)
    codes = scratch if scratch.dtype == torch.int32 else torch.empty_like(single)
    torch.bitwise_right_shift(single, _EXPONENT_SHIFT, out=codes)
    return torch.bincount(codes.bitwise_and_(BINS - 1), minlength=BINS)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
