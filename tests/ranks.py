"""Ranks as threads of one process: a multi-rank case in milliseconds, with the library's own channel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hjepa_dist_metrics import ProcessContext

R = TypeVar("R")


class ThreadWorld:
    """A meeting place for the threads of one world; counts the collectives that went through it."""

    def __init__(self, world_size: int, timeout: float = 20.0) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=timeout)
        self.slots: list[Any] = [None] * world_size
        self.collectives = 0
        self.bytes = 0

    def meet(self, rank: int, value: Any) -> list[Any]:
        self.slots[rank] = value
        self.barrier.wait()
        everything = list(self.slots)
        self.barrier.wait()
        return everything


class ThreadChannel:
    """What `open_channel` returns on a real group, between threads."""

    def __init__(self, world: ThreadWorld, rank: int) -> None:
        self.world, self.rank, self.world_size = world, rank, world.world_size

    def begin(self, patient: bool = False) -> None:
        pass

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchange(tensor))

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._exchange(tensor)).sum(dim=0)

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        if self.rank == 0:
            self.world.collectives += 1
            self.world.bytes += tensor.numel() * tensor.element_size()
        everything = self.world.meet(self.rank, tensor.clone())
        assert len({(t.dtype, tuple(t.shape)) for t in everything}) == 1, "mismatched collective"
        return everything


def thread_context(world: ThreadWorld, rank: int) -> ProcessContext:
    return ProcessContext(
        rank, world.world_size, torch.device("cpu"), is_main=rank == 0, channel=ThreadChannel(world, rank)
    )


def run_ranks(
    world_size: int, body: Callable[[ProcessContext], R], world: ThreadWorld | None = None
) -> list[R]:
    """Run `body(context)` on every rank; return the results in rank order, or raise the first error."""
    outcomes = try_ranks(world_size, body, world)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def try_ranks(
    world_size: int, body: Callable[[ProcessContext], R], world: ThreadWorld | None = None
) -> list[Any]:
    """Run `body(context)` on every rank; return each rank's result, or the exception it raised."""
    place = world or ThreadWorld(world_size)
    outcomes: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = body(thread_context(place, rank))
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
