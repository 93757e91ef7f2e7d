"""The training thread's CPU time for a background sync: snapshot and hand-over, with the copy shown apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks._covariance import EffectiveRank
from benchmarks._ranks import markdown, median, milliseconds
from hjepa_dist_metrics import DistributedMetric, MetricCollection, WeightedMean

Cell = dict[str, Any]
_SCALARS = 100
_WIDTH = 384
_REPETITIONS = 100


def measure() -> list[Cell]:
    """Return a cell for scalars alone and with two covariances; runs on every rank."""
    return [_measure(0), _measure(2)]


def _measure(covariances: int) -> Cell:
    metrics: dict[str, DistributedMetric] = {f"m{i}": WeightedMean(f"m{i}") for i in range(_SCALARS)}
    for metric in metrics.values():
        metric.update(1.0, 4)
    wide = {f"c{i}": EffectiveRank(_WIDTH) for i in range(covariances)}
    for rank in wide.values():
        rank.update(torch.randn(64, _WIDTH))
    collection = MetricCollection({**metrics, **wide})
    times = [_share(collection) for _ in range(_REPETITIONS)]
    held = [t for metric in wide.values() for t in metric.states["rows"].pack().values()]
    copies = [_cpu_seconds(lambda: [t.clone() for t in held]) for _ in range(_REPETITIONS)]
    what = f"{_SCALARS} scalars" + (f", {covariances} covariances of {_WIDTH}" if covariances else "")
    return {"what": what, "seconds": median(times), "fastest": min(times), "copy": median(copies)}


def _share(collection: MetricCollection) -> float:
    handles: list[Any] = []
    spent = _cpu_seconds(lambda: handles.append(collection.compute_async(_no_formulas)))
    handles.pop().result(60.0)
    return spent


def _no_formulas(metrics: Mapping[str, DistributedMetric], merged: Any) -> None:
    """Compute nothing: that is the sync thread's work."""


def _cpu_seconds(operation: Callable[[], Any]) -> float:
    begun = time.thread_time()
    operation()
    return time.thread_time() - begun


def report(cells: list[Cell], ranks: int) -> str:
    """Return the table in Markdown."""
    head = [f"training thread's CPU, {ranks} ranks", "ms", "fastest, ms", "of it the covariances' copy, ms"]
    rows = [
        [c["what"], milliseconds(c["seconds"]), milliseconds(c["fastest"]), milliseconds(c["copy"])]
        for c in cells
    ]
    return markdown(head, rows)
