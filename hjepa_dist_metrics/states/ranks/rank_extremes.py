"""Quantities that belong to a rank: its times, its memory. Over time they add up, over ranks they compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric
from hjepa_dist_metrics.states.row_state import NAN, Block, RowState, namespace

_TOTAL, _COUNT, _HIGH, _LOW, _LONGEST, _PAST = 0, 1, 2, 4, 6, 7


class RankExtremes(RowState):
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
        data[_HIGH:_PAST] = NAN
        return data

    def unpack(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return a state that goes on from a merged one: its ranks' times are not this rank's."""
        saved, data = tensors["data"], self._blank(self.size).to(tensors["data"].device)
        data[_HIGH:_LONGEST] = saved[_HIGH:_LONGEST]
        data[_PAST:] = saved[_PAST:]
        data[_PAST] += saved[_TOTAL]
        data[_PAST + 1] += saved[_COUNT]
        data[_PAST + 2] += torch.nan_to_num(saved[_LONGEST])
        return self.holding(data)

    @property
    def total(self) -> Any:
        """Return the sum over all updates of all ranks."""
        return self._field(_TOTAL) + self._field(_PAST)

    @property
    def count(self) -> Any:
        """Return the number of updates."""
        return self._field(_COUNT) + self._field(_PAST + 1)

    @property
    def mean(self) -> Any:
        """Return the mean over all updates; NaN without any."""
        data = self.data
        means = (data[_TOTAL] + data[_PAST]) / (data[_COUNT] + data[_PAST + 1])
        return means.item() if not self.shape else means.cpu().numpy().reshape(self.shape)

    @property
    def highest(self) -> Any:
        """Return the largest of the ranks' means."""
        return self._field(_HIGH)

    @property
    def highest_rank(self) -> int | None:
        """Return the rank with the largest mean; None before a sync or where no rank has a value."""
        return self._rank(_HIGH + 1)

    @property
    def lowest(self) -> Any:
        """Return the smallest of the ranks' means."""
        return self._field(_LOW)

    @property
    def lowest_rank(self) -> int | None:
        """Return the rank with the smallest mean."""
        return self._rank(_LOW + 1)

    @property
    def longest(self) -> Any:
        """Return the largest of the ranks' totals, with what a checkpoint brought; NaN without any."""
        data = self.data
        longest = torch.nan_to_num(data[_LONGEST]) + data[_PAST + 2]
        longest = longest.masked_fill(data[_LONGEST].isnan() & (data[_PAST + 1] == 0), NAN)
        return longest.item() if not self.shape else longest.cpu().numpy().reshape(self.shape)

    def _rank(self, field: int) -> int | None:
        rank = self.data[field, 0].item()
        return None if rank != rank else int(rank)

    def update(self, values: Numeric) -> None:
        """Add one quantity, or several along the leading dimension."""
        batch = self._batch(values)
        added = [self.data[:1] + batch.sum(dim=0), self.data[1:2] + batch.shape[0], self.data[2:]]
        self.data = torch.cat(added)

    @classmethod
    def sign_rows(cls, block: Block, rank: int, steps: int) -> None:
        """Write this rank as the holder, where it has a value, before any comparison."""
        xp = namespace(block)
        held = block[_COUNT] > 0
        mean = block[_TOTAL] / block[_COUNT].clip(min=1)
        own = xp.zeros_like(mean) + rank
        for field, value in ((_HIGH, mean), (_HIGH + 1, own), (_LOW, mean), (_LOW + 1, own)):
            block[field] = xp.where(held, value, block[field])
        block[_LONGEST] = xp.where(held, block[_TOTAL], NAN)

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Add totals, and compare: ranks without a value of their own count only where none has one."""
        xp = namespace(lower)
        merged = lower + upper
        held, other_held = lower[_COUNT] > 0, upper[_COUNT] > 0
        for field, beats in ((_HIGH, upper[_HIGH] > lower[_HIGH]), (_LOW, upper[_LOW] < lower[_LOW])):
            known = other_held | (xp.isnan(lower[field]) & ~held)
            taken = known & (beats | ~held | xp.isnan(lower[field]))
            merged[field : field + 2] = xp.where(taken, upper[field : field + 2], lower[field : field + 2])
        merged[_LONGEST] = xp.fmax(lower[_LONGEST], upper[_LONGEST])
        return merged
