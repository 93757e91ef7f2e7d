"""Start ranks as processes over gloo on this machine, time them, and count what they send."""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_FILLING = (
    "allgather",
    "gather",
    "_allgather_base",
    "alltoall_base",
)  # these take an output first, then what they send
_OPERATIONS = (*_FILLING, "allreduce", "broadcast", "barrier", "reduce", "send")
_KINDS = (dist.ProcessGroup, dist.ProcessGroupGloo)


def on_ranks(world_size: int, body: Callable[..., Any], *arguments: Any) -> Any:
    """Run `body(*arguments)` on ranks of a fresh gloo group; return what rank 0 returned.

    Raises RuntimeError where a rank failed; its traceback is on the error stream.
    """
    context = multiprocessing.get_context("spawn")
    # As torchrun's agent does: the store listens at a port before any rank has to know it.
    listening = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    mine, theirs = context.Pipe(duplex=False)
    pipes = [theirs, *[None] * (world_size - 1)]
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, listening.port, pipe, body, arguments))
        for rank, pipe in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    theirs.close()
    try:
        result = mine.recv()
    except EOFError:
        result = None
    finally:
        for process in ranks:
            process.join(60)
            process.kill()
    if any(process.exitcode for process in ranks):
        raise RuntimeError(f"ranks ended with {[process.exitcode for process in ranks]}")
    return result


def _rank(
    rank: int,
    world_size: int,
    port: int,
    pipe: Connection | None,
    body: Callable[..., Any],
    arguments: Sequence[Any],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        result = body(*arguments)
        if pipe is not None:
            pipe.send(result)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def whole(least: int) -> Callable[[str], int]:
    """Return a type of command-line arguments: whole numbers, `least` or more."""

    def number(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text!r}")
        return int(text)

    return number


def positive(text: str) -> float:
    """Read a command-line argument that is a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


@functools.cache
def _referee() -> Any:
    """Return a group for the start and the times alone: it wakes up the threads of none that is measured."""
    return dist.new_group(backend="gloo")


def timed(operation: Callable[[], Any]) -> float:
    """Return the seconds that the slowest rank took, all having started together."""
    dist.barrier(group=_referee())
    begun = time.perf_counter()
    operation()
    spent = torch.tensor([time.perf_counter() - begun], dtype=torch.float64)
    dist.all_reduce(spent, dist.ReduceOp.MAX, group=_referee())
    return float(spent)


@dataclass
class Traffic:
    """Count this rank's collectives, or messages, and the bytes that it put into them."""

    calls: int = 0
    sent_bytes: int = 0


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Count every collective and message of the process, by any library, on groups and backends."""
    traffic = Traffic()
    found = [(kind, name) for kind in _KINDS for name in _OPERATIONS if hasattr(kind, name)]
    saved: list[tuple[type[Any], str, Any]] = [(kind, name, vars(kind).get(name)) for kind, name in found]
    for kind, name, _ in saved:
        setattr(kind, name, _counting(traffic, int(name in _FILLING), getattr(kind, name)))
    try:
        yield traffic
    finally:
        for kind, name, original in saved:
            if original is None:
                delattr(kind, name)
            else:
                setattr(kind, name, original)


def _counting(traffic: Traffic, place: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """Count the calls of a method, and the bytes of the tensors that it is given at a place."""

    def count(self: Any, *arguments: Any, **options: Any) -> Any:
        traffic.calls += 1
        sent = arguments[place] if len(arguments) > place else ()  # a barrier sends nothing
        tensors = [sent] if isinstance(sent, Tensor) else list(sent) if isinstance(sent, Sequence) else []
        traffic.sent_bytes += sum(t.nbytes for t in tensors)
        return original(self, *arguments, **options)

    return count


def median(values: Sequence[float]) -> float:
    """Return the middle value, the mean of the two middle ones of an even number."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown: the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def lower_quartile(values: Sequence[float]) -> float:
    """Return the value below which a quarter lies: how long something takes where nothing comes between."""
    return sorted(values)[len(values) // 4]


def upper_quartile(values: Sequence[float]) -> float:
    """Return the value above which a quarter lies."""
    return sorted(values)[3 * len(values) // 4]


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three significant digits."""
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def write(folder: str, name: str, text: str) -> Path:
    """Write a text file and return its path."""
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return path
