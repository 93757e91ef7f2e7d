"""Histograms with fixed edges, uniform samples that no split of the data changes, bounded concatenation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.hashing import mix, row_keys
from hjepa_dist_metrics.states.moments import row_weights

_LAST_KEY = torch.iinfo(torch.int64).max


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
            "counts": torch.zeros(len(self.edges) - 1, dtype=torch.int64),
            "nonfinite_count": torch.zeros(1, dtype=torch.int64),
            "extremes": torch.tensor([float("inf"), float("-inf")], dtype=torch.float64),
        }

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._counts = tensors["counts"].to(torch.int64)
        self._nonfinite = tensors["nonfinite_count"].to(torch.int64)
        self._extremes = tensors["extremes"].to(torch.float64)

    @property
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

    def rows(self) -> Tensor:
        """Return the extremes, [2, 1]."""
        return self._extremes[:, None]

    def summed(self) -> Tensor:
        """Return the counts as float64, exact up to 2^53."""
        return torch.cat([self._counts, self._nonfinite]).to(torch.float64)

    def assemble(self, gathered: Tensor, total: Tensor, centred: Tensor) -> Histogram:
        """Take the summed counts and the widest extremes."""
        extremes = torch.cat([gathered[:, 0].amin(dim=0), gathered[:, 1].amax(dim=0)])
        counts = total.round().to(torch.int64)
        return self.adopt({"counts": counts[:-1], "nonfinite_count": counts[-1:], "extremes": extremes})


class Sample(State):
    """Keep a uniform sample of at most `capacity` rows of width D: `.rows_kept` [k, D], `.keys`, `.seen`.

    Each row has a pseudo-random key, and the rows with the smallest keys stay. The key comes from `ids`, the
    row's global number, or from the row's own bits where there are none: never from rank, batch or order, so
    the sample is the same for every split. Without ids, equal rows share a key and stay or go together.
    """

    def __init__(self, capacity: int, dim: int, seed: int = 0) -> None:
        if capacity < 1 or dim < 1:
            raise ConfigError(f"a sample needs a capacity and a width, got capacity={capacity}, dim={dim}")
        self.capacity, self.dim, self.seed = capacity, dim, seed
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        return {
            "keys": torch.full((self.capacity,), _LAST_KEY, dtype=torch.int64),
            "kept": torch.zeros((self.capacity, self.dim), dtype=torch.float32),
            "seen_count": torch.zeros(1, dtype=torch.int64),
        }

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.keys = tensors["keys"].to(torch.int64)
        self._kept = tensors["kept"].to(torch.float32)
        self._seen = tensors["seen_count"].to(torch.int64)

    @property
    def signature(self) -> str:
        """Describe capacity, width and seed."""
        return f"Sample[{self.capacity},{self.dim},seed={self.seed}]"

    @property
    def seen(self) -> int:
        """Return the number of rows the sample was drawn from."""
        return int(self._seen.item())

    @property
    def rows_kept(self) -> Tensor:
        """Return the sampled rows in the order of their keys, float32 [min(seen, capacity), D]."""
        return self._kept[: min(self.seen, self.capacity)]

    def empty(self) -> Sample:
        """Return a sample of nothing."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return `keys`, `kept` and `seen_count`."""
        return {"keys": self.keys, "kept": self._kept, "seen_count": self._seen}

    def update(self, rows: Tensor, valid: Tensor | None = None, ids: Tensor | None = None) -> None:
        """Offer rows [..., D]; `valid` [...] leaves rows out, `ids` [...] are their global numbers."""
        rows = as_tensor(rows, self.keys.device)
        if rows.ndim < 1 or rows.shape[-1] != self.dim:
            raise ConfigError(f"expected rows of width {self.dim}, got shape {list(rows.shape)}")
        mask = None if valid is None else row_weights(valid, rows.shape[:-1], rows.device)
        flat = rows.reshape(-1, self.dim).to(torch.float32)
        keys = self._row_keys(flat, ids)
        count = torch.tensor(len(flat)) if mask is None else mask.sum()
        if mask is not None:
            keys = torch.where(mask, keys, torch.full_like(keys, _LAST_KEY))
        self._load({name: follow(tensor, flat) for name, tensor in self.pack().items()})
        best = torch.sort(keys, stable=True).indices[: self.capacity]
        self._select(torch.cat([self.keys, keys[best]]), torch.cat([self._kept, flat[best]]))
        self._seen = self._seen + count.to(flat.device, non_blocking=True)

    def _row_keys(self, rows: Tensor, ids: Tensor | None) -> Tensor:
        if ids is None:
            return row_keys(rows, self.seed)
        return mix(as_tensor(ids, rows.device).reshape(-1).to(torch.int64), self.seed)

    def _select(self, keys: Tensor, rows: Tensor) -> None:
        order = torch.sort(keys, stable=True).indices[: self.capacity]
        self.keys, self._kept = keys[order], rows[order]

    def merge(self, other: Sample) -> Sample:
        """Keep the smallest keys of both."""
        require_same_signature(self, other)
        theirs = {name: follow(tensor, self.keys) for name, tensor in other.pack().items()}
        merged = self.adopt({**self.pack(), "seen_count": self._seen + theirs["seen_count"]})
        merged._select(torch.cat([self.keys, theirs["keys"]]), torch.cat([self._kept, theirs["kept"]]))
        return merged

    def rows(self) -> Tensor:
        """Return the keys' bits as float64, [1, capacity]: 8 bytes a row instead of the row."""
        return self.keys.view(torch.float64)[None]

    def summed(self) -> Tensor:
        """Return the number of rows seen."""
        return self._seen.to(torch.float64)

    def centred(self, rank: int, gathered: Tensor, total: Tensor) -> Tensor:
        """Return this rank's rows among the winners, each in its place, zeros elsewhere, [capacity * D]."""
        _, winners = self._winners(gathered)
        placed = torch.zeros((self.capacity, self.dim), dtype=torch.float64)
        mine = winners // self.capacity == rank
        placed[mine] = self._kept[winners[mine] % self.capacity].to(torch.float64)
        return placed.reshape(-1)

    def _winners(self, gathered: Tensor) -> tuple[Tensor, Tensor]:
        keys = gathered.contiguous().view(torch.int64).reshape(-1)
        order = torch.sort(keys, stable=True).indices[: self.capacity]
        return keys[order], order

    def assemble(self, gathered: Tensor, total: Tensor, centred: Tensor) -> Sample:
        """Put the winning rows together."""
        keys, _ = self._winners(gathered)
        kept = centred.reshape(self.capacity, self.dim).to(torch.float32)
        return self.adopt({"keys": keys, "kept": kept, "seen_count": total.round().to(torch.int64)})


