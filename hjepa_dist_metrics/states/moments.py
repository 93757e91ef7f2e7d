"""Count, mean and variance, merged after Chan et al. (1983) in float64.

Batches are shifted by one of their own rows before anything is squared, so that constant features have a
variance of exactly zero and a large mean costs no digits. Kept is the root of the sum of squares, which no
size of the values takes out of the range of float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric, as_tensor
from hjepa_dist_metrics.states.row_state import Block, RowState, namespace
from hjepa_dist_metrics.states.rows import blocks, row_weights
from hjepa_dist_metrics.states.scales import unit_scale


class Moments(RowState):
    """Keep `.count`, `.mean`, `.variance` (unbiased), `.std` and `.nonfinite` of values.

    With a shape, `update` takes [..., *shape] and keeps moments per element over the leading dimensions.
    NaN and infinite values make the mean and variance NaN and are counted in `nonfinite`.
    """

    fields = 4

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        return torch.zeros((4, size), dtype=torch.float64, device="cpu")

    @property
    def count(self) -> Any:
        """Return the number of values: an int, or an array where the state has a shape."""
        count = self._field(0)
        return int(count) if not self.shape else count.astype("int64")

    @property
    def mean(self) -> Any:
        """Return the mean; NaN of nothing."""
        count, mean = self._field(0), self._field(1)
        return _where_counted(count, mean, 1)

    @property
    def variance(self) -> Any:
        """Return M2 / (n - 1); 0 of one value, NaN of nothing."""
        std = self.std
        return std * std

    @property
    def std(self) -> Any:
        """Return the square root of the unbiased variance."""
        count, root = self._field(0), self._field(2)
        if not self.shape:
            return root / max(count - 1, 1) ** 0.5 if count >= 1 else float("nan")
        return _where_counted(count, root / (count - 1).clip(min=1) ** 0.5, 1)

    @property
    def nonfinite(self) -> Any:
        """Return how many values were NaN or infinite."""
        count = self._field(3)
        return int(count) if not self.shape else count.astype("int64")

    def update(self, values: Numeric, valid: Tensor | None = None) -> None:
        """Fold values in; `valid`, of the leading dimensions, leaves values out."""
        tensor = as_tensor(values, self.data.device)
        batch = self._batch(tensor)
        weight = self._weight(tensor, valid, batch)
        for rows, mask in blocks(batch, weight):
            self.data = self.merge_rows(self.data, _block_moments(rows, mask))

    def _weight(self, tensor: Tensor, valid: Tensor | None, batch: Tensor) -> Tensor | None:
        if valid is None:
            return None
        lead = tensor.shape[: tensor.ndim - len(self.shape)]
        return row_weights(valid, lead, batch.device)

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Add counts, and centred squares about the common mean (Chan), as roots."""
        xp = namespace(lower)
        merged = lower + upper
        count, others = lower[0], upper[0]
        share = others / merged[0].clip(min=1)
        shift = xp.where((count > 0) & (others > 0), upper[1] - lower[1], 0.0)
        merged[1] = xp.where(count > 0, lower[1], upper[1]) + shift * share
        merged[2] = xp.hypot(xp.hypot(lower[2], upper[2]), abs(shift) * (count * share) ** 0.5)
        return merged


def _centre(rows: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return count, mean [D], rows about the mean (0 where invalid), and a count of nonfinite rows."""
    if valid is None:
        valid = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
    first = valid.to(torch.int8).argmax()
    pivot = rows.index_select(0, first[None])[0]
    shifted = torch.where(valid[:, None], rows - pivot, torch.zeros((), dtype=rows.dtype, device=rows.device))
    count = valid.sum().to(torch.float64)
    nonfinite = valid[:, None] & ~torch.isfinite(rows)
    offset = shifted.sum(dim=0) / count.clamp(min=1)
    # One infinity gives inf or NaN depending on its place; NaN in either case is the same for every split.
    offset = offset.masked_fill(nonfinite.any(dim=0), float("nan"))
    centred = torch.where(valid[:, None], shifted - offset, torch.zeros_like(shifted))
    mean = torch.where(count > 0, pivot + offset, torch.zeros_like(pivot))
    return count, mean, centred, nonfinite


def _block_moments(rows: Tensor, valid: Tensor | None) -> Tensor:
    count, mean, centred, nonfinite = _centre(rows, valid)
    bad = nonfinite.sum(dim=0).to(torch.float64)
    scale = unit_scale(centred, dim=0)
    root = scale[0] * torch.linalg.vector_norm(centred / scale, dim=0)
    return torch.stack([count.expand_as(mean), mean, root, bad])


def _where_counted(count: Any, value: Any, least: int) -> Any:
    if isinstance(value, float):
        return value if count >= least else float("nan")
    value = value.copy()
    value[count < least] = float("nan")
    return value
