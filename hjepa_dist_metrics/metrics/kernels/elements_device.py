"""Element statistics by kernels alone, for a device that the host must not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.elements import BINS, ElementStats, single
from hjepa_dist_metrics.metrics.kernels.moments import about_mean
from hjepa_dist_metrics.states.base import to_device

_COUNTED = 1 << 24  # elements that a histogram in float32 counts exactly


def stats(tensors: Sequence[Tensor]) -> ElementStats:
    """Return the statistics of each tensor, one column each; all lie on one device."""
    found = torch.stack([_row(tensor.reshape(-1)) for tensor in tensors])
    counts = to_device(
        torch.tensor([t.numel() for t in tensors], dtype=torch.float64, device="cpu"), found.device
    )
    return ElementStats(torch.cat([counts[None], found[:, :4].T]), *found[:, 4:].T.unbind())


def _row(flat: Tensor) -> Tensor:
    if not flat.numel():
        row = torch.zeros(7, dtype=torch.float64, device=flat.device)
        row[5].fill_(float("-inf"))
        row[6].fill_(float("inf"))
        return row
    wide = flat if flat.dtype in (torch.float32, torch.float64) else flat.to(torch.float32)
    absolute = wide.abs()
    total, spread = about_mean(wide)
    smallest, largest = torch.aminmax(absolute)
    parts = [
        absolute.sum(dtype=torch.float64),
        total,
        flat.numel() - torch.count_nonzero(flat),
        (~torch.isfinite(wide)).sum(),
        spread,
        largest,
        smallest,
    ]
    return torch.stack([part.to(torch.float64) for part in parts])


def counts(tensors: Sequence[Tensor], columns: Sequence[int], size: int) -> Tensor:
    """Count elements by sign and exponent, int64 [size, 512]; tensor i adds to row `columns[i]`."""
    found = torch.zeros((size, BINS), dtype=torch.int64, device=tensors[0].device)
    for tensor, column in zip(tensors, columns, strict=True):
        for block in torch.split(tensor.reshape(-1), _COUNTED):
            if block.numel():
                found[column] += _count(single(block))
    return found


def _count(block: Tensor) -> Tensor:
    """Count by histc, which, unlike bincount, does not ask the device how many bins there are."""
    bits = torch.bitwise_right_shift(block.contiguous().view(torch.int32), 23).bitwise_and_(BINS - 1)
    return torch.histc(bits.to(torch.float32), bins=BINS, min=-0.5, max=BINS - 0.5).to(torch.int64)
