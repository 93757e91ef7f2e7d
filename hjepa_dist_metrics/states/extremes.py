"""Extremes with the rank that holds them, and values that every rank must share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric
from hjepa_dist_metrics.states.row_state import RowState

_NAN = float("nan")


class _Extreme(RowState):
    """Share what Min and Max have in common: fields are the value and the rank that holds it."""

    fields = 2
    _worst: float

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.full((2, size), _NAN, dtype=torch.float64, device="cpu")
        data[0] = cls._worst
        return data

    @property
    def value(self) -> Any:
        """Return the extreme; the infinite bound of nothing, NaN where any value is NaN."""
        return self._field(0)

    @property
    def rank(self) -> int | None:
        """Return the lowest rank that holds the extreme; None before a sync or where nobody has a value."""
        rank = self.data[1, 0].item()
        return None if rank != rank else int(rank)

    @classmethod
    def merge_rows(cls, rows: Tensor) -> Tensor:
        """Take the extreme over ranks and the first rank that holds it."""
        values, holders = rows[:, 0], rows[:, 1]
        index = values.argmax(dim=0) if cls._worst < 0 else values.argmin(dim=0)
        best = values.gather(0, index[None])[0]
        holder = holders.gather(0, index[None])[0]
        holder = torch.where(holder.isnan(), index.to(torch.float64), holder)
        holder = torch.where(best == cls._worst, torch.full_like(holder, _NAN), holder)
        return torch.stack([best, holder])

    def merge(self, other: Any) -> Any:
        """Take the better value; a place in a pair of local states is not a rank."""
        merged = super().merge(other)
        both = torch.stack([self.data[0], other.data[0].to(self.data.device, non_blocking=True)])
        ranks = torch.stack([self.data[1], other.data[1].to(self.data.device, non_blocking=True)])
        index = both.argmax(dim=0) if self._worst < 0 else both.argmin(dim=0)
        merged.data[1] = ranks.gather(0, index[None])[0]
        return merged


class Min(_Extreme):
    """Keep the smallest value and, after a sync, the rank that holds it."""

    _worst = float("inf")

    def update(self, values: Numeric) -> None:
        """Lower the minimum to the values'; no values change nothing."""
        batch = self._batch(values)
        if batch.shape[0]:
            self.data = torch.stack([torch.minimum(self.data[0], batch.amin(dim=0)), self.data[1]])


class Max(_Extreme):
    """Keep the largest value and, after a sync, the rank that holds it."""

    _worst = float("-inf")

    def update(self, values: Numeric) -> None:
        """Raise the maximum to the values'; no values change nothing."""
        batch = self._batch(values)
        if batch.shape[0]:
            self.data = torch.stack([torch.maximum(self.data[0], batch.amax(dim=0)), self.data[1]])


class Replicated(RowState):
    """Keep the latest value of something that every rank has alike: a learning rate, a reduced gradient norm.

    It is never summed. At a sync, ranks that hold a value must hold the same one (relative 1e-5), or every
    rank raises a `DesyncError` that names them. `.value` is NaN before the first update.
    """

    fields = 2
    replicated = True
    tolerance = 1e-5

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.zeros((2, size), dtype=torch.float64, device="cpu")
        data[0] = _NAN
        return data

    @property
    def value(self) -> Any:
        """Return the latest value, NaN where there is none."""
        return self._field(0)

    def update(self, values: Numeric) -> None:
        """Replace the value by the last of `values`; no values change nothing."""
        batch = self._batch(values)
        if batch.shape[0]:
            self.data = torch.stack([batch[-1], torch.ones_like(batch[-1])])

    @classmethod
    def merge_rows(cls, rows: Tensor) -> Tensor:
        """Take the first rank's value among those that hold one."""
        first = (rows[:, 1] > 0).to(torch.int8).argmax(dim=0)
        index = first[None, None].expand(1, cls.fields, -1)
        return rows.gather(0, index)[0]

    def merge(self, other: Any) -> Any:
        """Take the other's value, the later one, where it holds one."""
        theirs = other.data.to(self.data.device, non_blocking=True)
        return self.holding(torch.where(theirs[1] > 0, theirs, self.data))

    @classmethod
    def without_overtaken(cls, rows: Tensor, taken: Tensor) -> Tensor:
        """Drop the values of ranks that took fewer steps than others that hold one."""
        held = rows[:, 1] > 0
        steps = torch.where(held, taken[:, None], -1)
        overtaken = (held & (steps < steps.amax(dim=0)))[:, None]
        return torch.where(overtaken, torch.zeros_like(rows), rows)

    @classmethod
    def conflicts(cls, rows: Tensor) -> Tensor | None:
        """Return which ranks hold a value unlike the first holder's."""
        reference = cls.merge_rows(rows)[0]
        values, held = rows[:, 0], rows[:, 1] > 0
        same = torch.isclose(values, reference, rtol=cls.tolerance, atol=0.0, equal_nan=True)
        return held & ~same
