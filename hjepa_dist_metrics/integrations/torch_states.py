"""How each kind of torchmetrics state merges, in terms of our states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states import Max, Min, State, Sum

Held = Tensor | list[Tensor]
Reduction = Callable[[Any], Any] | None


class GrowingSum(State):
    """Add up tensors of a shape that the first one brings: `.total`, None before.

    What torchmetrics starts as a single number may become one for each output.
    """

    fixed = False

    def __init__(self) -> None:
        self.total: Tensor | None = None

    @property
    def signature(self) -> str:
        """Describe the kind; the shape is data."""
        return "GrowingSum"

    def empty(self) -> GrowingSum:
        """Return a sum of nothing."""
        return GrowingSum()

    def update(self, values: Tensor) -> None:
        """Add a tensor; ConfigError where its shape is another one than before."""
        self.total = _sum(self.total, values.detach().to(torch.float64))

    def merge(self, other: GrowingSum) -> GrowingSum:
        """Add the other's."""
        merged = GrowingSum()
        merged.total = self.total if other.total is None else _sum(self.total, other.total)
        return merged

    def pack(self) -> dict[str, Tensor]:
        """Return the sum under the name `total`; nothing before the first."""
        return {} if self.total is None else {"total": self.total}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.total = tensors.get("total")


def _sum(one: Tensor | None, other: Tensor) -> Tensor:
    if one is not None and one.shape != other.shape:
        raise ConfigError(
            f"a torchmetrics state has the shape {list(one.shape)} here and {list(other.shape)} there"
        )
    return other if one is None else one.to(other.device) + other


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

    fixed = False

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
    """Sum, or mean weighted by updates, of a tensor of `size` elements; a single one may become more."""

    size: int
    mean: bool

    def empty(self) -> State:
        """Return zeros."""
        return GrowingSum() if self.size == 1 else Sum((self.size,))

    def take(self, held: Held, updates: int) -> State:
        """Return the state's numbers in float64, times the updates where it is a mean."""
        assert isinstance(held, Tensor)
        state, factor = self.empty(), updates if self.mean else 1
        if not updates:
            return state
        if isinstance(state, Sum) and held.numel() != self.size:
            raise ConfigError(f"a torchmetrics state changed from {self.size} elements to {held.numel()}")
        wide = held.detach().to(torch.float64) * factor
        state.update(wide.reshape(1, -1) if isinstance(state, Sum) else wide)
        return state

    def value(self, state: Any, default: Held, updates: int) -> Held:
        """Return the total, or the mean over updates; the default where there were none."""
        assert isinstance(default, Tensor)
        if not updates:
            return default.clone()
        total = state.data[0].reshape(default.shape) if isinstance(state, Sum) else state.total
        return _like(total / updates if self.mean else total, default)


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
        return _like(state.data[0].reshape(default.shape), default) if updates else default.clone()


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


def _like(values: Tensor, default: Tensor) -> Tensor:
    rounded = values if default.dtype.is_floating_point else values.round()
    return rounded.to(default.dtype)
