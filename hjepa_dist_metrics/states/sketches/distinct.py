"""Counting different things exactly while they are few, and by a sample of them where they are many."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.rows import row_weights

_LAST_KEY = torch.iinfo(torch.int64).max


class Distinct(State):
    """Count how often each of many things was seen: `.total`, `.distinct`, `.repeated`, `.collision`.

    Items are compared by 64-bit hashes, non-negative int64. The `capacity` smallest hashes are kept with
    their counts: all of them while there are no more, else a uniform sample of the different things, the same
    for every split (bottom-k sketch, Bar-Yossef et al. 2002). Hashes are buffered before they are
    counted: sorting them costs as much for many as for one.
    """

    _waiting: tuple[tuple[Tensor, Tensor], ...] = ()

    def __init__(self, capacity: int) -> None:
        if capacity < 2:
            raise ConfigError(f"counting different things needs a capacity of 2 or more, got {capacity}")
        self.capacity = capacity
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        return {
            "keys": torch.full((self.capacity,), _LAST_KEY, dtype=torch.int64, device="cpu"),
            "counts": torch.zeros(self.capacity, dtype=torch.int64, device="cpu"),
            "seen": torch.zeros(1, dtype=torch.int64, device="cpu"),
        }

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._keys, self._counts, self._seen = (tensors[name] for name in ("keys", "counts", "seen"))
        self._waiting = ()

    @property
    def signature(self) -> str:
        """Describe kind and capacity."""
        return f"Distinct[{self.capacity}]"

    @property
    def total(self) -> int:
        """Return how many things were seen, repeats included."""
        return int(self._count()._seen.item())

    @property
    def is_exact(self) -> bool:
        """Return whether every different thing is kept: whether all that was seen is among them."""
        return bool(self._count()._counts.sum() == self._seen[0])

    @property
    def distinct(self) -> float:
        """Return the number of different things: exact within the capacity k, else (k - 1) / h_k.

        h_k is the k-th smallest hash as a fraction of the largest; the standard error is 1 / sqrt(k).
        """
        if self.is_exact:
            return float((self._counts > 0).sum().item())
        return min((self.capacity - 1) * (_LAST_KEY / max(int(self._keys[-1]), 1)), float(self.total))

    @property
    def repeated(self) -> float:
        """Return the share of things that had been seen before: 1 - distinct / total, 0 of nothing."""
        return 1.0 - self.distinct / self.total if self.total else 0.0

    @property
    def collision(self) -> float:
        """Return the probability that two of the items seen are equal: sum c (c - 1) / (n (n - 1)).

        Unlike the share of repeats it does not grow with the number of things seen. 0 below two.
        """
        n = self.total
        if n < 2:
            return 0.0
        counts = self._counts.to(torch.float64)
        kept = float((counts * (counts - 1)).sum().item())
        scale = 1.0 if self.is_exact else self.distinct / self.capacity
        return min(scale * kept / (n * (n - 1)), 1.0)

    def empty(self) -> Distinct:
        """Return a count of nothing."""
        return self.adopt(self._blank())

    def pack(self) -> dict[str, Tensor]:
        """Return `keys`, `counts` and `seen`."""
        return self._count()._held()

    def _held(self) -> dict[str, Tensor]:
        return {"keys": self._keys, "counts": self._counts, "seen": self._seen}

    def update(self, hashes: Tensor, valid: Tensor | None = None) -> None:
        """Count hashes [...]; `valid` [...] leaves some out."""
        flat = as_tensor(hashes, self._keys.device).reshape(-1).to(torch.int64, copy=True)
        counted = torch.ones_like(flat)
        if valid is not None:
            counted = row_weights(valid, hashes.shape, flat.device).to(torch.int64)
            flat = torch.where(counted > 0, flat, torch.full_like(flat, _LAST_KEY))
        if self._waiting and self._waiting[0][0].device != flat.device:
            self._count()
        self._waiting = (*self._waiting, (flat, counted))
        if sum(len(keys) for keys, _ in self._waiting) >= self.capacity:
            self._count()

    def _count(self) -> Self:
        """Count the buffered hashes."""
        if self._waiting:
            keys, counts = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._load({name: follow(tensor, keys) for name, tensor in self._held().items()})
            self._take(keys, counts)
            self._seen = self._seen + counts.sum()
        return self

    def _take(self, keys: Tensor, counts: Tensor) -> None:
        """Add counts by key and keep the smallest keys, with tensors of fixed shape only."""
        keys, order = torch.sort(torch.cat([self._keys, keys]), stable=True)
        counts = torch.cat([self._counts, counts])[order]
        new = torch.ones_like(keys)
        new[1:] = (keys[1:] != keys[:-1]).to(torch.int64)
        place = torch.cumsum(new, dim=0) - 1
        added = torch.zeros_like(counts).index_add(0, place, counts)
        merged = torch.full_like(keys, _LAST_KEY).scatter(0, place, keys)
        self._keys, self._counts = merged[: self.capacity], added[: self.capacity]

    def compact(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the places that no key has taken."""
        taken = int((tensors["keys"] != _LAST_KEY).sum())
        return {**tensors, "keys": tensors["keys"][:taken], "counts": tensors["counts"][:taken]}

    def expand(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the places that no key has taken."""
        blank, taken = self._blank(), len(tensors["keys"])
        more = {name: torch.cat([tensors[name], blank[name][taken:]]) for name in ("keys", "counts")}
        return {**tensors, **more}

    def merge(self, other: Distinct) -> Distinct:
        """Add the counts of both."""
        require_same_signature(self, other)
        mine = self.pack()
        theirs = {name: follow(tensor, self._keys) for name, tensor in other.pack().items()}
        seen = mine["seen"] + theirs["seen"]
        if not mine["keys"].is_cpu:
            merged = self.adopt({**mine, "seen": seen})
            merged._take(theirs["keys"], theirs["counts"])
            return merged
        names = ("keys", "counts")
        keys, counts = (np.concatenate([mine[name].numpy(), theirs[name].numpy()]) for name in names)
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        unique = keys[first][: self.capacity], np.add.reduceat(counts, first)[: self.capacity]
        packed = dict(zip(names, map(torch.from_numpy, unique), strict=True))
        full = len(mine["keys"]) == len(theirs["keys"]) == self.capacity
        return self.adopt({**(self.expand(packed) if full else packed), "seen": seen})
