"""Ranks as processes that may die: what each answered, and who never did."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from typing_extensions import Self


class Ranks:
    """Processes of a gloo group that run `body(rank, *arguments)`; leaving the block kills what is left.

    The group's store is this process's: no rank's death ends it.
    """

    def __init__(self, world_size: int, body: Callable[..., Any], *arguments: Any) -> None:
        self.world_size = world_size
        self._target = body, arguments
        self._pipes: dict[Connection, int] = {}
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "hjepa_dist_metrics"])
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(self.world_size):
            mine, theirs = context.Pipe(duplex=False)
            where = rank, self.world_size, self._store.port, theirs
            process = context.Process(target=_rank, args=(*where, *self._target), daemon=True)
            process.start()
            theirs.close()
            self._pipes[mine] = rank
            self._processes.append(process)
        return self

    def wait_for_start(self) -> None:
        """Wait until all ranks have joined the group."""
        self._store.wait([f"started/{rank}" for rank in range(self.world_size)])

    def kill(self, rank: int) -> None:
        """End a rank at once."""
        self._processes[rank].kill()

    def answers(self, patience: float) -> dict[int, Any]:
        """Return what each rank answered; not that of a rank that dies, or does not answer in time."""
        return _answers(self._pipes, time.monotonic() + patience)

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()


def run_ranks(world_size: int, body: Callable[..., Any], *arguments: Any, patience: float) -> dict[int, Any]:
    """Run `body` on ranks of a fresh group; return the answers of those that gave one in time."""
    with Ranks(world_size, body, *arguments) as ranks:
        ranks.wait_for_start()
        return ranks.answers(patience)


def _answers(pipes: dict[Connection, int], deadline: float) -> dict[int, Any]:
    pending = dict(pipes)
    found: dict[int, Any] = {}
    while pending:
        ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
        if not ready:
            return found
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pending.pop(pipe)
            try:
                found[rank] = pipe.recv()
            except EOFError:
                continue  # the rank died
    return found


def _rank(
    rank: int,
    world_size: int,
    port: int,
    pipe: Connection,
    body: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS="1", RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    store = TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=PrefixStore("job", store), rank=rank, world_size=world_size)
    store.set(f"started/{rank}", "")
    pipe.send(body(rank, *arguments))
    os._exit(0)  # without the others' consent, as a process ends that is done
