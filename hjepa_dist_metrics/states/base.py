"""What a state is: pure, mergeable data with four verbs (empty, update, merge, pack).

States know neither groups nor files. Merging is associative, and merging with an empty state changes nothing,
so that any split of the samples over batches and ranks gives what one process would get. `merge` is what a
sync does with the states of two blocks of ranks, the lower block's first, and of two spans
of one rank's steps, the earlier one first. Where the two differ, the state keeps the number of its rank,
which `signed` fills in before a sync.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError

Numeric = Tensor | np.ndarray[Any, Any] | Sequence[float] | float | int | bool


class State(ABC):
    """Hold mergeable data of one kind.

    `replicated` says that every rank holds the whole: a checkpoint then goes to all ranks and not to one.
    """

    replicated: ClassVar[bool] = False
    kinds: ClassVar[dict[str, type[State]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        State.kinds[cls.kind()] = cls

    @classmethod
    def kind(cls) -> str:
        """Return the name under which a rank that lacks a metric makes states of this class."""
        return f"{cls.__module__}.{cls.__qualname__}"

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Return the constructor's arguments as plain data.

        By default they are read from attributes of the same names. A rank that lacks a metric of another rank
        makes an empty state from them, to merge what passes through it.
        """
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    @property
    @abstractmethod
    def signature(self) -> str:
        """Describe kind, shape, dtype and edges: equal signatures can be merged. An object keeps its own."""

    @abstractmethod
    def empty(self) -> Self:
        """Return a state of the same signature that has seen nothing."""

    @abstractmethod
    def update(self, *args: Any, **kwargs: Any) -> None:
        """Fold a batch in, on the batch's device and without synchronising with it."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Return the state that has seen what both have; `other` is later, or of higher ranks."""

    @property
    def is_empty(self) -> bool:
        """Return whether the state has seen nothing; on a device this synchronises."""
        own, blank = self.pack(), self.empty().pack()
        return own.keys() == blank.keys() and all(same_values(own[name], blank[name]) for name in own)

    @abstractmethod
    def pack(self) -> dict[str, Tensor]:
        """Return the data as named tensors."""

    def unpack(self, tensors: Mapping[str, Tensor]) -> Self:
        """Return a state of this signature that goes on from packed tensors, of a checkpoint for instance."""
        return self.adopt({name: tensor.clone() for name, tensor in tensors.items()})

    # Whether `pack` gives the same names at all times, and shapes that differ in sizes only where they are 0.
    fixed: ClassVar[bool] = True

    def misfit(self, tensors: Mapping[str, Any]) -> str | None:
        """Return in which way tensors are not what this state packs, None where they are."""
        wrong = [
            f"{name!r} is {type(t).__name__}" for name, t in tensors.items() if not isinstance(t, Tensor)
        ]
        if wrong:
            return f"expected tensors, but {', '.join(wrong)}"
        expected = self.empty().pack() if self.fixed else {}
        if self.fixed and expected.keys() != tensors.keys():
            return f"expected tensors {sorted(expected)}, got {sorted(tensors)}"
        for name, tensor in expected.items():
            want, got = list(tensor.shape), list(tensors[name].shape)
            fits = len(want) == len(got) and all(w in (0, g) for w, g in zip(want, got, strict=True))
            if not fits:
                return f"expected {name!r} of shape {want}, got {got}"
        return None

    @abstractmethod
    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors as this state's data."""

    def adopt(self, tensors: dict[str, Tensor]) -> Self:
        """Return a state of this signature around the tensors themselves, without copying them."""
        state = self._bare()
        state._load(tensors)
        return state

    def compact(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what has to be sent of packed tensors, compact ones among them, which lie on the host.

        In a sync states around compact tensors merge with each other.
        """
        return tensors

    def expand(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return packed tensors from what `compact` left of them."""
        return tensors

    def signed(self, rank: int, steps: int) -> Self:
        """Return the state as that of `rank` after `steps` steps, where merging over ranks needs that."""
        return self

    def conflict(self) -> str | None:
        """Return how ranks contradict each other in a merged state, None where they do not."""
        return None

    def _bare(self) -> Self:
        """Return a shallow copy; `copy.copy` would take ten times as long."""
        state = object.__new__(type(self))
        state.__dict__.update(self.__dict__)
        return state


def same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same, NaN in the same places."""
    host = one.cpu()
    return host.shape == other.shape and bool(((host == other) | ((host != host) & (other != other))).all())


def as_tensor(values: Numeric, device: torch.device) -> Tensor:
    """Return values as a detached tensor; host values go to `device` without synchronising."""
    if isinstance(values, Tensor):
        tensor = values.detach()
        stays = tensor.device.type != "cpu" or device.type == "cpu"
        return tensor if stays else tensor.to(device, non_blocking=True)
    if isinstance(values, (float, int, bool)):
        return torch.full((), float(values), dtype=torch.float64, device=device)
    return torch.as_tensor(np.asarray(values), device="cpu").to(device, non_blocking=True)


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on a device, and of a dtype; the copy is not waited for unless it goes to the host.

    A host tensor that a copy still fills holds no number yet, and nothing would say so.
    """
    return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")


def follow(data: Tensor, batch: Tensor) -> Tensor:
    """Return `data` on the batch's device."""
    return data if data.device == batch.device else moved(data, batch.device)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to a device, without synchronising."""
    if device.type == "cuda":  # a copy from pageable memory synchronises, also with non_blocking
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def require_same_signature(own: State, other: State) -> None:
    """Raise ConfigError unless two states can be merged."""
    if own.signature != other.signature:
        raise ConfigError(f"cannot merge {other.signature} into {own.signature}: they must be the same")
