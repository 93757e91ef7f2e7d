"""Extremes with the rank that holds them, and values that every rank must share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric
from hjepa_dist_metrics.states.row_state import NAN, Block, RowState, Signed, namespace


class _Extreme(RowState):
    """Share what Min and Max have in common: fields are the value and the rank that holds it."""

    fields = 2
    _worst: float

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.full((2, size), NAN, dtype=torch.float64, device="cpu")
        data[0] = cls._worst
        return data

    @property
    def value(self) -> Any:
        """Return the extreme; the infinite bound of nothing, NaN where any value is NaN."""
        return self._field(0)

    @property
    def rank(self) -> int | None:
        """Return the lowest rank that holds the extreme; None before a sync or where no rank has a value."""
        rank = self.data[1, 0].item()
        return None if rank != rank else int(rank)

    @classmethod
    def sign_rows(cls, block: Block, rank: int, steps: int) -> None:
        """Name `rank` as the holder of a value that has none."""
        xp = namespace(block)
        own = xp.isnan(block[1]) & (block[0] != cls._worst)
        block[1] = xp.where(own, xp.zeros_like(block[1]) + rank, block[1])

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Take the better value, NaN before any other, and the first rank that holds it."""
        xp = namespace(lower)
        beats = upper[0] > lower[0] if cls._worst < 0 else upper[0] < lower[0]
        taken = (beats | xp.isnan(upper[0])) & ~xp.isnan(lower[0])
        return xp.where(taken, upper, lower)


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


class Replicated(Signed):
    """Keep the latest value of a quantity that is the same on every rank: a learning rate, a reduced norm.

    It is never summed. At a sync, ranks that hold a value must hold the same one (relative 1e-5), or every
    rank raises a `DesyncError` that names two of them; a rank that took fewer steps than another one is
    left out. `.value` is NaN before the first update.
    """

    # Value, steps of its rank plus 1 (0: none is held), and the three of `Signed`.
    fields = 5
    replicated = True

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = super()._blank(size)
        data[0] = NAN
        return data

    @property
    def value(self) -> Any:
        """Return the latest value, NaN where there is none."""
        return self._field(0)

    @property
    def known(self) -> bool:
        """Return whether there is a value."""
        return bool((self.data[1] > 0).any().item())

    def update(self, values: Numeric) -> None:
        """Replace the value by the last of `values`; no values change nothing."""
        batch = self._batch(values)
        if batch.shape[0]:
            signs = torch.full((3, self.size), NAN, dtype=torch.float64, device=batch.device)
            self.data = torch.cat([batch[-1:], torch.ones_like(batch[-1:]), signs])

    @classmethod
    def sign_rows(cls, block: Block, rank: int, steps: int) -> None:
        """Write the rank, and its steps where it holds a value."""
        super().sign_rows(block, rank, steps)
        block[1] = (block[1] > 0) * (1.0 + steps)

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Take the later value: of one rank the second, of two ranks that of more steps."""
        xp = namespace(lower)
        same_rank = cls.later(lower, upper)
        taken = xp.where(same_rank, upper[1] > 0, upper[1] > lower[1])
        equal = ~same_rank & (upper[1] == lower[1]) & (lower[1] > 0)
        merged = xp.where(taken, upper, lower)
        value, rank = cls.contradicted(lower, upper, cls.unlike(lower, upper))
        merged[-2] = xp.where(equal, value, merged[-2])
        merged[-1] = xp.where(equal, rank, merged[-1])
        return merged