class Concat(State):
    """Keep every row, up to `capacity` rows a rank: `.rows_kept` [n, D], in rank order after a sync.

    It costs what it holds. Where a sample will do, `Sample` costs a constant.
    """

    def __init__(self, capacity: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        if capacity < 1 or dim < 1:
            raise ConfigError(f"a concat needs a capacity and a width, got capacity={capacity}, dim={dim}")
        self.capacity, self.dim, self.dtype = capacity, dim, dtype
        self._parts: list[Tensor] = []

    @property
    def signature(self) -> str:
        """Describe capacity, width and dtype."""
        return f"Concat[{self.capacity},{self.dim},{self.dtype}]"

    @property
    def rows_kept(self) -> Tensor:
        """Return all rows, [n, D]."""
        return torch.cat(self._parts) if self._parts else torch.zeros((0, self.dim), dtype=self.dtype)

    def empty(self) -> Concat:
        """Return a concat of nothing."""
        return Concat(self.capacity, self.dim, self.dtype)

    def pack(self) -> dict[str, Tensor]:
        """Return the rows under the name `rows`."""
        return {"rows": self.rows_kept}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._parts = [tensors["rows"].to(self.dtype)] if len(tensors["rows"]) else []

    def update(self, rows: Any) -> None:
        """Append rows [..., D]; ConfigError where they exceed the capacity."""
        batch = as_tensor(rows, torch.device("cpu"))
        if batch.ndim < 1 or batch.shape[-1] != self.dim:
            raise ConfigError(f"expected rows of width {self.dim}, got shape {list(batch.shape)}")
        batch = batch.reshape(-1, self.dim).to(self.dtype)
        held = sum(len(part) for part in self._parts)
        if held + len(batch) > self.capacity:
            raise ConfigError(
                f"{held} rows and {len(batch)} more exceed the capacity of {self.capacity}: raise it, reset "
                "more often, or keep a Sample"
            )
        self._parts = [*self._parts, batch]

    def merge(self, other: Concat) -> Concat:
        """Append the other's rows; the capacity binds a rank's own updates, not the merged rows."""
        require_same_signature(self, other)
        merged = self.empty()
        merged._parts = [*self._parts, *other._parts]
        return merged


def _widen(mine: Tensor, other: Tensor) -> Tensor:
    return torch.stack([torch.minimum(mine[0], other[0]), torch.maximum(mine[1], other[1])])
