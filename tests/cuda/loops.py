"""A small student and teacher that train under a monitor, with everything that `step` takes."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics import TrainingMonitor
from tests.cuda.device import waiting_is_an_error

IMAGES, TOKENS, DIM = 8, 9, 32


class Student(nn.Module):
    """Hold a context encoder, a target encoder that follows it, and a predictor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.context_encoder = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)
        self.predictor = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictions and targets."""
        with torch.no_grad():
            targets = self.target_encoder(x)
        return self.predictor(self.context_encoder(x)), targets

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        slow, live = list(self.target_encoder.parameters()), list(self.context_encoder.parameters())
        torch._foreach_lerp_(slow, live, 1.0 - momentum)


def batch(step: int, where: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(IMAGES, TOKENS, DIM, generator=generator).to(where)


def observations(x: Tensor, predictions: Tensor, targets: Tensor) -> dict[str, Any]:
    return {
        "features": targets,
        "context_features": x,
        "predictions": [predictions],
        "targets": [targets],
        "mask": x[:, :, 0] > 0,
        "momentum": 0.9,
        "scalars": {"temperature": 0.5},
        "images": x.new_zeros(IMAGES, 3, 12, 12),
        "ids": torch.arange(IMAGES),
        "views": x[:, :2],
        "tokens": IMAGES * TOKENS,
    }


def train(
    monitor: TrainingMonitor,
    model: Student,
    forward: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    *,
    micro: int = 1,
    strict: bool = False,
) -> None:
    """Train; `forward` is the model or what compiles it. With `strict`, no step may wait for the device."""
    where = next(model.parameters()).device
    for step in steps:
        x = batch(step, where)
        with waiting_is_an_error() if strict else nullcontext():
            for _ in range(micro):
                with monitor.forward(), torch.autocast(where.type, torch.bfloat16):
                    predictions, targets = forward(x)
                    loss = (predictions - targets).float().square().mean() / micro
                with monitor.backward():
                    loss.backward()
            monitor.clip_grad_norm_(0.5)
            with monitor.optimizer_step():
                optimizer.step()
            optimizer.zero_grad()
            model.follow(0.9)
            seen = observations(x, predictions.detach(), targets)
            monitor.step(samples=IMAGES, losses={"loss": loss, "loss_h0": loss}, **seen)
