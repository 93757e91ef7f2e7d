"""Ranks as real processes over gloo: a warm pool that keeps its group, and disposable worlds for faults."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing as mp
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

START = "forkserver"
PRELOAD = [
    "torch",
    "torch.distributed",
    "numpy",
    "hjepa_dist_metrics",
    "tests.helpers.processes",
    "tests.helpers.ranks",
]


# Below the ports that systems give to outgoing connections (from 32768 on Linux): any of those may be taken
# between the moment when it is found free and the moment when a server asks for it.
PORTS = range(15000, 30000)


def free_port() -> int:
    """Return a port to listen at; every call on this machine gets another one, whichever process makes it."""
    counter = Path(tempfile.gettempdir()) / f"hjepa-test-ports-{os.getuid()}"
    with counter.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        last = int(file.read() or PORTS[0])
        order = [*range(last + 1, PORTS.stop), *range(PORTS.start, last + 1)]
        port = next(port for port in order if _can_listen(port))
        file.truncate(0)
        file.write(str(port))
    return port


def _can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))  # on all interfaces, as torch's store does
        except OSError:
            return False
    return True


def join_world(rank: int, world_size: int, port: int, timeout: float = 1800.0) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout),
    )


def _serve(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    """Run what comes through the pipe until it closes."""
    import torch.distributed as dist

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    join_world(rank, world_size, port)
    with contextlib.suppress(EOFError):
        while True:
            function, args = pipe.recv()
            try:
                pipe.send((function(*args), None))
            except BaseException as error:
                pipe.send((None, "".join(traceback.format_exception(error))))
    dist.destroy_process_group()


def _context() -> mp.context.ForkServerContext:
    context = mp.get_context(START)
    context.set_forkserver_preload(PRELOAD)
    return context


class GlooWorld:
    """A few processes that keep one process group from test to test, as long as none of them fails."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.usable = True  # until a run fails: ranks may be lost, or at different collectives
        self.port = free_port()
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        context = _context()
        for rank in range(world_size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world_size, self.port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 60.0) -> list[Any]:
        """Call `function(*args)` on every rank; return the results in rank order, raise where any failed."""
        self.usable = False
        for pipe in self.pipes:
            pipe.send((function, args))
        outcomes = [self._answer(rank, timeout) for rank in range(self.world_size)]
        failures = [f"rank {rank}:\n{text}" for rank, (_, text) in enumerate(outcomes) if text is not None]
        if failures:
            raise AssertionError("\n".join(failures))
        self.usable = True
        return [value for value, _ in outcomes]

    def _answer(self, rank: int, timeout: float) -> Any:
        if not self.pipes[rank].poll(timeout):
            raise AssertionError(f"rank {rank} of {self.world_size} did not answer in {timeout} s")
        try:
            return self.pipes[rank].recv()
        except EOFError:
            raise AssertionError(f"rank {rank} of {self.world_size} ended") from None

    def kill(self) -> None:
        """End processes that may not answer any more."""
        for process in self.processes:
            process.kill()
        self.close()

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


class GlooPool:
    """Worlds by size, started when first asked for, and anew where one has failed."""

    def __init__(self) -> None:
        self.worlds: dict[int, GlooWorld] = {}

    def __call__(self, world_size: int) -> GlooWorld:
        world = self.worlds.get(world_size)
        if world is not None and not world.usable:
            self.worlds.pop(world_size).kill()
            world = None
        if world is None:
            world = self.worlds[world_size] = GlooWorld(world_size)
        return world

    def close(self) -> None:
        for world in self.worlds.values():
            world.close()
        self.worlds.clear()


def _rank_of_disposable(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    port: int,
    args: tuple[Any, ...],
    pipe: Connection,
) -> None:
    join_world(rank, world_size, port)
    try:
        pipe.send(function(rank, *args))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # A test's ranks end at different times; without this, the store may go before the others are done.
    os._exit(0)


def run_disposable(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 60.0,
    leave: Collection[int] = (),
) -> dict[int, Any]:
    """Call `function(rank, *args)` in fresh processes that may die; return what the others answered.

    `leave` are ranks that never answer, being stopped.
    """
    context = _context()
    port = free_port()
    processes, pipes = [], {}
    for rank in range(world_size):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank_of_disposable, args=(function, rank, world_size, port, args, theirs), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        if rank not in leave:
            pipes[mine] = rank
    try:
        return dict(_answers(pipes, timeout))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answers(pipes: dict[Connection, int], timeout: float) -> Iterator[tuple[int, Any]]:
    pending = dict(pipes)
    while pending:
        ready = wait(list(pending), timeout)
        if not ready:
            raise AssertionError(f"ranks {sorted(pending.values())} did not answer in {timeout} s")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = pending.pop(pipe)
            with contextlib.suppress(EOFError):  # the rank died, as some are meant to
                yield rank, pipe.recv()
            pipe.close()
