"""How each kind of torchmetrics state merges, in terms of our states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states import Max, Min, RowState, State, Sum

Held = Tensor | list[Tensor]
Reduction = Callable[[Any], Any] | None

# Larger sums are added up by a collective of their own instead of being gathered from every rank.
_LARGEST_ROWS = 256


class LargeSum(State):
    """Add up a large tensor: what travels does not grow with the ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._load(self._blank())

    def _blank(self) -> dict[str, Tensor]:
        return {"total": torch.zeros(self.size, dtype=torch.float64, device="cpu")}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.total = tensors["total"].to(torch.float64)

    @property
    def signature(self) -> str:
        """Describe kind and size."""
        return f"LargeSum[{self.size}]"

    def empty(self) -> LargeSum:
        """Return a sum of nothing."""
        return self.adopt(self._blank())

    def update(self, values: Tensor) -> None:
        """Add a tensor of `size` elements."""
        self.total = self.total.to(values.device) + values.reshape(-1)

    def merge(self, other: LargeSum) -> LargeSum:
        """Add the other's."""
        return self.adopt({"total": self.total + other.total.to(self.total.device)})

    def pack(self) -> dict[str, Tensor]:
        """Return the sums under the name `total`."""
        return {"total": self.total}

    def summed(self, rank: int, gathered: Tensor) -> Tensor:
        """Return the sums."""
        return self.total

    def assemble(self, gathered: Tensor, total: Tensor, centred: Tensor) -> LargeSum:
        """Hold the ranks' total."""
        return self.adopt({"total": total})


class Parts(State):
    """Keep tensors of any shape and dtype in order; ranks' parts follow each other in rank order."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    @property
    def signature(self) -> str:
        """Describe the kind; shapes and dtypes travel with the parts."""
        return "Parts"

    def empty(self) -> Parts:
        """Return no parts."""
        return Parts()

    def update(self, parts: Sequence[Tensor]) -> None:
        """Append parts."""
        self.parts = [*self.parts, *parts]

    def merge(self, other: Parts) -> Parts:
        """Append the other's parts."""
        merged = Parts()
        merged.parts = [*self.parts, *other.parts]
        return merged

    def pack(self) -> dict[str, Tensor]:
        """Return the number of parts and each part."""
        count = torch.tensor([len(self.parts)], dtype=torch.int64, device="cpu")
        return {"count": count, **{f"part{i}": part for i, part in enumerate(self.parts)}}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.parts = [tensors[f"part{i}"] for i in range(int(tensors["count"].item()))]


class TorchState(ABC):
    """Take a torchmetrics state into one of ours, and give it back after the merge."""

    @abstractmethod
    def empty(self) -> State:
        """Return our state that has seen nothing."""

    @abstractmethod
    def take(self, held: Held, updates: int) -> State:
        """Return our state of what a metric holds after so many updates."""

    @abstractmethod
    def value(self, state: Any, default: Held, updates: int) -> Held:
        """Return what a metric holds that has seen everything, in `updates` updates."""


@dataclass(frozen=True)
class Summed(TorchState):
    """Sum, or mean weighted by updates, of a tensor of `size` elements."""

    size: int
    mean: bool

    def empty(self) -> State:
        """Return zeros."""
        return Sum((self.size,)) if self.size <= _LARGEST_ROWS else LargeSum(self.size)

    def take(self, held: Held, updates: int) -> State:
        """Return the state's numbers in float64, times the updates where it is a mean."""
        assert isinstance(held, Tensor)
        if held.numel() != self.size:
            raise ConfigError(f"a torchmetrics state changed from {self.size} elements to {held.numel()}")
        flat = held.detach().reshape(-1).to(torch.float64) * (updates if self.mean else bool(updates))
        empty = self.empty()
        return empty.holding(flat[None]) if isinstance(empty, RowState) else empty.adopt({"total": flat})

    def value(self, state: Any, default: Held, updates: int) -> Held:
        """Return the total, or the mean over updates; the default where there were none."""
        assert isinstance(default, Tensor)
        total = state.data[0] if isinstance(state, RowState) else state.total
        merged = total / max(updates, 1) if self.mean else total
        return _like(merged, default) if updates else default.clone()


@dataclass(frozen=True)
class Extreme(TorchState):
    """Smallest or largest of a tensor of `size` elements."""

    size: int
    largest: bool

    def empty(self) -> State:
        """Return the bound that any value beats."""
        return Max((self.size,)) if self.largest else Min((self.size,))

    def take(self, held: Held, updates: int) -> State:
        """Return the values; a metric that has not been updated holds a default, which is no value."""
        assert isinstance(held, Tensor)
        empty = self.empty()
        if updates:
            empty.update(held.detach().reshape(1, -1))
        return empty

    def value(self, state: Any, default: Held, updates: int) -> Held:
        """Return the extremes; the default where there were no updates."""
        assert isinstance(default, Tensor)
        return _like(state.data[0], default) if updates else default.clone()


@dataclass(frozen=True)
class Listed(TorchState):
    """Concatenated states, and those with no reduction or one of their own, which see every rank's part."""

    reduction: Reduction
    concatenated: bool

    def empty(self) -> State:
        """Return no parts."""
        return Parts()

    def take(self, held: Held, updates: int) -> State:
        """Return the list's tensors, joined where they may be, or the tensor as one part."""
        state = Parts()
        if not updates:
            return state
        parts = [held] if isinstance(held, Tensor) else held
        if not all(isinstance(part, Tensor) for part in parts):
            raise ConfigError("a torchmetrics state that holds something else than tensors cannot be synced")
        parts = [part.detach() for part in parts]
        state.update([_join(parts)] if parts and self.concatenated else parts)
        return state

    def value(self, state: Any, default: Held, updates: int) -> Held:
        """Return the list of all parts; for a tensor, what torchmetrics makes of the stacked ranks."""
        parts: list[Tensor] = state.parts
        if isinstance(default, list):
            return parts if self.reduction is None or not parts else self.reduction(parts)
        if not parts:
            return default.clone()
        if self.concatenated:
            return _join(parts)
        if self.reduction is not None:
            reduced: Tensor = self.reduction(torch.stack(parts))
            return reduced
        return parts[0] if len(parts) == 1 else torch.stack(parts)


def reduction_of(name: str, default: Any, reduction: Reduction) -> TorchState:
    """Return how the state `name` merges; ConfigError where it cannot."""
    from torchmetrics.utilities.data import (
        dim_zero_cat,
        dim_zero_max,
        dim_zero_mean,
        dim_zero_min,
        dim_zero_sum,
    )

    if not isinstance(default, (Tensor, list)) or (isinstance(default, Tensor) and default.is_complex()):
        raise ConfigError(f"cannot sync {name}: expected a real tensor or a list, got {default!r}")
    if isinstance(default, Tensor) and reduction in (dim_zero_sum, dim_zero_mean):
        return Summed(default.numel(), mean=reduction is dim_zero_mean)
    if isinstance(default, Tensor) and reduction in (dim_zero_min, dim_zero_max):
        return Extreme(default.numel(), largest=reduction is dim_zero_max)
    if reduction is dim_zero_cat:
        return Listed(None, concatenated=True)
    return Listed(reduction, concatenated=False)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(1) if part.ndim == 0 else part for part in parts])


def _like(flat: Tensor, default: Tensor) -> Tensor:
    values = flat if default.dtype.is_floating_point else flat.round()
    return values.to(default.dtype).reshape(default.shape)
