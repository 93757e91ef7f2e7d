"""States that are one float64 block and merge column by column: all of a class in one vectorised step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import Numeric, State, as_tensor, follow, require_same_signature
from hjepa_dist_metrics.states.live import LiveBlock

# A column of a host block [fields, n]: the block, its numbers as Python floats, and the column's place.
Column = tuple[np.ndarray[Any, Any], Sequence[Sequence[float]], int]


class _Data:
    """Give a state the tensor that it does not keep: cut from a merged block, or copied from a live one."""

    def __get__(self, state: Any, owner: type[RowState] | None = None) -> Any:
        if state is None:
            return self
        if (live := state._live) is not None:
            return live[0].column(live[1])
        block, _, column = state._source
        data = state.__dict__["data"] = torch.from_numpy(block[:, column : column + 1])
        return data


class RowState(State):
    """Hold one float64 block [fields, n] that merges column by column.

    All states of one class merge in one vectorised step, however many there are.
    """

    fields: ClassVar[int]
    # Whether merging is adding. Blocks that add are added as what they are, with no call of `merge_rows`.
    additive: ClassVar[bool] = False
    # Whether many of them may lie side by side in a `LiveBlock`: `data` is a copy then, and not to be written
    # to. It counts for the class alone that says so.
    joins: ClassVar[bool] = False
    _source: Column
    _live: tuple[LiveBlock, int] | None = None
    if TYPE_CHECKING:
        data: Tensor  # float64 [fields, n]
    else:
        data = _Data()

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self.shape = tuple(int(s) for s in shape)
        self.size = int(np.prod(self.shape)) if self.shape else 1
        if self.size < 1:
            raise ConfigError(f"a state needs at least one element, got shape {self.shape}")
        self.data = self._blank(self.size)

    @property
    def gathered(self) -> bool:
        """Return whether every rank's rows are gathered, beside those of all states of the class."""
        return True

    @classmethod
    @abstractmethod
    def _blank(cls, size: int) -> Tensor:
        """Return the block of a state that has seen nothing."""

    @classmethod
    @abstractmethod
    def merge_rows(cls, rows: Tensor) -> Tensor:
        """Merge [W, fields, n] over its first dimension, in order, to [fields, n]."""

    @classmethod
    def conflicts(cls, rows: Tensor) -> Tensor | None:
        """Return bool [W, n], true where a rank contradicts the first one; None where nothing can."""
        return None

    @classmethod
    def without_overtaken(cls, rows: Tensor, taken: Tensor) -> Tensor:
        """Return rows [W, fields, n] without what has been overtaken; `taken` [W] counts the ranks' steps."""
        return rows

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
        theirs = other.data.to(self.data.device, non_blocking=True)
        return self.holding(self.merge_rows(torch.stack([self.data, theirs])))

    def holding(self, data: Tensor) -> Self:
        """Return a state of this signature around a float64 block."""
        state = self._bare()
        state.data = data
        return state

    def _bare(self) -> Self:
        state = super()._bare()
        state.__dict__.pop("_live", None)
        return state

    def reading(self, source: Column) -> Self:
        """Return a state of one element that reads a merged column, and cuts its tensor when it is asked for.

        Hundreds of tensors would cost more than their merge.
        """
        state = self._bare()
        state.__dict__.pop("data", None)
        state._source = source
        return state

    def live_in(self, block: LiveBlock, column: int) -> None:
        """Keep the numbers in a column of `block` from now on, which holds them already."""
        if self._live is not None:
            self._live[0].whole = False
        self._live = block, column
        # Last: another thread may read, and finds the numbers in either place.
        self.__dict__.pop("data", None)

    def _leave(self) -> None:
        """Keep the numbers elsewhere from now on: in `data`, which must be set already."""
        if self._live is not None:
            self._live[0].whole = False
            self._live = None

    def pack(self) -> dict[str, Tensor]:
        """Return the block under the name `data`."""
        return {"data": self.data}

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.data = tensors["data"].to(torch.float64)

    def rows(self) -> Tensor | None:
        """Return the block."""
        return self.data

    def assemble(self, gathered: Tensor, total: Tensor, centred: Tensor) -> Self:
        """Merge the gathered blocks; the sync does this for all states of a class at once."""
        return self.holding(self.merge_rows(gathered))

    def _field(self, index: int) -> Any:
        """Return one field as a float, or as a host array where the state has a shape."""
        if "data" not in self.__dict__:
            if (live := self._live) is not None:
                return float(live[0].rows[index, live[1]])
            _, numbers, column = self._source
            return numbers[index][column]
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
