"""Statistics over all elements of many tensors, in few passes and without waiting for the device.

`read_elements` looks at every element once: on the host block by block, in the cache (`elements_host`); on
other devices by kernels (`elements_device`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.moments import pooled_spreads
from hjepa_dist_metrics.states.base import to_device

SUMS = ("count", "abs_sum", "sum", "zeros", "nonfinite")
BINS = 512  # sign and exponent of a float32


@dataclass
class ElementStats:
    """Hold statistics of tensors, one column each.

    `sums` float64 [5, n] in the order of SUMS; `spread`, the norm of the deviations from the mean, and
    `largest` and `smallest` absolute values, float64 [n], the extremes minus and plus infinity of an empty
    tensor. A NaN makes sums, spread and extremes NaN.
    """

    sums: Tensor
    spread: Tensor
    largest: Tensor
    smallest: Tensor

    @classmethod
    def joined(cls, parts: Sequence[ElementStats]) -> ElementStats:
        """Put the statistics of several sets of tensors side by side."""
        return cls(
            torch.cat([part.sums for part in parts], dim=1),
            torch.cat([part.spread for part in parts]),
            torch.cat([part.largest for part in parts]),
            torch.cat([part.smallest for part in parts]),
        )

    def by_column(self, columns: Sequence[int], size: int) -> ElementStats:
        """Return the statistics of `size` groups of tensors; tensor i belongs to group `columns[i]`."""
        index = to_device(torch.tensor(columns, dtype=torch.int64, device="cpu"), self.sums.device)
        sums = self.sums.new_zeros((len(SUMS), size)).index_add_(1, index, self.sums)
        largest = self.largest.new_full((size,), float("-inf"))
        smallest = self.smallest.new_full((size,), float("inf"))
        return ElementStats(
            sums,
            pooled_spreads(self.sums[0], self.sums[SUMS.index("sum")], self.spread, index, size),
            largest.scatter_reduce_(0, index, self.largest, "amax"),
            smallest.scatter_reduce_(0, index, self.smallest, "amin"),
        )


@dataclass
class Elements:
    """Hold what one look at tensors gave: statistics of each, and counts by column where they were wanted.

    `counts` int64 [columns, 512] are by sign and exponent of the float32 value: bin 256 s + e counts values
    of sign s with the exponent bits e: 2^(e - 127) <= |x| < 2^(e - 126); e = 0 is zero (and what is smaller
    than 2^-126), e = 255 is infinite or NaN. Integers over edges that never change: the same on every rank,
    device and split.
    """

    each: ElementStats
    counts: Tensor | None


def read_elements(
    tensors: Sequence[Tensor],
    columns: Sequence[int],
    size: int,
    device: torch.device,
    *,
    counting: bool = False,
) -> Elements:
    """Return the statistics of each tensor; all must lie on `device`.

    With `counting` also the counts of `size` columns, to which tensor i adds in column `columns[i]`.
    """
    from hjepa_dist_metrics.metrics.kernels import elements_device, elements_host

    if not tensors:
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        counts = torch.zeros((size, BINS), dtype=torch.int64, device=device) if counting else None
        return Elements(ElementStats(empty.new_zeros((len(SUMS), 0)), empty, empty, empty), counts)
    if device.type != "cpu":
        each = elements_device.stats(tensors)
        return Elements(each, elements_device.counts(tensors, columns, size) if counting else None)
    return elements_host.read(tensors, columns, size, counting)


def single(values: Tensor) -> Tensor:
    """Return values in float32, those that it does not reach as its largest: they are finite."""
    narrow = values.to(torch.float32)
    if values.dtype != torch.float64:
        return narrow
    largest = torch.finfo(torch.float32).max
    return torch.where(torch.isfinite(values), narrow.clamp(-largest, largest), narrow)
