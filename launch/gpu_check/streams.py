"""A short run with pinned copies on a stream, for compute-sanitizer: python -m gpu_check.streams cuda."""

from __future__ import annotations

import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from hjepa_dist_metrics import TrainingMonitor
from hjepa_dist_metrics.logging.host_copy import HostCopy

_STEPS = 3
_COPIES = 5


def main(device: torch.device) -> None:
    """Train a few logged steps on a stream of their own, and take copies while the source changes."""
    stream: AbstractContextManager[Any] = nullcontext()
    if device.type == "cuda":
        stream = torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    with stream, tempfile.TemporaryDirectory() as folder:
        _train(device, folder)
        x = torch.zeros(1000, device=device)
        copies = []
        for i in range(_COPIES):
            x.fill_(float(i))
            copies.append(HostCopy(x))
        for i, copy in enumerate(copies):
            if not bool((copy.wait() == float(i)).all()):
                raise SystemExit(f"copy {i} holds {copy.wait().aminmax()}")
    print("copies hold what they should")


def _train(device: torch.device, folder: str) -> None:
    model = nn.Linear(16, 16).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"log_dir": folder, "log_frequency": 1, "cadence": {"representations": 1, "histograms": 1}}
    with TrainingMonitor(model, optimizer, settings) as monitor:
        for _ in range(_STEPS):
            x = torch.randn(8, 16, device=device)
            with monitor.forward():
                loss = (model(x) - x).square().mean()
            with monitor.backward():
                loss.backward()
            monitor.clip_grad_norm_(1.0)
            with monitor.optimizer_step():
                optimizer.step()
            optimizer.zero_grad()
            monitor.step(samples=8, losses=loss, features=x)


if __name__ == "__main__":
    main(torch.device(sys.argv[1]))
