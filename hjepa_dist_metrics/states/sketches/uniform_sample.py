"""Uniform samples that no split of the data changes, and bounded concatenation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, follow, moved, require_same_signature
from hjepa_dist_metrics.states.rows import row_weights
from hjepa_dist_metrics.states.sketches.hashing import mix, row_keys

_LAST_KEY = torch.iinfo(torch.int64).max


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
            "keys": torch.full((self.capacity,), _LAST_KEY, dtype=torch.int64, device="cpu"),
            "kept": torch.zeros((self.capacity, self.dim), dtype=torch.float32, device="cpu"),
            "seen_count": torch.zeros(1, dtype=torch.int64, device="cpu"),
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
        count = torch.tensor(len(flat), device="cpu") if mask is None else mask.sum()
        if mask is not None:
            keys = torch.where(mask, keys, torch.full_like(keys, _LAST_KEY))
        self._load({name: follow(tensor, flat) for name, tensor in self.pack().items()})
        best = torch.sort(keys, stable=True).indices[: self.capacity]
        self._select(torch.cat([self.keys, keys[best]]), torch.cat([self._kept, flat[best]]))
        self._seen = self._seen + moved(count, flat.device)

    def _row_keys(self, rows: Tensor, ids: Tensor | None) -> Tensor:
        if ids is None:
            return row_keys(rows, self.seed)
        numbers = as_tensor(ids, rows.device).reshape(-1).to(torch.int64)
        if len(numbers) != len(rows):
            raise ConfigError(f"expected an id for each of {len(rows)} rows, got {len(numbers)}")
        return mix(numbers, self.seed)

    def _select(self, keys: Tensor, rows: Tensor) -> None:
        order = torch.sort(keys, stable=True).indices[: self.capacity]
        self.keys, self._kept = keys[order], rows[order]

    def compact(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the places that no row has taken."""
        taken = int((tensors["keys"] != _LAST_KEY).sum())
        return {**tensors, "keys": tensors["keys"][:taken], "kept": tensors["kept"][:taken]}

    def expand(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the places that no row has taken."""
        blank, taken = self._blank(), len(tensors["keys"])
        more = {name: torch.cat([tensors[name], blank[name][taken:]]) for name in ("keys", "kept")}
        return {**tensors, **more}

    def merge(self, other: Sample) -> Sample:
        """Keep the smallest keys of both."""
        require_same_signature(self, other)
        theirs = {name: follow(tensor, self.keys) for name, tensor in other.pack().items()}
        merged = self.adopt({**self.pack(), "seen_count": self._seen + theirs["seen_count"]})
        merged._select(torch.cat([self.keys, theirs["keys"]]), torch.cat([self._kept, theirs["kept"]]))
        return merged


class Concat(State):
    """Keep every row, up to `capacity` rows a rank: `.rows_kept` [n, D], in rank order after a sync.

    It costs what it holds. Where a sample will do, `Sample` costs a constant.
    """

    def __init__(self, capacity: int, dim: int, dtype: torch.dtype | str = torch.float32) -> None:
        if capacity < 1 or dim < 1:
            raise ConfigError(f"a concat needs a capacity and a width, got capacity={capacity}, dim={dim}")
        self.capacity, self.dim = capacity, dim
        self.dtype: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self._parts: list[Tensor] = []

    @property
    def signature(self) -> str:
        """Describe capacity, width and dtype."""
        return f"Concat[{self.capacity},{self.dim},{self.dtype}]"

    @property
    def rows_kept(self) -> Tensor:
        """Return all rows, [n, D]."""
        return (
            torch.cat(self._parts)
            if self._parts
            else torch.zeros((0, self.dim), dtype=self.dtype, device="cpu")
        )

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Return capacity, width and the dtype's name."""
        return {"capacity": self.capacity, "dim": self.dim, "dtype": str(self.dtype).removeprefix("torch.")}

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
