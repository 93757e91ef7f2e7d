"""A row of numbers from each rank, kept apart: a rank's memory, its times of the last steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, require_same_signature

_NAN = float("nan")


class ByRank(State):
    """Keep the latest row of `width` numbers on each rank; after a sync `.table`, float64 [W, width].

    NaN stands for what is not known; a rank that has not updated has a row of NaN.
    """

    def __init__(self, width: int) -> None:
        if width < 1:
            raise ConfigError(f"a row needs at least one number, got width={width}")
        self.width = width
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        return {"table": torch.full((1, self.width), _NAN, dtype=torch.float64, device="cpu")}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._table = tensors["table"].to(torch.float64).reshape(-1, self.width)

    @property
    def signature(self) -> str:
        """Describe kind and width."""
        return f"ByRank[{self.width}]"

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """Return a row for each rank."""
        return self._table.cpu().numpy()

    def empty(self) -> ByRank:
        """Return a row of NaN."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return the rows under the name `table`."""
        return {"table": self._table}

    def update(self, row: Numeric) -> None:
        """Replace this rank's row."""
        values = as_tensor(row, self._table.device)
        if values.numel() != self.width:
            raise ConfigError(f"expected {self.width} numbers, got {values.numel()}")
        self._load({"table": values.reshape(1, -1)})

    def merge(self, other: Any) -> ByRank:
        """Take the other's rows, which are later, where they hold anything."""
        require_same_signature(self, other)
        known = not bool(other._table.isnan().all())
        return self.adopt({"table": (other if known else self)._table})

    def rows(self) -> Tensor:
        """Return this rank's row, [1, width]; NaN for a table from an earlier sync, which has many."""
        if len(self._table) == 1:
            return self._table
        return torch.full((1, self.width), _NAN, dtype=torch.float64, device=self._table.device)

    def assemble(self, gathered: Tensor, total: Tensor, centred: Tensor) -> ByRank:
        """Put the rows under each other."""
        return self.adopt({"table": gathered.reshape(-1, self.width)})
