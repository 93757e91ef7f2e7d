"""The job of a soak: train for a time under a monitor, save checkpoints, note what the process holds."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.reference import checkpoint

LOG_EVERY = 5
_CHECKPOINT_EVERY = 25
_CHECKPOINTS_KEPT = 2
_DIM, _ROWS = 16, 32
_RUN = "soak"


@dataclass(frozen=True)
class Task:
    """Say where a job writes, how long it trains, and how long it rests after each step, in seconds.

    It takes `least_steps` however long they take.
    """

    folder: str
    segment: int
    seconds: float
    pause: float
    least_steps: int = 0

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the checkpoints."""
        return Path(self.folder) / "checkpoints"

    @property
    def lines(self) -> Path:
        """Return the file of JSON lines."""
        return Path(self.folder) / "metrics" / f"{_RUN}.jsonl"

    @property
    def events(self) -> Path:
        """Return the folder of the event files."""
        return Path(self.folder) / "tensorboard" / _RUN

    def samples(self, rank: int) -> Path:
        """Return the file of what a rank held."""
        return Path(self.folder) / f"samples-{self.segment}-{rank}.jsonl"


def body(rank: int, task: Task) -> int:
    """Train from the newest checkpoint on until the time is over; return the number of the last step."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(_DIM, 32), nn.Tanh(), nn.Linear(32, _DIM)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {
        "experiment_name": _RUN,
        "log_dir": task.folder,
        "log_frequency": LOG_EVERY,
        "cadence": {"representations": 2 * LOG_EVERY, "histograms": 10 * LOG_EVERY, "figures": 0},
    }
    path = checkpoint.newest(task.checkpoints)
    saved = None if path is None else checkpoint.load(path, torch.device("cpu"))
    start = None if saved is None else int(saved["monitor"]["step_number"])
    with (
        TrainingMonitor(model, optimizer, settings, start_step=start, resume=saved is not None) as monitor,
        task.samples(rank).open("w", encoding="utf-8") as samples,
    ):
        if saved is not None:
            monitor.load_state_dict(saved["monitor"])
            model.load_state_dict(saved["model"])
        ends_at, over = time.time() + task.seconds, False
        while not over:
            _train_step(monitor, model, optimizer, rank)
            if monitor.last_step % LOG_EVERY == 0:  # a job ends at a step that logs
                samples.write(json.dumps({"step": monitor.last_step, **held(monitor)}) + "\n")
                samples.flush()
                over = _over(ends_at) and monitor.step_number >= task.least_steps
            if over or monitor.step_number % _CHECKPOINT_EVERY == 0:
                _save(monitor, model, task, rank)
            time.sleep(task.pause)
    return monitor.last_step


def _over(ends_at: float) -> bool:
    """Return whether the time is over on any rank: all leave the loop at the same step."""
    flag = torch.tensor(float(time.time() > ends_at))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def _train_step(monitor: TrainingMonitor, model: nn.Module, optimizer: Any, rank: int) -> None:
    generator = torch.Generator().manual_seed(1000 * monitor.step_number + rank)
    x = torch.randn(_ROWS, _DIM, generator=generator)
    with monitor.forward():
        loss = (model(x) - x).square().mean()
    with monitor.backward():
        loss.backward()
    monitor.clip_grad_norm_(1.0)
    with monitor.optimizer_step():
        optimizer.step()
    optimizer.zero_grad()
    monitor.step(samples=_ROWS, losses=loss, features=x)


def _save(monitor: TrainingMonitor, model: nn.Module, task: Task, rank: int) -> None:
    state = {"monitor": monitor.state_dict(), "model": model.state_dict()}
    monitor.flush()
    if rank == 0:
        checkpoint.save(task.checkpoints, monitor.step_number, state)
        for old in sorted(task.checkpoints.glob("*.pt"))[:-_CHECKPOINTS_KEPT]:
            old.unlink()


def held(monitor: TrainingMonitor) -> dict[str, int]:
    """Return the process's resident bytes, descriptors and threads, and how many writes wait."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "resident": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "python threads": threading.active_count(),
        "waiting": int(getattr(monitor.run.sink, "waiting", 0)),
    }
