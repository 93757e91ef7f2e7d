"""The transport of a sync: what a sync may ask of it, and the channel of a world of one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Channel(Protocol):
    """Exchange host tensors between the ranks of a group, in the same order on every rank."""

    rank: int
    world_size: int

    def begin(self, patient: bool = False) -> None:
        """Announce that this rank has arrived at its next sync.

        A `patient` rank waits in its first operation for as long as the others live.
        """

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return [world_size, n] from every rank's one-dimensional tensor of n elements.

        It is the caller's until the next operation only: it may lie in memory that is used again.
        """

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks; `tensor` may be overwritten."""


class LocalChannel:
    """Serve a world of one: the same path, and no collective."""

    rank = 0
    world_size = 1

    def begin(self, patient: bool = False) -> None:
        """Do nothing: nobody waits."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor as the only row."""
        return tensor.unsqueeze(0)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor
