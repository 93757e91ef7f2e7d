"""The rows that score lowest, with their labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.rows import row_weights


class BottomK(State):
    """Keep the `capacity` lowest scores and, with each, `fields` whole numbers that identify it.

    `.scores` float64 [k], rising; `.labels` int64 [k, fields]. Equal scores are ordered by their labels, so
    that the rows kept are the same for every split. Scores that are NaN or plus infinity are never kept.
    Labels are exact up to 2^53. For the highest scores, negate them.
    """

    def __init__(self, capacity: int, fields: int) -> None:
        if capacity < 1 or fields < 1:
            raise ConfigError(f"expected a capacity and fields of 1 or more, got {capacity} and {fields}")
        self.capacity, self.fields = capacity, fields
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        data = torch.zeros((1 + self.fields, self.capacity), dtype=torch.float64, device="cpu")
        data[0] = float("inf")
        return {"data": data}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._data = tensors["data"].to(torch.float64)

    @property
    def signature(self) -> str:
        """Describe kind, capacity and fields."""
        return f"BottomK[{self.capacity},{self.fields}]"

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Return the lowest scores, rising."""
        scores: npt.NDArray[np.float64] = self._data[0].cpu().numpy()
        return scores[scores < np.inf]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Return the labels of the lowest scores, [k, fields]."""
        return self._data[1:, : len(self.scores)].T.round().to(torch.int64).cpu().numpy()

    def empty(self) -> BottomK:
        """Return a state that has seen nothing."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return scores and labels as `data`, [1 + fields, capacity]."""
        return {"data": self._data}

    def update(self, scores: Tensor, labels: Tensor, valid: Tensor | None = None) -> None:
        """Offer scores [...] with their labels [..., fields]; `valid` [...] leaves some out."""
        flat = as_tensor(scores, self._data.device).to(torch.float64)
        named = as_tensor(labels, flat.device).to(torch.float64)
        if tuple(named.shape) != (*flat.shape, self.fields):
            want, got = [*flat.shape, self.fields], list(named.shape)
            raise ConfigError(f"expected labels of shape {want}, got {got}")
        kept = ~flat.isnan().reshape(-1)
        if valid is not None:
            kept = kept & row_weights(valid, flat.shape, flat.device)
        offered = flat.reshape(-1).masked_fill(~kept, float("inf"))
        columns = torch.cat([offered[None], named.reshape(-1, self.fields).T])
        self._data = self._keep(torch.cat([follow(self._data, flat), columns], dim=1))

    def _keep(self, columns: Tensor) -> Tensor:
        """Return the columns with the lowest scores, in the order of score and labels."""
        for row in reversed(range(columns.shape[0])):
            columns = columns[:, torch.sort(columns[row], stable=True).indices]
        return columns[:, : self.capacity]

    def merge(self, other: Any) -> BottomK:
        """Keep the lowest of both."""
        require_same_signature(self, other)
        columns = torch.cat([self._data, follow(other._data, self._data)], dim=1)
        return self.adopt({"data": self._keep(columns)})
