"""Histograms with fixed edges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.rows import row_weights


class Histogram(State):
    """Count values between fixed edges: `.counts` int64 [bins], `.nonfinite`, `.minimum`, `.maximum`.

    Bin i covers [edges[i], edges[i + 1]), the last one its upper edge too; values beyond the edges fall into
    the first or last bin. Integer counts over fixed edges are bit-identical for any split.
    """

    def __init__(self, edges: Sequence[float] | npt.NDArray[np.float64]) -> None:
        self.edges = np.asarray(edges, dtype=np.float64)
        if self.edges.ndim != 1 or len(self.edges) < 2 or not np.all(np.diff(self.edges) > 0):
            raise ConfigError("histogram edges must be at least two rising numbers")
        self._load(self._blank())

    @classmethod
    def linear(cls, low: float, high: float, bins: int) -> Histogram:
        """Return a histogram of equally wide bins."""
        return cls(np.linspace(low, high, bins + 1))

    def _blank(self) -> dict[str, Tensor]:
        return {
            "counts": torch.zeros(len(self.edges) - 1, dtype=torch.int64, device="cpu"),
            "nonfinite_count": torch.zeros(1, dtype=torch.int64, device="cpu"),
            "extremes": torch.tensor([float("inf"), float("-inf")], dtype=torch.float64, device="cpu"),
        }

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._counts = tensors["counts"].to(torch.int64)
        self._nonfinite = tensors["nonfinite_count"].to(torch.int64)
        self._extremes = tensors["extremes"].to(torch.float64)

    @cached_property
    def signature(self) -> str:
        """Describe kind and edges."""
        digest = hashlib.sha256(self.edges.tobytes()).hexdigest()[:8]
        return f"Histogram[{len(self.edges) - 1} bins {self.edges[0]:g}..{self.edges[-1]:g} #{digest}]"

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Return the counts, int64 [bins]."""
        return self._counts.cpu().numpy()

    @property
    def nonfinite(self) -> int:
        """Return how many values were NaN or infinite; they are in no bin."""
        return int(self._nonfinite.item())

    @property
    def minimum(self) -> float:
        """Return the smallest finite value; infinity of nothing."""
        return float(self._extremes[0].item())

    @property
    def maximum(self) -> float:
        """Return the largest finite value; minus infinity of nothing."""
        return float(self._extremes[1].item())

    def empty(self) -> Histogram:
        """Return a histogram of nothing over the same edges."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return `counts`, `nonfinite_count` and `extremes` (minimum, maximum)."""
        return {"counts": self._counts, "nonfinite_count": self._nonfinite, "extremes": self._extremes}

    def update(self, values: Numeric, valid: Tensor | None = None) -> None:
        """Count every value; `valid`, of the values' shape, leaves values out."""
        batch = as_tensor(values, self._counts.device)
        counted = None if valid is None else row_weights(valid, batch.shape, batch.device)
        flat = batch.reshape(-1).to(torch.float64)
        self._load({name: follow(tensor, flat) for name, tensor in self.pack().items()})
        if flat.numel() == 0:
            return
        finite = torch.isfinite(flat)
        kept = finite if counted is None else finite & counted
        bad = ~finite if counted is None else ~finite & counted
        edges = torch.from_numpy(self.edges).to(flat.device, non_blocking=True)
        index = (torch.bucketize(flat, edges, right=True) - 1).clamp(0, len(self.edges) - 2)
        self._counts = self._counts.index_add(0, index, kept.to(torch.int64))
        self._nonfinite = self._nonfinite + bad.sum()
        low = flat.masked_fill(~kept, float("inf")).amin()
        high = flat.masked_fill(~kept, float("-inf")).amax()
        self._extremes = _widen(self._extremes, torch.stack([low, high]))

    def merge(self, other: Histogram) -> Histogram:
        """Add the counts."""
        require_same_signature(self, other)
        theirs = {name: follow(tensor, self._counts) for name, tensor in other.pack().items()}
        return self.adopt(
            {
                "counts": self._counts + theirs["counts"],
                "nonfinite_count": self._nonfinite + theirs["nonfinite_count"],
                "extremes": _widen(self._extremes, theirs["extremes"]),
            }
        )


def _widen(mine: Tensor, other: Tensor) -> Tensor:
    return torch.stack([torch.minimum(mine[0], other[0]), torch.maximum(mine[1], other[1])])
