"""What a state is: pure, mergeable data with five verbs (empty, update, merge, pack, unpack).

States know neither ranks nor files. Merging is associative, and merging with an empty state changes
nothing, so that any split of the samples over batches and ranks gives what one process would get.

A state says how it travels in a sync by what it offers:

* `rows()`: a small float64 block [fields, n]; every rank's block is gathered and merged by `merge_rows`;
* `summed(...)`: a float64 vector that is added up over ranks (the size does not grow with the ranks);
* `centred(...)`: a float64 vector that is added up too, but needs the gathered rows and the sums first;
* nothing of these: the packed tensors are gathered as bytes and merged by `merge`, in rank order.

A merged state may offer `tasks()`, what is costly to work out of it: each of them is done by one rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.live import LiveBlock
from hjepa_dist_metrics.states.tasks import Task

# A column of a host block [fields, n]: the block, its numbers as Python floats, and the column's place.
Column = tuple[np.ndarray[Any, Any], Sequence[Sequence[float]], int]
Numeric = Tensor | np.ndarray[Any, Any] | Sequence[float] | float | int | bool


class State(ABC):
    """Hold mergeable data of one kind.

    `replicated` says that every rank holds the whole: a checkpoint then goes to all ranks and not to one.
    """

    replicated: ClassVar[bool] = False
    # Whether `summed` needs the gathered rows, which are few then: they travel before those of other states.
    leads: ClassVar[bool] = False

    @property
    @abstractmethod
    def signature(self) -> str:
        """Describe kind, shape, dtype and edges: equal signatures can be merged. An object keeps its own."""

    @abstractmethod
    def empty(self) -> Self:
        """Return a state of the same signature that has seen nothing."""

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Fold a batch in, on the batch's device and without waiting for it."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Return the state that has seen what both have; neither changes."""

    def clear(self) -> bool:
        """Forget everything in place, where the state can; return whether it has."""
        return False

    @abstractmethod
    def pack(self) -> dict[str, Tensor]:
        """Return the data as named tensors."""

    def unpack(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return a state of this signature that holds copies of the packed tensors."""
        state = self.empty()
        state._load({name: tensor.clone() for name, tensor in tensors.items()})
        return state

    @abstractmethod
    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors as this state's data."""

    def adopt(self, tensors: dict[str, Tensor]) -> Self:
        """Return a state of this signature around the tensors themselves, without copying them."""
        state = self._bare()
        state._load(tensors)
        return state

    def _bare(self) -> Self:
        """Return a shallow copy; `copy.copy` would take ten times as long."""
        state = object.__new__(type(self))
        state.__dict__.update(self.__dict__)
        return state

    def rows(self) -> Tensor | None:
        """Return the block [fields, n] that is gathered, or None."""
        return None

    def summed(self, rank: int, gathered: Tensor) -> Tensor | None:
        """Return the float64 vector that is added up over ranks, or None.

        `gathered` is [W, fields, n], every rank's rows, for a state that leads, else empty; `rank` is this
        rank's place among them.
        """
        return None

    def centred(self, rank: int, gathered: Tensor, total: Tensor) -> Tensor | None:
        """Return the float64 vector that is added up once the sums over ranks, `total`, are known, or None.

        `gathered` are every rank's rows, empty for a state that offers none, as `total` is for one that
        offers no sums.
        """
        return None

    def assemble(self, gathered: Tensor, total: Tensor, centred: Tensor) -> Self:
        """Return the merged state from what the sync brought back: gathered rows and added vectors."""
        raise TypeError(f"{type(self).__name__} offers rows or sums but does not assemble them")

    @property
    def work(self) -> float:
        """Return how many seconds the tasks of a merged state take on one core, told by its signature."""
        return 0.0

    def tasks(self) -> list[Task]:
        """Return what is costly to work out of this state, once it is merged."""
        return []


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
    # Whether every rank's rows are gathered, side by side with those of all states of the class.
    gathered = True
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
        state = object.__new__(type(self))
        attributes = state.__dict__
        attributes.update(self.__dict__)
        attributes.pop("data", None)
        attributes.pop("_live", None)
        attributes["_source"] = source
        return state

    def live_in(self, block: LiveBlock, column: int) -> None:
        """Keep the numbers in a column of `block` from now on, which holds them already."""
        if self._live is not None:
            self._live[0].whole = False
        self._live = block, column
        self.__dict__.pop(
            "data", None
        )  # last: another thread may read, and finds the numbers in either place

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


def as_tensor(values: Numeric, device: torch.device) -> Tensor:
    """Return values as a detached tensor; host values go to `device` without waiting for it."""
    if isinstance(values, Tensor):
        tensor = values.detach()
        stays = tensor.device.type != "cpu" or device.type == "cpu"
        return tensor if stays else tensor.to(device, non_blocking=True)
    if isinstance(values, (float, int, bool)):
        return torch.full((), float(values), dtype=torch.float64, device=device)
    return torch.as_tensor(np.asarray(values), device="cpu").to(device, non_blocking=True)


def follow(data: Tensor, batch: Tensor) -> Tensor:
    """Return `data` on the batch's device."""
    return data if data.device == batch.device else data.to(batch.device, non_blocking=True)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on a device, without waiting for it."""
    if device.type == "cuda":  # a copy from memory that is not pinned waits, whatever it was asked
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def require_same_signature(mine: State, other: State) -> None:
    """Raise ConfigError unless two states can be merged."""
    if mine.signature != other.signature:
        raise ConfigError(f"cannot merge {other.signature} into {mine.signature}: they must be alike")
