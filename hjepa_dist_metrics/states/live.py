"""Numbers of many states side by side on the host: a sync takes them in one copy, however many there are.

Hundreds of small tensors, each with its object and its storage, cost a sync more than its collective.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class LiveBlock:
    """Hold the rows [fields, n] of n states of one class; each adds to its own column.

    `whole` turns false for good when one of them goes elsewhere. A column is read and written in one step:
    the sync's thread may read what the training's writes.
    """

    __slots__ = ("rows", "whole")

    def __init__(self, rows: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        self.rows = rows
        self.whole = True

    def column(self, column: int) -> Tensor:
        """Return a copy of a column, [fields, 1]."""
        return torch.from_numpy(self.rows[:, column : column + 1].copy())

    def add(self, column: int, numbers: tuple[float, ...]) -> None:
        """Add to a column; Python's floats, unlike NumPy's, add infinities without a warning."""
        held = self.rows[:, column].tolist()
        self.rows[:, column] = [a + b for a, b in zip(held, numbers, strict=True)]
