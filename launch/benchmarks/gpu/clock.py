"""Time of a device: by its own events on CUDA, by the host's clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks._ranks import median

_WARMUP = 2


@dataclass(frozen=True)
class Cost:
    """Hold seconds of one call: between two events of the device, and of the thread's processor time."""

    device: float
    host: float


def wait(device: torch.device) -> None:
    """Wait until the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cost(action: Callable[[], Any], device: torch.device, rounds: int) -> Cost:
    """Return the median cost of a call; the device's time contains gaps in which it waits for the host."""
    for _ in range(_WARMUP):
        action()
    wait(device)
    marks, spent = [], []
    for _ in range(rounds):
        begun, first = time.thread_time(), _mark(device)
        action()
        marks.append((first, _mark(device)))
        spent.append(time.thread_time() - begun)
    wait(device)
    return Cost(median([_between(*pair) for pair in marks]), median(spent))


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _between(first: Any, last: Any) -> float:
    return float(last - first) if isinstance(first, float) else float(first.elapsed_time(last)) / 1e3


def bandwidth(device: torch.device, size: int, rounds: int) -> float:
    """Return bytes a second that a copy of `size` bytes reads and writes on the device."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / cost(lambda: target.copy_(source), device, rounds).device
