"""Ranks as threads of one process: a multi-rank case in milliseconds, with the library's own channel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from hjepa_dist_metrics import ProcessContext
from hjepa_dist_metrics.parallel.transport import MemoryChannel, MemoryWorld

R = TypeVar("R")


def thread_context(world: MemoryWorld, rank: int) -> ProcessContext:
    return ProcessContext(
        rank, world.world_size, torch.device("cpu"), is_main=rank == 0, channel=MemoryChannel(world, rank)
    )


def run_ranks(
    world_size: int, body: Callable[[ProcessContext], R], world: MemoryWorld | None = None
) -> list[R]:
    """Run `body(context)` on every rank; return the results in rank order, or raise the first error."""
    outcomes = try_ranks(world_size, body, world)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def try_ranks(
    world_size: int, body: Callable[[ProcessContext], R], world: MemoryWorld | None = None
) -> list[Any]:
    """Run `body(context)` on every rank; return each rank's result, or the exception it raised."""
    place = world or MemoryWorld(world_size)
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
