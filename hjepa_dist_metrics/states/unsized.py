"""A state whose width is that of the first rows it sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, require_same_signature

_WIDTH = "width"


class Unsized(State):
    """Keep `make(D)`, made when rows [..., D] first come: `.inner`, None before.

    Ranks that have seen nothing need not know D. The price is that the packed state is gathered as bytes,
    W times its size, where a state of known width may add up: give the width where it is known.
    """

    def __init__(self, make: Callable[[int], State]) -> None:
        self.make = make
        self.inner: State | None = None
        self._width = 0

    @property
    def signature(self) -> str:
        """Describe what is made, by its signature at width 1."""
        return f"Unsized[{self.make(1).signature}]"

    def empty(self) -> Unsized:
        """Return a state that has seen nothing and knows no width."""
        return Unsized(self.make)

    def update(self, rows: Any, *args: Any, **kwargs: Any) -> None:
        """Update the inner state; no rows change nothing.

        ConfigError where the rows are wider or narrower than the first ones.
        """
        rows = as_tensor(rows, torch.device("cpu"))
        if rows.ndim < 1 or rows.shape[-1] < 1:
            raise ConfigError(f"expected rows [..., D] of at least one number, got shape {list(rows.shape)}")
        if rows.numel() == 0:
            return
        if self.inner is None:
            self.inner, self._width = self.make(rows.shape[-1]), rows.shape[-1]
        elif rows.shape[-1] != self._width:
            raise ConfigError(f"expected rows of width {self._width}, got shape {list(rows.shape)}")
        self.inner.update(rows, *args, **kwargs)

    def merge(self, other: Unsized) -> Unsized:
        """Merge the inner states; one that has seen nothing changes nothing."""
        require_same_signature(self, other)
        if self.inner is None or other.inner is None:
            return self._holding(other if self.inner is None else self)
        merged = self._holding(self)
        merged.inner = self.inner.merge(other.inner)
        return merged

    def pack(self) -> dict[str, Tensor]:
        """Return the inner tensors, and the width as the shape [0, D] of an empty one."""
        if self.inner is None:
            return {_WIDTH: torch.zeros((0, 0), device="cpu")}
        return {_WIDTH: torch.zeros((0, self._width), device="cpu"), **self.inner.pack()}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        inner = {name: tensor for name, tensor in tensors.items() if name != _WIDTH}
        self._width = tensors[_WIDTH].shape[1]
        self.inner = self.make(self._width).adopt(inner) if self._width else None

    def _holding(self, source: Unsized) -> Unsized:
        """Return a state with a shallow copy of `source`'s inner one: updates rebind, and stay apart."""
        state = Unsized(self.make)
        state.inner = None if source.inner is None else source.inner._bare()
        state._width = source._width
        return state


def of_width(width: int | None, make: Callable[[int], State]) -> State:
    """Return `make(width)`, or what makes it at the first rows where the width is None."""
    return Unsized(make) if width is None else make(width)


def resolved(state: State) -> Any:
    """Return a state of known width: the state itself, or the one inside; None where that is not made yet."""
    return state.inner if isinstance(state, Unsized) else state
