"""Sums, and means as two sums: what merges by adding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import Numeric, as_tensor, follow
from hjepa_dist_metrics.states.row_state import NAN, Block, RowState


class _Additive(RowState):
    """Share what states have in common whose blocks merge by adding."""

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        return torch.zeros((cls.fields, size), dtype=torch.float64, device="cpu")

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Add the blocks."""
        return lower + upper


class Sum(_Additive):
    """Add up values: `.value`.

    With a shape, `update` takes [..., *shape] and adds over the leading dimensions.
    """

    fields = 1

    @property
    def value(self) -> Any:
        """Return the sum; 0 of nothing."""
        return self._field(0)

    def update(self, values: Numeric) -> None:
        """Add every value."""
        batch = self._batch(values)
        self.data = self.data + batch.sum(dim=0)


class Mean(_Additive):
    """Average a number over all that it was counted on: `.value` is `.total` over `.count`.

    `.total` is the sum of value * count. A count of nothing adds nothing, also where its value, a mean over
    no samples, is NaN.
    """

    fields = 2

    def __init__(self) -> None:
        super().__init__()

    @property
    def total(self) -> float:
        """Return the sum of value * count."""
        return float(self._field(0))

    @property
    def count(self) -> float:
        """Return the sum of the counts."""
        return float(self._field(1))

    @property
    def value(self) -> float:
        """Return the mean; NaN of nothing."""
        return self.total / self.count if self.count else NAN

    def update(self, value: Numeric, count: Numeric = 1) -> None:
        """Add a mean over `count` samples."""
        number, weight = _on_host(value), _on_host(count)
        if number is None or weight is None:
            added = self._added(value, count)
            self.data = follow(self.data, added) + added
        else:
            total = number * weight if weight > 0 else 0.0
            added = torch.tensor([[total], [weight]], dtype=torch.float64, device="cpu")
            self.data = self.data + as_tensor(added, self.data.device)

    def _added(self, value: Numeric, count: Numeric) -> Tensor:
        number = as_tensor(value, self.data.device)
        weight = as_tensor(count, number.device).to(torch.float64)
        number = as_tensor(number, weight.device).to(torch.float64)
        if number.numel() != 1 or weight.numel() != 1:
            shapes = f"{list(number.shape)} and {list(weight.shape)}"
            raise ConfigError(f"expected one number and its count, got shapes {shapes}")
        total = torch.where(weight > 0, number * weight, 0.0)
        return torch.stack([total.reshape(1), weight.reshape(1)])


def _on_host(value: Numeric) -> float | None:
    """Return a single number that lies on the host, None for anything else."""
    if isinstance(value, (float, int)):
        return value
    if isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() == 1:
        number = value.item()
        return number if isinstance(number, (float, int)) else None
    return None
