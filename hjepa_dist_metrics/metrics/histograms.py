"""Histogram states as values to report."""

from __future__ import annotations

import math
from typing import Any

from hjepa_dist_metrics.values import Histogram


def histogram_value(state: Any, total: float, total_squares: float) -> Histogram:
    """Return a merged histogram state as a value; `total` and `total_squares` are the values' sums."""
    finite = math.isfinite(total) and math.isfinite(total_squares)
    return Histogram(
        state.edges,
        state.counts,
        state.minimum if math.isfinite(state.minimum) else 0.0,
        state.maximum if math.isfinite(state.maximum) else 0.0,
        total if finite else 0.0,
        total_squares if finite else 0.0,
        state.nonfinite,
    )
