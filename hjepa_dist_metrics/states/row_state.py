"""States that are one float64 block and merge column by column: all of a class in one vectorised step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import (
    Numeric,
    State,
    as_tensor,
    follow,
    moved,
    require_same_signature,
    same_values,
)

NAN = float("nan")
Block = Any  # float64 [fields, n], a NumPy array in a sync and a tensor elsewhere


def namespace(block: Block) -> Any:
    """Return the module whose functions take the block: numpy or torch."""
    return torch if isinstance(block, Tensor) else np


class RowState(State):
    """Hold one float64 block [fields, n] that merges column by column.

    A sync merges all states of one class in one call, however many there are. What is written of blocks here
    holds for tensors and for NumPy arrays.
    """

    fields: ClassVar[int]
    data: Tensor  # float64 [fields, n]

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self.shape = tuple(int(s) for s in shape)
        self.size = int(np.prod(self.shape)) if self.shape else 1
        if self.size < 1:
            raise ConfigError(f"a state needs at least one element, got shape {self.shape}")
        self.data = self._blank(self.size)

    @classmethod
    @abstractmethod
    def _blank(cls, size: int) -> Tensor:
        """Return the block of a state that has seen nothing."""

    @classmethod
    @abstractmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Merge two blocks column by column; `upper` is of higher ranks, or later."""

    @classmethod
    def sign_rows(cls, block: Block, rank: int, steps: int) -> None:
        """Write into a block which rank it is of, and after how many steps, where merging needs that."""

    @classmethod
    def conflicts(cls, block: Block) -> Block | None:
        """Return bool [n], true where ranks contradict each other; None where nothing can."""
        return None

    @classmethod
    def contradiction(cls, column: Block) -> str:
        """Return two ranks' values that contradict each other, from one column [fields]."""
        raise TypeError(f"{cls.__name__} has no conflicts")

    @cached_property
    def signature(self) -> str:
        """Describe kind and shape."""
        return f"{type(self).__name__}{list(self.shape)}"

    def empty(self) -> Self:
        """Return a blank block of the same shape."""
        return self.holding(self._blank(self.size))

    def merge(self, other: Self) -> Self:
        """Merge the two blocks column by column."""
        require_same_signature(self, other)
        theirs = moved(other.data, self.data.device)
        return self.holding(self.merge_rows(self.data, theirs))

    def signed(self, rank: int, steps: int) -> Self:
        """Return the state as that of `rank` after `steps` steps."""
        data = self.data.clone()
        self.sign_rows(data, rank, steps)
        return self.holding(data)

    def holding(self, data: Tensor) -> Self:
        """Return a state of this signature around a float64 block."""
        state = self._bare()
        state.data = data
        return state

    def pack(self) -> dict[str, Tensor]:
        """Return the block under the name `data`."""
        return {"data": self.data}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.data = tensors["data"].to(torch.float64)

    def _field(self, index: int) -> Any:
        """Return one field as a float, or as a host array where the state has a shape."""
        values = self.data[index]
        return values.item() if not self.shape else values.cpu().numpy().reshape(self.shape)

    def _batch(self, values: Numeric) -> Tensor:
        """Return values as float64 [rows, size] on the state's device, which follows its inputs."""
        batch = as_tensor(values, self.data.device)
        self.data = follow(self.data, batch)
        if self.shape and tuple(batch.shape[-len(self.shape) :]) != self.shape:
            expected = f"[..., {', '.join(map(str, self.shape))}]"
            raise ConfigError(f"expected values of shape {expected}, got {list(batch.shape)}")
        return batch.to(torch.float64).reshape(-1, self.size)


class Signed(RowState):
    """Share what row states have in common whose columns name the rank they come from.

    Field `-3` is that rank, NaN before a sync; fields `-2` and `-1` are the value and the rank of the first
    one that contradicts it, NaN where none does.
    """

    tolerance: ClassVar[float] = 1e-5

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.zeros((cls.fields, size), dtype=torch.float64, device="cpu")
        data[-3:] = NAN
        return data

    @property
    def is_empty(self) -> bool:
        """Return whether no rank has given a value; its rank is there all the same."""
        return same_values(self.data[:-3], self.empty().data[:-3])

    @classmethod
    def sign_rows(cls, block: Block, rank: int, steps: int) -> None:
        """Write the rank."""
        block[-3], block[-2], block[-1] = rank, NAN, NAN

    def unpack(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return a state that goes on from a merged one: it belongs to no rank yet."""
        data = tensors["data"].clone()
        data[-3:] = NAN
        return self.holding(data)

    @classmethod
    def later(cls, lower: Block, upper: Block) -> Block:
        """Return bool [n]: where the two are spans of one rank's steps and not of two ranks."""
        xp = namespace(lower)
        return xp.isnan(lower[-3]) | xp.isnan(upper[-3]) | (lower[-3] == upper[-3])

    @classmethod
    def unlike(cls, lower: Block, upper: Block) -> Block:
        """Return bool [n]: where the first fields are not close."""
        xp = namespace(lower)
        close = abs(lower[0] - upper[0]) <= cls.tolerance * abs(lower[0])
        return ~(close | (lower[0] == upper[0]) | (xp.isnan(lower[0]) & xp.isnan(upper[0])))

    @classmethod
    def contradicted(cls, lower: Block, upper: Block, where: Block) -> tuple[Block, Block]:
        """Return value and rank that contradict `lower`: those found before, else of `upper` at `where`."""
        xp = namespace(lower)
        fresh = where & xp.isnan(lower[-1])
        value, rank = xp.where(fresh, upper[0], lower[-2]), xp.where(fresh, upper[-3], lower[-1])
        inherited = xp.isnan(rank) & ~xp.isnan(upper[-1])
        return xp.where(inherited, upper[-2], value), xp.where(inherited, upper[-1], rank)

    @classmethod
    def conflicts(cls, block: Block) -> Block | None:
        """Return where a rank contradicts another."""
        return ~namespace(block).isnan(block[-1])

    @classmethod
    def contradiction(cls, column: Block) -> str:
        """Return both ranks' values."""
        return (
            f"{_shown(column[0])} on rank {int(column[-3])}, {_shown(column[-2])} on rank {int(column[-1])}"
        )


def _shown(value: float) -> str:
    return f"{float(value):.9g}"
