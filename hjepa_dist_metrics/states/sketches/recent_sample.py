"""A sample of labelled rows in which newer rows push out older ones, the same for every split."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, follow, moved, require_same_signature
from hjepa_dist_metrics.states.rows import row_weights
from hjepa_dist_metrics.states.sketches.hashing import mix, row_keys

_LAST_KEY = torch.iinfo(torch.int64).max
_BITS = 53  # of a key, that a float64 holds

# Steps after which a row is half as likely: practically never, and of one row's versions the newest stays.
UNIFORM = 1e9

Tensors = dict[str, Tensor]


class RecentSample(State):
    """Keep at most `capacity` different rows of width D and labels: `.rows` [k, D], `.labels`, `.keys`.

    A row of step s stays with a probability in proportion to 2^(s / half_life): a uniform sample of each
    step's rows, in which a row of `half_life` steps ago is half as likely as a new one. Each row has a key, a
    hash of its id, or of its bits and label where there are none, and the priority ln(-ln u) - s ln 2 /
    half_life, u the key as a fraction; the lowest priorities stay (weighted reservoir, Efraimidis and
    Spirakis 2006). Of rows with one key the newest stays. Neither rank, batch nor order matter. The
    default half-life makes the sample uniform over steps.

    Offered rows are buffered until there are `capacity` of them or the state is read.
    """

    _waiting: tuple[Tensors, ...] = ()

    def __init__(self, capacity: int, dim: int, half_life: float = UNIFORM, seed: int = 0) -> None:
        if capacity < 1 or dim < 1 or not half_life > 0:
            raise ConfigError(
                "expected a capacity and a width of 1 or more and a positive half-life, got "
                f"capacity={capacity}, dim={dim}, half_life={half_life}"
            )
        self.capacity, self.dim, self.half_life, self.seed = capacity, dim, float(half_life), seed
        self._load(self._blank())

    def _blank(self) -> Tensors:
        size = self.capacity
        return {
            "priority": torch.full((size,), math.inf, dtype=torch.float64, device="cpu"),
            "keys": torch.full((size,), _LAST_KEY, dtype=torch.int64, device="cpu"),
            "labels": torch.zeros(size, dtype=torch.int64, device="cpu"),
            "kept": torch.zeros((size, self.dim), dtype=torch.float32, device="cpu"),
        }

    def _load(self, tensors: Tensors) -> None:
        self._held = {**tensors, "kept": tensors["kept"].to(torch.float32)}
        self._waiting = ()

    @property
    def signature(self) -> str:
        """Describe capacity, width, half-life and seed."""
        return f"RecentSample[{self.capacity},{self.dim},half_life={self.half_life:g},seed={self.seed}]"

    @property
    def rows(self) -> Tensor:
        """Return the rows in the order of their priorities, float32 [k, D]."""
        return self._taken("kept")

    @property
    def labels(self) -> Tensor:
        """Return the rows' labels, int64 [k]."""
        return self._taken("labels")

    @property
    def keys(self) -> Tensor:
        """Return the rows' keys, int64 [k], which depend on the row or its id alone."""
        return self._taken("keys")

    def _taken(self, name: str) -> Tensor:
        held = self.pack()
        return held[name][: int((held["keys"] != _LAST_KEY).sum())]

    def empty(self) -> RecentSample:
        """Return a sample of nothing."""
        return self.adopt(self._blank())

    def pack(self) -> Tensors:
        """Return `priority`, `keys`, `labels` and `kept`."""
        if self._waiting:
            device = self._waiting[0]["kept"]
            parts = [self._held, *self._waiting]
            together = {
                name: torch.cat([follow(part[name], device) for part in parts]) for name in self._held
            }
            self._load(self._lowest(together))
        return self._held

    def update(
        self,
        rows: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        ids: Tensor | None = None,
        step: int = 0,
    ) -> None:
        """Offer rows [N, D] of a step with labels [N]; `valid` [N] leaves some out, `ids` [N] name them."""
        flat = as_tensor(rows, self._held["keys"].device).to(torch.float32)
        if flat.ndim != 2 or flat.shape[1] != self.dim:
            raise ConfigError(f"expected rows [N, {self.dim}], got shape {list(flat.shape)}")
        marks = moved(as_tensor(labels, flat.device), flat.device, torch.int64)
        if marks.shape != flat.shape[:1]:
            raise ConfigError(f"expected a label for each of {len(flat)} rows, got shape {list(marks.shape)}")
        keys = self._row_keys(flat, marks, ids)
        if valid is not None:
            keys = torch.where(row_weights(valid, flat.shape[:1], flat.device), keys, _LAST_KEY)
        fraction = ((keys >> (63 - _BITS)).to(torch.float64) + 0.5) * 2.0**-_BITS
        age = step * math.log(2.0) / self.half_life
        priority = torch.where(keys == _LAST_KEY, math.inf, torch.log(-torch.log(fraction)) - age)
        batch = {"priority": priority, "keys": keys, "labels": marks, "kept": flat.clone()}
        self._waiting = (*self._waiting, batch)
        if sum(len(part["keys"]) for part in self._waiting) >= self.capacity:
            self.pack()

    def _row_keys(self, rows: Tensor, labels: Tensor, ids: Tensor | None) -> Tensor:
        if ids is None:
            return mix(row_keys(rows, self.seed) ^ labels, self.seed)
        numbers = moved(as_tensor(ids, rows.device), rows.device, torch.int64)
        if numbers.shape != labels.shape:
            raise ConfigError(f"expected an id for each of {len(rows)} rows, got {list(numbers.shape)}")
        return mix(numbers, self.seed)

    def _lowest(self, rows: Tensors) -> Tensors:
        """Return the different rows with the lowest priorities, in their order."""
        order = torch.sort(rows["priority"], stable=True).indices
        order = order[torch.sort(rows["keys"][order], stable=True).indices]
        keys, priority = rows["keys"][order], rows["priority"][order]
        again = torch.zeros_like(keys, dtype=torch.bool)
        again[1:] = keys[1:] == keys[:-1]
        keys = torch.where(again, _LAST_KEY, keys)
        priority = torch.where(again, math.inf, priority)
        best = torch.sort(priority, stable=True).indices[: self.capacity]
        order = order[best]
        chosen = {"priority": priority[best], "keys": keys[best]}
        blank = (chosen["keys"] == _LAST_KEY)[:, None]
        labels = torch.where(blank[:, 0], 0, rows["labels"][order])
        return {**chosen, "labels": labels, "kept": torch.where(blank, 0.0, rows["kept"][order])}

    def compact(self, tensors: Tensors) -> Tensors:
        """Leave out the places that no row has taken."""
        taken = int((tensors["keys"] != _LAST_KEY).sum())
        return {name: tensor[:taken] for name, tensor in tensors.items()}

    def expand(self, tensors: Tensors) -> Tensors:
        """Add the places that no row has taken."""
        blank, taken = self._blank(), len(tensors["keys"])
        return {name: torch.cat([tensor, blank[name][taken:]]) for name, tensor in tensors.items()}

    def merge(self, other: RecentSample) -> RecentSample:
        """Keep the lowest priorities of both."""
        require_same_signature(self, other)
        mine, theirs = self.pack(), other.pack()
        device = mine["keys"]
        both = {name: torch.cat([mine[name], follow(theirs[name], device)]) for name in mine}
        return self.adopt(self._lowest(both))
