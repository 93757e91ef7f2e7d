"""Statistics over all elements of many tensors, in few passes and without waiting for the device.

On the host, one block after the other goes through a scratch buffer that stays in the cache: the whole costs
about three reads of the tensors, and the error does not grow with their size. On other devices each number is
one fused kernel a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.norms import BLOCK

SUMS = ("count", "abs_sum", "sum", "square_sum", "zeros", "nonfinite")
BINS = 512  # sign and exponent of a float32


@dataclass
class ElementStats:
    """Hold statistics of tensors, one column each.

    `sums` float64 [6, n] in the order of SUMS; `largest` and `smallest` absolute values, float64 [n],
    minus and plus infinity of an empty tensor. A NaN makes sums and extremes NaN.
    """

    sums: Tensor
    largest: Tensor
    smallest: Tensor

    def by_column(self, columns: Sequence[int], size: int) -> ElementStats:
        """Return the statistics of `size` groups of tensors; tensor i belongs to group `columns[i]`."""
        index = to_device(torch.tensor(columns, dtype=torch.int64), self.sums.device)
        sums = self.sums.new_zeros((len(SUMS), size)).index_add_(1, index, self.sums)
        largest = self.largest.new_full((size,), float("-inf"))
        smallest = self.smallest.new_full((size,), float("inf"))
        return ElementStats(
            sums,
            largest.scatter_reduce_(0, index, self.largest, "amax"),
            smallest.scatter_reduce_(0, index, self.smallest, "amin"),
        )


def element_stats(tensors: Sequence[Tensor], device: torch.device) -> ElementStats:
    """Return the statistics of each tensor; all must lie on `device`."""
    if not tensors:
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        return ElementStats(empty.new_zeros((len(SUMS), 0)), empty, empty)
    return _host_stats(tensors) if device.type == "cpu" else device_stats(tensors)


def _host_stats(tensors: Sequence[Tensor]) -> ElementStats:
    blocks = [
        (index, block)
        for index, tensor in enumerate(tensors)
        for block in torch.split(tensor.reshape(-1), BLOCK)
        if block.numel()
    ]
    found = torch.zeros((len(blocks), 5), dtype=_widest(tensors))  # abs sum, sum, squares, largest, smallest
    scratch = torch.empty((2, BLOCK), dtype=found.dtype)
    for (_, block), row in zip(blocks, found, strict=True):
        wide = block if block.dtype == found.dtype else scratch[1, : block.numel()].copy_(block)
        absolute = torch.abs(wide, out=scratch[0, : block.numel()])
        torch.sum(absolute, 0, out=row[0])
        torch.sum(wide, 0, out=row[1])
        torch.dot(wide, wide, out=row[2])
        torch.aminmax(absolute, out=(row[4], row[3]))
    rare = _host_rare([block for _, block in blocks], found)
    counts = torch.tensor([block.numel() for _, block in blocks], dtype=torch.float64)
    sums = torch.cat([counts[None], found[:, :3].to(torch.float64).T, rare])
    extremes = found[:, 3:].to(torch.float64)
    whole = ElementStats(sums, extremes[:, 0], extremes[:, 1])
    return whole.by_column([index for index, _ in blocks], len(tensors))


def _host_rare(blocks: Sequence[Tensor], found: Tensor) -> Tensor:
    """Count zeros and nonfinite elements, in those blocks alone that have any: counting costs four reads."""
    rare = torch.zeros((2, len(blocks)), dtype=torch.float64)
    for index in (~(found[:, 4] > 0)).nonzero()[:, 0].tolist():
        rare[0, index] = blocks[index].numel() - torch.count_nonzero(blocks[index])
    for index in (~torch.isfinite(found[:, 0])).nonzero()[:, 0].tolist():
        rare[1, index] = (~torch.isfinite(blocks[index])).sum()
    return rare


def device_stats(tensors: Sequence[Tensor]) -> ElementStats:
    """Return the statistics of each tensor by kernels alone, for a device that the host must not wait for."""
    rows = [_device_row(tensor.reshape(-1)) for tensor in tensors]
    found = torch.stack(rows)
    counts = to_device(torch.tensor([t.numel() for t in tensors], dtype=torch.float64), found.device)
    return ElementStats(torch.cat([counts[None], found[:, :5].T]), found[:, 5], found[:, 6])


def _device_row(flat: Tensor) -> Tensor:
    if not flat.numel():
        row = torch.zeros(7, dtype=torch.float64, device=flat.device)
        row[5].fill_(float("-inf"))
        row[6].fill_(float("inf"))
        return row
    wide = flat if flat.dtype in (torch.float32, torch.float64) else flat.to(torch.float32)
    absolute = wide.abs()
    norm = torch.linalg.vector_norm(wide).to(torch.float64)
    smallest, largest = torch.aminmax(absolute)
    parts = [
        absolute.sum(),
        wide.sum(),
        norm * norm,
        flat.numel() - torch.count_nonzero(flat),
        (~torch.isfinite(wide)).sum(),
        largest,
        smallest,
    ]
    return torch.stack([part.to(torch.float64) for part in parts])


def exponent_counts(tensors: Sequence[Tensor], columns: Sequence[int], size: int) -> Tensor:
    """Count elements by sign and exponent of their float32 value, int64 [size, 512].

    Bin 256 s + e counts values of sign s with the exponent bits e: 2^(e - 127) <= |x| < 2^(e - 126); e = 0
    is zero (and what is smaller than 2^-126), e = 255 is infinite or NaN. Tensor i adds to row `columns[i]`.
    Integer counts over edges that never change: the same on every rank, device and split.
    """
    device = tensors[0].device if tensors else torch.device("cpu")
    counts = torch.zeros((size, BINS), dtype=torch.int64, device=device)
    count = _host_count if device.type == "cpu" else _device_count
    for tensor, column in zip(tensors, columns, strict=True):
        for block in torch.split(tensor.reshape(-1), BLOCK if device.type == "cpu" else 1 << 24):
            if block.numel():
                counts[column] += count(block.to(torch.float32))
    return counts


def _host_count(block: Tensor) -> Tensor:
    bits = torch.bitwise_right_shift(block.contiguous().view(torch.int32), 23).bitwise_and_(BINS - 1)
    return torch.bincount(bits, minlength=BINS)


def _device_count(block: Tensor) -> Tensor:
    """Count by histc, which, unlike bincount, does not ask the device how many bins there are."""
    bits = torch.bitwise_right_shift(block.contiguous().view(torch.int32), 23).bitwise_and_(BINS - 1)
    # float32 counts are exact up to 2^24 elements, the size of a block
    return torch.histc(bits.to(torch.float32), bins=BINS, min=-0.5, max=BINS - 0.5).to(torch.int64)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on a device, without waiting for it."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
