"""Size and range of each unit of a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric
from hjepa_dist_metrics.states.row_state import Block, RowState, namespace

COUNT, NORM, LOW, HIGH, ZEROS = range(5)


class UnitRanges(RowState):
    """Keep of each unit, a column, the count, the L2 norm, the smallest and largest value, and the zeros."""

    fields = 5

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.zeros((cls.fields, size), dtype=torch.float64, device="cpu")
        data[LOW], data[HIGH] = float("inf"), float("-inf")
        return data

    @property
    def count(self) -> Any:
        """Return the number of values."""
        return self._field(COUNT)

    @property
    def norm(self) -> Any:
        """Return the L2 norm of the values."""
        return self._field(NORM)

    @property
    def rms(self) -> Any:
        """Return the root mean square; NaN of nothing."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.divide(self._field(NORM), np.sqrt(self._field(COUNT)))

    @property
    def low(self) -> Any:
        """Return the smallest value; infinity of nothing, NaN where any is NaN."""
        return self._field(LOW)

    @property
    def high(self) -> Any:
        """Return the largest value; minus infinity of nothing, NaN where any is NaN."""
        return self._field(HIGH)

    @property
    def zeros(self) -> Any:
        """Return how many values are 0."""
        return self._field(ZEROS)

    def update(self, values: Numeric) -> None:
        """Fold values [..., *shape] in."""
        batch = self._batch(values)
        if batch.shape[0]:
            self.data = self.merge_rows(self.data, ranges_of(batch))

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Add counts and zeros, take the extremes, and the norm of both norms."""
        xp = namespace(lower)
        merged = lower + upper
        merged[NORM] = xp.hypot(lower[NORM], upper[NORM])
        merged[LOW] = xp.minimum(lower[LOW], upper[LOW])
        merged[HIGH] = xp.maximum(lower[HIGH], upper[HIGH])
        return merged


def ranges_of(rows: Tensor) -> Tensor:
    """Return the block of rows float64 [n, units], n > 0."""
    low, high = torch.aminmax(rows, dim=0)
    scale = torch.maximum(low.abs(), high.abs())
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
    norm = scale * torch.linalg.vector_norm(rows / scale, dim=0)
    count = torch.full_like(norm, float(rows.shape[0]))
    return torch.stack([count, norm, low, high, (rows == 0).sum(dim=0).to(torch.float64)])
