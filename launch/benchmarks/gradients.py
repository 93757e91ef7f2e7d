"""Norms, clipping and statistics of gradients against what training loops use today, on one core.

The gradients are those of a ViT-B: 150 tensors, 86 million elements (`--scale 0.1` for a tenth). Times
are the process's CPU time, so that a busy machine does not tell in them, and multiples of one read of all
gradients, the least of all rounds; errors are against float64.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._ranks import markdown, milliseconds, write
from hjepa_dist_metrics import DistributedMetric, GradientClipping, GradientFlow, Scalar, Updates

MAX_NORM = 1e9  # above the norm: clipping still multiplies, as torch's does
Row = tuple[str, Callable[[], Any], Callable[[], float] | None]


def vit_shapes(scale: float) -> list[tuple[int, ...]]:
    """Return the shapes of a ViT-B's parameters, its width scaled by the root of `scale`."""
    width = max(8, round(768 * math.sqrt(scale)))
    layer: list[tuple[int, ...]] = [
        (3 * width, width),
        (3 * width,),
        (width, width),
        (width,),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
        *[(width,)] * 4,
    ]
    ends: list[tuple[int, ...]] = [(width, 768), (width,), (196, width), (width,), (width,), (1000, width)]
    return [*layer * 12, *ends]


class Model(nn.Module):
    """Hold parameters of the given shapes with random gradients, in layers of twelve."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        layers = [
            nn.ParameterList([torch.zeros(s) for s in shapes[i : i + 12]]) for i in range(0, len(shapes), 12)
        ]
        self.blocks = nn.ModuleList(layers)
        for parameter in self.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3


def gradients_of(model: nn.Module) -> list[Tensor]:
    """Return the gradients."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def read(gradients: Sequence[Tensor]) -> None:
    """Read every element once."""
    for gradient in gradients:
        gradient.sum()


def item_loop(gradients: Sequence[Tensor]) -> float:
    """The tutorial's way: four numbers of each tensor, each taken to the host."""
    square = 0.0
    for gradient in gradients:
        gradient.abs().mean().item()
        gradient.abs().max().item()
        gradient.std().item()
        square += gradient.norm().item() ** 2
    return math.sqrt(square)


def foreach_statistics(gradients: Sequence[Tensor]) -> float:
    """The same four numbers by fused foreach kernels."""
    absolute = torch._foreach_abs(list(gradients))
    [a.sum() for a in absolute]
    torch._foreach_max(absolute)
    norms = torch._foreach_norm(list(gradients), 2)
    [g.sum() for g in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def per_parameter_norms(gradients: Sequence[Tensor]) -> float:
    """Composer-like: a norm for each parameter, each reduced and taken to the host on its own."""
    return math.sqrt(sum(float((g.norm() ** 2).item()) for g in gradients))


def value_of(metric: DistributedMetric, tag: str) -> float:
    """Return one number of a metric."""
    value = metric.compute()[tag]
    assert isinstance(value, Scalar)
    return value.value


def measure(model: Model, rounds: int) -> dict[str, tuple[float, float | None]]:
    """Return seconds and the relative error of the global norm by name; the ways take turns."""
    gradients, parameters = gradients_of(model), list(model.parameters())
    exact = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    clipping, numbers = GradientClipping(model), GradientFlow(model, report="numbers")
    flow = GradientFlow(model)
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    updates = Updates(model, optimizer)

    def compare() -> None:
        updates.before()
        updates.update()

    rows: list[Row] = [
        ("one read", lambda: read(gradients), None),
        ("clip: torch, foreach", lambda: nn.utils.clip_grad_norm_(parameters, MAX_NORM, foreach=True), None),
        ("clip: ours", lambda: clipping.clip_(MAX_NORM), None),
        (
            "norm: torch",
            lambda: nn.utils.get_total_norm(gradients),
            lambda: float(nn.utils.get_total_norm(gradients)),
        ),
        (
            "norm: per parameter",
            lambda: per_parameter_norms(gradients),
            lambda: per_parameter_norms(gradients),
        ),
        ("norm: ours", lambda: clipping.clip_(math.inf), lambda: float(clipping.clip_(math.inf).double())),
        ("statistics: .item() loop", lambda: item_loop(gradients), lambda: item_loop(gradients)),
        ("statistics: foreach", lambda: foreach_statistics(gradients), lambda: foreach_statistics(gradients)),
        ("statistics: ours", numbers.update, lambda: value_of(numbers, "gradients/global_norm")),
        ("statistics and histograms: ours", flow.update, None),
        ("update against weights: ours", compare, None),
    ]
    times: dict[str, list[float]] = {name: [] for name, _, _ in rows}
    for _ in range(rounds + 1):
        for name, action, _ in rows:
            begun = time.process_time()
            action()
            times[name].append(time.process_time() - begun)
    errors = {name: None if value is None else abs(value() / exact - 1) for name, _, value in rows}
    return {name: (min(spent[1:]), errors[name]) for name, spent in times.items()}


def report(found: dict[str, tuple[float, float | None]], elements: int, tensors: int) -> str:
    """Return the table and the clipping's cost against torch's, in Markdown."""
    one = found["one read"][0]
    rows = [
        [name, milliseconds(seconds), f"{seconds / one:.2f}", "" if error is None else f"{error:.0e}"]
        for name, (seconds, error) in found.items()
    ]
    head = [
        f"{tensors} tensors, {elements / 1e6:.1f} M elements, one core",
        "ms",
        "reads",
        "error of the norm",
    ]
    ratio = found["clip: ours"][0] / found["clip: torch, foreach"][0]
    return f"{markdown(head, rows)}\n\nClipping takes {ratio:.2f} times torch's."


def run(argv: Sequence[str]) -> int:
    """Measure, print the table and write gradients.md."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    model = Model(vit_shapes(options.scale))
    found = measure(model, options.rounds)
    gradients = gradients_of(model)
    text = report(found, sum(g.numel() for g in gradients), len(gradients))
    print(text)
    write(options.out, "gradients.md", text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py gradients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", type=float, default=1.0, help="share of a ViT-B's elements (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--out", default="results/benchmarks", help="folder of gradients.md")
    return parser
