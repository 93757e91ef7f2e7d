"""Quantities that belong to a rank: its times, its memory. Over time they add up, over ranks they compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric
from hjepa_dist_metrics.states.row_state import RowState

_NAN = float("nan")


class PerRank(RowState):
    """Keep a quantity's total and number of updates on each rank; after a sync, who is highest and lowest.

    `.mean` is over all updates of all ranks. `.highest`, `.lowest` are the extreme ranks' own means and
    `.highest_rank`, `.lowest_rank` those ranks; `.longest` is the largest total of any rank. Ranks without
    an update do not count.
    """

    # Total and count; of a merged state the highest mean and its rank, the lowest and its rank, the longest
    # total; what a checkpoint brought: total, count and longest.
    fields = 10

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.zeros((cls.fields, size), dtype=torch.float64, device="cpu")
        data[2:7] = _NAN
        return data

    def unpack(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return a state that goes on from a merged one: its ranks' times are not this rank's."""
        saved = tensors["data"]
        past = torch.stack([saved[0], saved[1], torch.nan_to_num(saved[6])])
        return self.adopt(
            {"data": torch.cat([torch.zeros_like(saved[:2]), saved[2:6], saved[6:7] * _NAN, past])}
        )

    @property
    def total(self) -> Any:
        """Return the sum over all updates of all ranks."""
        return self._field(0) + self._field(7)

    @property
    def count(self) -> Any:
        """Return the number of updates."""
        return self._field(1) + self._field(8)

    @property
    def mean(self) -> Any:
        """Return the mean over all updates; NaN of none."""
        data = self.data
        means = (data[0] + data[7]) / (data[1] + data[8])
        return means.item() if not self.shape else means.cpu().numpy().reshape(self.shape)

    @property
    def highest(self) -> Any:
        """Return the largest of the ranks' means."""
        return self._field(2)

    @property
    def highest_rank(self) -> int | None:
        """Return the rank with the largest mean; None before a sync or where no rank has a value."""
        return self._rank(3)

    @property
    def lowest(self) -> Any:
        """Return the smallest of the ranks' means."""
        return self._field(4)

    @property
    def lowest_rank(self) -> int | None:
        """Return the rank with the smallest mean."""
        return self._rank(5)

    @property
    def longest(self) -> Any:
        """Return the largest of the ranks' totals."""
        return self._field(6)

    def _rank(self, field: int) -> int | None:
        rank = self.data[field, 0].item()
        return None if rank != rank else int(rank)

    def update(self, values: Numeric) -> None:
        """Add one quantity, or several along the leading dimension."""
        batch = self._batch(values)
        self.data = torch.cat(
            [
                self.data[:1] + batch.sum(dim=0),
                self.data[1:2] + batch.shape[0],
                self.data[2:],
            ]
        )

    def merge(self, other: Any) -> Any:
        """Add the other's totals: two stretches of time of the same rank."""
        theirs = other.data.to(self.data.device, non_blocking=True)
        parts = [self.data[:2] + theirs[:2], self.data[2:7], self.data[7:] + theirs[7:]]
        return self.adopt({"data": torch.cat(parts)})

    @classmethod
    def merge_rows(cls, rows: Tensor) -> Tensor:
        """Compare the ranks' means and totals; what a checkpoint brought goes before, for the longest too."""
        total, count = rows[:, 0], rows[:, 1]
        held = count > 0
        mean = total / count
        high = torch.where(held, mean, torch.full_like(mean, float("-inf"))).argmax(dim=0)
        low = torch.where(held, mean, torch.full_like(mean, float("inf"))).argmin(dim=0)
        longest = torch.where(held, total, torch.full_like(total, float("-inf"))).argmax(dim=0)
        nobody = ~held.any(dim=0)
        parts = [
            mean.gather(0, high[None])[0],
            high.to(torch.float64).masked_fill(nobody, _NAN),
            mean.gather(0, low[None])[0],
            low.to(torch.float64).masked_fill(nobody, _NAN),
        ]
        past = rows[:, 7:].sum(dim=0)
        holder = (rows[:, 8] > 0).to(torch.int8).argmax(dim=0)
        saved = rows[:, 2:6].gather(0, holder[None, None].expand(1, 4, -1))[0]
        compared = torch.where(nobody, saved, torch.stack(parts))
        most = torch.where(nobody, 0.0, total.gather(0, longest[None])[0]) + past[2]
        most = most.masked_fill(nobody & (past[1] == 0), _NAN)
        sums = torch.stack([total.sum(dim=0) + past[0], count.sum(dim=0) + past[1]])
        return torch.cat([sums, compared, most[None], torch.zeros_like(past)])
