"""The sync of a monitor's log step, against plain collections: of as many means, and of the same metrics."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks._ranks import lower_quartile, markdown, median, milliseconds, timed
from hjepa_dist_metrics import DistributedMetric, MetricCollection, TrainingMonitor, WeightedMean
from hjepa_dist_metrics.metrics.collection import apply_formulas
from hjepa_dist_metrics.sync import Participation

Cell = dict[str, Any]
_WIDTH, _SAMPLES, _TOKENS = 64, 32, 16
_STEPS = 3
_WARM = 5


class Model(nn.Module):
    """Have what the default run's metrics look at: two encoders and a predictor of a few layers."""

    def __init__(self) -> None:
        super().__init__()
        self.context_encoder, self.target_encoder = _layers(), _layers()
        self.predictor = _layers()


class Silent(TrainingMonitor):
    """Log nothing, so that metrics keep what the steps have brought."""

    def _log(self, *_: Any, **__: Any) -> None:
        pass


def _layers() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(4)))


def measure(rounds: int) -> list[Cell]:
    """Return a cell for the log step and for each collection; runs on every rank."""
    with tempfile.TemporaryDirectory() as folder:
        monitor = _trained(folder)
        registry = monitor.run.registry
        cells = _measure(registry.collection, registry.names(["scalars"]), rounds)
        monitor.flush()
    return cells


def log_step_metrics(folder: str) -> dict[str, DistributedMetric]:
    """Return the metrics that the default run's log step syncs, having seen a few steps."""
    registry = _trained(folder).run.registry
    return {name: registry.collection[name] for name in registry.names(["scalars"])}


def _trained(folder: str) -> TrainingMonitor:
    """Return a monitor that has seen a few steps of all that the default run hands over; none is logged."""
    torch.manual_seed(0)
    model = Model()
    trained = [*model.context_encoder.parameters(), *model.predictor.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    settings: dict[str, Any] = {"experiment_name": "log", "log_dir": folder, "log_frequency": 2}
    settings |= {"tensorboard": {"enabled": False}, "jsonl": {"enabled": False}, "dashboards": []}
    monitor = Silent(model, optimizer, settings, level_weights=[1.0, 0.5, 0.25])
    for _ in range(_STEPS):
        rows = torch.randn(_SAMPLES, _WIDTH)
        with monitor.backward():
            loss = model.predictor(model.context_encoder(rows)).square().mean()
            loss.backward()
        monitor.clip_grad_norm_(1.0)
        with monitor.optimizer_step():
            optimizer.step()
        optimizer.zero_grad()
        losses = {"loss": loss, "loss_h0": loss, "loss_h1": loss, "loss_h2": loss}
        mask = torch.rand(_SAMPLES, 4, 4) < 0.5
        monitor.step(_SAMPLES, losses, mask=mask, momentum=0.99)
    return monitor


def _measure(collection: MetricCollection, names: list[str], rounds: int) -> list[Cell]:
    def log() -> dict[str, Any]:
        handle = collection.compute_uneven(
            lambda result: result.values(apply_formulas), Participation(steps_done=_STEPS), names
        )
        return handle.result()

    values = log()
    same = MetricCollection({name: collection[name] for name in names}, name="the same")
    means = MetricCollection({f"m{i}": WeightedMean(f"m{i}") for i in range(len(values))}, name="means")
    for mean in means.values():
        mean.update(1.0, 4)
    ways: dict[str, Callable[[], Any]] = {
        f"monitor's log step, {len(names)} metrics, {len(values)} values": log,
        "plain collection of the same metrics": same.compute,
        f"plain collection of {len(values)} means": means.compute,
    }
    times: dict[str, list[float]] = {what: [] for what in ways}
    for i in range(rounds + _WARM):
        for what, way in ways.items():
            spent = timed(way)
            times[what] += [spent] if i >= _WARM else []
    return [{"what": w, "seconds": median(t), "quartile": lower_quartile(t)} for w, t in times.items()]


def report(cells: list[Cell], ranks: int) -> str:
    """Return the table in Markdown."""
    least = cells[-1]["quartile"]
    rows = [
        [c["what"], milliseconds(c["seconds"]), milliseconds(c["quartile"]), f"{c['quartile'] / least:.2f}"]
        for c in cells
    ]
    return markdown([f"log step, {ranks} ranks", "ms", "lower quartile, ms", "over the means"], rows)
