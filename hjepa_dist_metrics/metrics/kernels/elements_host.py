"""Element statistics on the host: one block after the other, in the cache, by torch's own kernels.

Each block is fetched from memory once; what else is done with it finds it, and one scratch buffer, in the
cache. Sums are made in float32 within a block and in float64 beyond, so that the error does not grow with
the number of elements; in float64 throughout where float32 would leave nothing of the variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.elements import BINS, SUMS, Elements, ElementStats, single
from hjepa_dist_metrics.metrics.kernels.flat_tensors import FlatTensors, chunks, split_by_size
from hjepa_dist_metrics.metrics.kernels.moments import block_moments_, joined_moments
from hjepa_dist_metrics.metrics.kernels.norms import BLOCK, ROW

_EXPONENT_SHIFT = 23


def read(tensors: Sequence[Tensor], columns: Sequence[int], size: int, counting: bool) -> Elements:
    """Return the statistics of each tensor, and the counts by column; see `elements.read_elements`."""
    counts = torch.zeros((size, BINS), dtype=torch.int64, device="cpu") if counting else None
    small, large = split_by_size(tensors)
    parts = [
        _joined_stats(
            [tensors[i] for i in small[start:stop]], [columns[i] for i in small[start:stop]], counts
        )
        for start, stop in chunks([tensors[i].numel() for i in small])
    ]
    blocks = [(i, block) for i in large for block in torch.split(tensors[i].reshape(-1), BLOCK)]
    rows = None if counts is None else counts.unbind()
    targets = [None if rows is None else rows[columns[index]] for index, _ in blocks]
    parts.append(_stats([block for _, block in blocks], targets, _widest(tensors)))
    owners = [*small, *(index for index, _ in blocks)]
    return Elements(ElementStats.joined(parts).by_column(owners, len(tensors)), counts)


def _joined_stats(tensors: Sequence[Tensor], columns: Sequence[int], counts: Tensor | None) -> ElementStats:
    """Return the statistics of each small tensor, summed in float64; add their counts to `counts`."""
    joined = FlatTensors(tensors, _widest(tensors))
    absolute = np.abs(joined.values)
    bits = absolute.view(np.int64 if absolute.dtype == np.float64 else np.int32)  # in the order of the values
    highest, lowest = joined.largest(bits), joined.smallest(bits)
    abs_sums = joined.sums(absolute)
    sums, spread = joined_moments(joined, tensors)
    nothing = np.zeros(len(tensors))
    zeros = nothing if lowest.all() else joined.sums(bits == 0)
    bad = nothing if np.isfinite(abs_sums).all() else joined.sums(~np.isfinite(joined.values))
    if counts is not None:
        _count_joined(joined, columns, counts)
    largest, smallest = (ends.view(absolute.dtype).astype(np.float64) for ends in (highest, lowest))
    return ElementStats(
        torch.from_numpy(np.stack([joined.sizes, abs_sums, sums.numpy(), zeros, bad])),
        spread,
        torch.from_numpy(largest),
        torch.from_numpy(np.where(np.isnan(largest), largest, smallest)),
    )


def _count_joined(joined: FlatTensors, columns: Sequence[int], counts: Tensor) -> None:
    codes = single(torch.from_numpy(joined.values)).numpy().copy().view(np.int32)
    codes >>= _EXPONENT_SHIFT
    codes &= BINS - 1
    codes += np.repeat(np.array(columns, dtype=np.int32) * BINS, joined.sizes)
    counts += torch.bincount(torch.from_numpy(codes), minlength=counts.numel()).view(counts.shape)


def _stats(
    blocks: Sequence[Tensor], targets: Sequence[Tensor | None], wide_type: torch.dtype
) -> ElementStats:
    """Return the statistics of each block; add its counts to its target, where it has one."""
    bits_type = torch.int64 if wide_type == torch.float64 else torch.int32
    found = torch.zeros((len(blocks), 2), dtype=wide_type, device="cpu")  # abs sum, sum
    norms = torch.zeros(
        (len(blocks), BLOCK // ROW + 1), dtype=wide_type, device="cpu"
    )  # of rows, and the rest
    extremes = torch.zeros((len(blocks), 2), dtype=bits_type, device="cpu")
    scratch = torch.empty((2, BLOCK), dtype=wide_type, device="cpu")
    cells, ends = found.view(-1).unbind(), extremes.view(-1).unbind()
    for i, (block, target) in enumerate(zip(blocks, targets, strict=True)):
        wide = block if block.dtype == wide_type else scratch[1, : block.numel()].copy_(block)
        absolute = torch.abs(wide, out=scratch[0, : block.numel()])
        torch.sum(absolute, 0, out=cells[2 * i])
        torch.sum(wide, 0, out=cells[2 * i + 1])
        _row_norms(wide, norms[i])
        bits = absolute.view(bits_type)  # in order as the absolute values are, and faster to compare
        torch.aminmax(bits, out=(ends[2 * i], ends[2 * i + 1]))
        if target is not None:
            target += _count(wide, bits, bool(ends[2 * i + 1]))
    smallest, largest = extremes.view(wide_type).to(torch.float64).unbind(1)
    sums = torch.zeros((len(SUMS), len(blocks)), dtype=torch.float64, device="cpu")
    sums[0] = torch.tensor([block.numel() for block in blocks], dtype=torch.float64, device="cpu")
    sums[1:3] = found.T
    block_norms = norms.to(torch.float64).square_().sum(dim=1).sqrt_()
    spread, again = block_moments_(blocks, sums[2], block_norms, largest)
    for index in again:
        sums[1, index] = blocks[index].abs().sum(dtype=torch.float64)
    sums[3:] = _rare(blocks, sums[1], extremes)
    return ElementStats(sums, spread, largest, torch.where(largest.isnan(), largest, smallest))


def _row_norms(flat: Tensor, into: Tensor) -> None:
    rows = flat.numel() // ROW
    torch.linalg.vector_norm(flat[: rows * ROW].view(rows, ROW), dim=1, out=into[:rows])
    if rows * ROW < flat.numel():
        torch.linalg.vector_norm(flat[rows * ROW :], dim=0, keepdim=True, out=into[rows : rows + 1])


def _rare(blocks: Sequence[Tensor], abs_sums: Tensor, extremes: Tensor) -> Tensor:
    """Count zeros and nonfinite elements, in those blocks alone that have any: counting costs four reads."""
    rare = torch.zeros((2, len(blocks)), dtype=torch.float64, device="cpu")
    for index in (extremes[:, 0] == 0).nonzero()[:, 0].tolist():
        rare[0, index] = blocks[index].numel() - torch.count_nonzero(blocks[index])
    for index in (~torch.isfinite(abs_sums)).nonzero()[:, 0].tolist():
        rare[1, index] = (~torch.isfinite(blocks[index])).sum()
    return rare


def _count(wide: Tensor, scratch: Tensor, nonzero: bool) -> Tensor:
    """Count a block by sign and exponent of its float32 values; `scratch` may be overwritten."""
    if not nonzero:  # equal codes are the slowest to count, and a dead module is nothing but those
        negative = int(torch.signbit(wide).sum())
        counts = torch.zeros(BINS, dtype=torch.int64, device="cpu")
        counts[0], counts[BINS // 2] = wide.numel() - negative, negative
        return counts
    bits = single(wide).view(torch.int32)
    codes = scratch if scratch.dtype == torch.int32 else torch.empty_like(bits)
    torch.bitwise_right_shift(bits, _EXPONENT_SHIFT, out=codes)
    return torch.bincount(codes.bitwise_and_(BINS - 1), minlength=BINS)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
