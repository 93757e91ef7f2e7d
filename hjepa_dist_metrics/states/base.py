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
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.tasks import Task

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
