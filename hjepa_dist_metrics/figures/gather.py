"""Rows of all ranks: a uniform sample, or every row, through the library's own merge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hjepa_dist_metrics.figures.inputs import Floats
from hjepa_dist_metrics.metrics import DistributedMetric, MetricCollection
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.states import Concat, Lazy, Sample, resolved

_NAME = "rows"
# Ranks may hold different numbers of rows, but their states must be alike.
_UNBOUNDED = 2**31


class _Rows(DistributedMetric):
    """Feed rows to one state."""

    def __init__(self, state: Sample | Lazy) -> None:
        self.add_state("kept", state)

    def update(self, rows: torch.Tensor) -> None:
        """Add rows [n, D]."""
        self.kept.update(rows)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing: the rows themselves are read from the merged state."""
        return {}


def sample_rows(rows: Floats, capacity: int, context: ProcessContext | None = None, seed: int = 0) -> Floats:
    """Return a uniform sample of at most `capacity` of all ranks' rows [n, D], the same on every rank.

    A collective call. The rows come in float32.
    """
    return _merged(rows, Sample(capacity, rows.shape[1], seed), context)


def gather_rows(rows: Floats, context: ProcessContext | None = None) -> Floats:
    """Return every rank's rows [n, D], in rank order. A collective call."""
    state = Lazy(Concat, {"capacity": _UNBOUNDED, "dim": Lazy.WIDTH, "dtype": "float64"})
    return _merged(rows, state, context)


def _merged(rows: Floats, state: Sample | Lazy, context: ProcessContext | None) -> Floats:
    metric = _Rows(state)
    if len(rows):
        metric.update(torch.from_numpy(np.ascontiguousarray(rows)))
    collection = MetricCollection({_NAME: metric}, context)
    merged = resolved(collection.compute(lambda _, merged: merged[_NAME]["kept"]))
    if merged is None:
        return np.zeros((0, rows.shape[1]))
    found: Floats = merged.rows_kept.to(torch.float64).numpy()
    return found
