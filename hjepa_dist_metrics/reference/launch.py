"""Start and end of a process under any launcher: python, torchrun, accelerate launch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
