"""Weighted sums by name; ranks may have different names, and add them at any time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, moved

_HOST = torch.device("cpu")


class NamedSums(State):
    """Keep sum(weight * value) and sum(weight) for each name: `.means`, by sorted name.

    Merging takes the union of the names: a rank without a name adds nothing to it. Names whose weights sum
    to 0 have no mean.
    """

    fixed = False

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}

    @property
    def signature(self) -> str:
        """Describe the kind; the names are data."""
        return "NamedSums"

    @property
    def totals(self) -> dict[str, tuple[float, float]]:
        """Return (sum of weight * value, sum of weights) by sorted name."""
        return {name: tuple(self._rows[name].tolist()) for name in sorted(self._rows)}

    @property
    def means(self) -> dict[str, float]:
        """Return the weighted means by sorted name."""
        return {name: total / weight for name, (total, weight) in self.totals.items() if weight}

    def empty(self) -> NamedSums:
        """Return a state without names."""
        return NamedSums()

    def update(self, name: str, value: Numeric, weight: Numeric = 1.0) -> None:
        """Add one number, weighted, without synchronising with its device."""
        known = self._rows.get(name)
        number = as_tensor(value, _HOST if known is None else known.device)
        if number.numel() != 1:
            raise ConfigError(f"{name!r} must be one number, got shape {list(number.shape)}")
        number = number.reshape(()).to(torch.float64)
        factor = as_tensor(weight, number.device).reshape(()).to(number.device, torch.float64)
        # a weight of nothing adds nothing, also where its value, a mean over no samples, is NaN
        row = torch.stack([torch.where(factor == 0, torch.zeros_like(number), number * factor), factor])
        self._rows[name] = row if known is None else moved(known, row.device) + row

    def merge(self, other: NamedSums) -> NamedSums:
        """Add both, name by name."""
        merged = NamedSums()
        merged._rows = dict(self._rows)
        for name, row in other._rows.items():
            mine = merged._rows.get(name)
            merged._rows[name] = row if mine is None else mine + moved(row, mine.device)
        return merged

    def pack(self) -> dict[str, Tensor]:
        """Return `names`, a JSON list as bytes, and `rows` float64 [n, 2]."""
        names = sorted(self._rows)
        text = np.frombuffer(json.dumps(names).encode(), dtype=np.uint8).copy()
        device = next((row.device for row in self._rows.values() if row.device.type != "cpu"), _HOST)
        rows = [moved(self._rows[name], device) for name in names]
        blank = torch.zeros((0, 2), dtype=torch.float64, device="cpu")
        return {"names": torch.from_numpy(text), "rows": torch.stack(rows) if rows else blank}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        names: list[Any] = json.loads(tensors["names"].cpu().numpy().tobytes())
        self._rows = dict(zip(names, tensors["rows"].to(torch.float64), strict=True))
