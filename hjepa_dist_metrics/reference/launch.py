"""Start and end of a process under any launcher: python, torchrun, accelerate launch."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from hjepa_dist_metrics import ProcessContext


@contextmanager
def process() -> Iterator[ProcessContext]:
    """Join the job's process group where a launcher started this process; leave it at the end.

    torchrun and accelerate launch describe the job in the same environment variables. Ranks use a GPU each
    over NCCL where there are enough, and the CPU over gloo otherwise. Leaving the group on every path keeps
    the interpreter's exit from aborting.
    """
    if "RANK" not in os.environ:
        yield ProcessContext.current()
        return
    device = _device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessContext.current(device=device)
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and torch.cuda.device_count() >= local_world:
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


# A launcher passes on the signal that the terminal has sent to all processes: it is the same one.
_SAME_SIGNAL_SECONDS = 3.0


class Stopped(BaseException):
    """Raised in the main thread where the job is told to stop: Ctrl-C, or SIGTERM of a scheduler."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class StopSignals:
    """Turn the first SIGINT or SIGTERM into `Stopped`, and end at once at another one, three seconds later.

    `received` is the first signal's exception: where ranks are told to stop, the first to do so breaks the
    collectives of the others, and what these raise is no failure of theirs.
    """

    def __init__(self) -> None:
        self.received: Stopped | None = None
        self._when = 0.0
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._when = Stopped(number), time.monotonic()
            raise self.received
        if time.monotonic() - self._when > _SAME_SIGNAL_SECONDS:
            os._exit(128 + number)
