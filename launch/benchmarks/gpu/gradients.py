"""Clipping and statistics of a model's gradients beside torch's fused ones and one read of the memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.clock import bandwidth, cost
from hjepa_dist_metrics import GradientClipping, GradientFlow, Updates

_FAR_ABOVE = 1e9  # clipping still multiplies


def measure(model: nn.Module, device: torch.device, rounds: int, copied: int) -> dict[str, Any]:
    """Return the cost of each way, and the least time in which the gradients can be read once."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter) * 1e-3
    trained = [p for p in model.parameters() if p.grad is not None]
    gradients = [p.grad for p in trained if p.grad is not None]
    size = sum(gradient.nbytes for gradient in gradients)
    speed = bandwidth(device, copied, rounds)
    ways = {name: cost(action, device, rounds) for name, action in _ways(model, trained, gradients).items()}
    for parameter in trained:
        parameter.grad = None
    return {
        "tensors": len(gradients),
        "bytes": size,
        "bytes a second": speed,
        "one read, ms": 1e3 * size / speed,
        "ways": {name: {"device, ms": 1e3 * c.device, "host, ms": 1e3 * c.host} for name, c in ways.items()},
    }


def _ways(model: nn.Module, trained: list[Any], gradients: list[Any]) -> dict[str, Callable[[], Any]]:
    clipping, updates = GradientClipping(model), Updates(model, torch.optim.SGD(trained, lr=0.0))
    numbers, flow = GradientFlow(model, report="numbers"), GradientFlow(model)

    def compare() -> None:
        updates.before()
        updates.update()

    return {
        "norm: torch": lambda: nn.utils.get_total_norm(gradients, foreach=True),
        "norm: ours": lambda: clipping.clip_(math.inf),
        "clip: torch": lambda: nn.utils.clip_grad_norm_(trained, _FAR_ABOVE, foreach=True),
        "clip: ours": lambda: clipping.clip_(_FAR_ABOVE),
        "statistics: foreach": lambda: _foreach(gradients),
        "statistics: ours": numbers.update,
        "statistics and histograms: ours": flow.update,
        "update against weights: ours": compare,
    }


def _foreach(gradients: list[Any]) -> Any:
    """Return four numbers of each gradient by fused kernels, on the device."""
    absolute = torch._foreach_abs(gradients)
    return (
        torch.stack([a.sum() for a in absolute]),
        torch.stack(torch._foreach_max(absolute)),
        torch.stack(torch._foreach_norm(gradients, 2)),
        torch.stack([g.sum() for g in gradients]),
    )
