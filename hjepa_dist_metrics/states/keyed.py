"""Sums and counts by key: what belongs together may lie on several ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states import exact_sums
from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, follow, moved, require_same_signature
from hjepa_dist_metrics.states.exact_sums import PLACES, WIDTH
from hjepa_dist_metrics.states.rows import row_weights

# The key of values that belong to no others: each stays a group of its own.
ALONE = torch.iinfo(torch.int64).min


class GroupSums(State):
    """Keep the sum and the count of values for each key: `.keys`, `.sums`, `.counts`, [groups] each.

    Sums of values of any size are exact to 1e-15 of the group's largest value, and have the same bits in
    any order and on any ranks: see `exact_sums.py`.

    Keys are int64 and may be met on any rank, any number of times. Groups come in the order of their keys;
    values without a key are groups of one, in front, in the order of the values. It costs 56 bytes a group,
    and until they are put together as much for each value of this rank.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._grouped = True

    @property
    def signature(self) -> str:
        """Describe kind and resolution."""
        return f"GroupSums[{WIDTH} bits x {PLACES}]"

    @property
    def keys(self) -> Tensor:
        """Return each group's key, int64 [groups]; `ALONE` for a value without one."""
        return self._groups()[0]

    @property
    def sums(self) -> Tensor:
        """Return each group's sum, float64 [groups]."""
        return exact_sums.total(self._groups()[1])

    @property
    def counts(self) -> Tensor:
        """Return how many values each group has, int64 [groups]."""
        return self._groups()[2]

    def empty(self) -> GroupSums:
        """Return sums of nothing."""
        return GroupSums()

    def pack(self) -> dict[str, Tensor]:
        """Return `keys`, `sums`, `counts`. Synchronises with a device: their number is data."""
        return dict(zip(("keys", "sums", "counts"), self._groups(), strict=True))

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self._parts = [(tensors["keys"], tensors["sums"], tensors["counts"])]
        self._grouped = True

    def update(self, values: Numeric, keys: Tensor | None = None, valid: Tensor | None = None) -> None:
        """Add values [n] under keys [n]; `valid` [n] leaves some out. Without keys each is its own group."""
        batch = as_tensor(values, self._parts[0][1].device if self._parts else torch.device("cpu"))
        batch = batch.to(torch.float64).reshape(-1)
        counted = torch.ones_like(batch, dtype=torch.int64)
        if valid is not None:
            counted = row_weights(valid, batch.shape, batch.device).to(torch.int64)
        parts = exact_sums.split(torch.where(counted > 0, batch, 0.0))
        self._parts = [*self._parts, (_keys_of(keys, batch), parts, counted)]
        self._grouped = False

    def merge(self, other: GroupSums) -> GroupSums:
        """Put equal keys together."""
        require_same_signature(self, other)
        merged = self.empty()
        merged._parts = [*self._parts, *other._parts]
        merged._grouped = False
        return merged

    def _groups(self) -> tuple[Tensor, Tensor, Tensor]:
        if not self._parts:
            none = torch.zeros(0, dtype=torch.int64, device="cpu")
            return none, exact_sums.split(none.to(torch.float64)), none
        if not self._grouped:
            device = self._parts[0][0]
            columns = zip(*self._parts, strict=True)
            keys, sums, counts = (torch.cat([follow(part, device) for part in column]) for column in columns)
            self._parts, self._grouped = [_group(keys, sums, counts)], True
        return self._parts[0]


def _keys_of(keys: Tensor | None, values: Tensor) -> Tensor:
    if keys is None:
        return torch.full_like(values, ALONE, dtype=torch.int64)
    found = as_tensor(keys, values.device).reshape(-1)
    if found.dtype.is_floating_point or found.dtype == torch.bool:
        raise ConfigError(f"keys must be integers, got {found.dtype}")
    if len(found) != len(values):
        raise ConfigError(f"expected a key for each of {len(values)} values, got {len(found)}")
    return moved(found, values.device, torch.int64)


def _group(keys: Tensor, parts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort by key, and by value where there is none, and add up what has the same key."""
    counted = counts > 0
    keys, parts, counts = keys[counted], parts[counted], counts[counted]
    by_value = torch.sort(exact_sums.total(parts), stable=True).indices
    order = by_value[torch.sort(keys[by_value], stable=True).indices]
    keys, parts, counts = keys[order], parts[order], counts[order]
    begins = torch.ones_like(keys, dtype=torch.bool)
    begins[1:] = (keys[1:] != keys[:-1]) | (keys[1:] == ALONE)
    group = torch.cumsum(begins, 0) - 1
    number = int(begins.sum())
    return (
        keys[begins],
        exact_sums.add_up(parts, group, number),
        torch.zeros(number, dtype=counts.dtype, device=counts.device).index_add(0, group, counts),
    )
