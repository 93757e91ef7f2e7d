"""A state whose width is that of the first rows it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import State, as_tensor, require_same_signature

_WIDTH = "width"


class Lazy(State):
    """Keep a state of class `of`, made when rows [..., D] first come: `.inner`, None before.

    `arguments` are the constructor's, among which `WIDTH` stands for D, also inside of a list. Ranks
    without rows need no D.
    """

    fixed = False

    WIDTH = "<width>"

    def __init__(self, of: type[State] | str, arguments: Mapping[str, Any]) -> None:
        self.of = State.kinds[of] if isinstance(of, str) else of
        self.arguments = dict(arguments)
        self.inner: State | None = None
        self._width = 0

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Return the name of the class and its arguments."""
        return {"of": self.of.kind(), "arguments": self.arguments}

    def _make(self, width: int) -> State:
        return self.of(**{name: _filled(value, width) for name, value in self.arguments.items()})

    @property
    def signature(self) -> str:
        """Describe what is made, by its signature at width 1."""
        return f"Lazy[{self._make(1).signature}]"

    def empty(self) -> Lazy:
        """Return a state that has seen nothing and has no width yet."""
        return Lazy(self.of, self.arguments)

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
            self.inner, self._width = self._make(rows.shape[-1]), rows.shape[-1]
        elif rows.shape[-1] != self._width:
            raise ConfigError(f"expected rows of width {self._width}, got shape {list(rows.shape)}")
        self.inner.update(rows, *args, **kwargs)

    def merge(self, other: Lazy) -> Lazy:
        """Merge the inner states; one that has seen nothing changes nothing.

        ConfigError where the two have seen rows of different widths.
        """
        require_same_signature(self, other)
        if self.inner is None or other.inner is None:
            return self._holding(other if self.inner is None else self)
        merged = self._holding(self)
        merged.inner = self.inner.merge(other.inner)
        return merged

    def signed(self, rank: int, steps: int) -> Lazy:
        """Sign the inner state."""
        state = self._holding(self)
        state.inner = None if self.inner is None else self.inner.signed(rank, steps)
        return state

    def pack(self) -> dict[str, Tensor]:
        """Return the inner tensors, and the width as the shape [0, D] of an empty one."""
        if self.inner is None:
            return {_WIDTH: torch.zeros((0, 0), device="cpu")}
        return {_WIDTH: torch.zeros((0, self._width), device="cpu"), **self.inner.pack()}

    def compact(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compact the inner tensors."""
        return self._through("compact", tensors)

    def expand(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Expand the inner tensors."""
        return self._through("expand", tensors)

    def _through(self, verb: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        width, inner = tensors[_WIDTH], {name: t for name, t in tensors.items() if name != _WIDTH}
        if not width.shape[1]:
            return tensors
        made = self._make(width.shape[1])
        return {_WIDTH: width, **(made.compact(inner) if verb == "compact" else made.expand(inner))}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        inner = {name: tensor for name, tensor in tensors.items() if name != _WIDTH}
        self._width = tensors[_WIDTH].shape[1]
        self.inner = self._make(self._width).adopt(inner) if self._width else None

    def _holding(self, source: Lazy) -> Lazy:
        """Return a state with a shallow copy of `source`'s inner one: updates rebind, and stay apart."""
        state = Lazy(self.of, self.arguments)
        state.inner = None if source.inner is None else source.inner._bare()
        state._width = source._width
        return state


def _filled(value: Any, width: int) -> Any:
    if isinstance(value, (list, tuple)):
        return [_filled(item, width) for item in value]
    return width if value == Lazy.WIDTH else value


def of_width(width: int | None, of: type[State], **arguments: Any) -> State:
    """Return the state with `width` for `Lazy.WIDTH`, or one that is made at the first rows."""
    return Lazy(of, arguments) if width is None else Lazy(of, arguments)._make(width)


def resolved(state: State) -> Any:
    """Return a state of known width: the state itself, or the one inside; None where that is not made yet."""
    return state.inner if isinstance(state, Lazy) else state
