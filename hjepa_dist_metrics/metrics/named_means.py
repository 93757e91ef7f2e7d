"""Means of named numbers of a training loop, exact over batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import NamedSums


class NamedMeans(DistributedMetric):
    """Average numbers by name: sum of weight * value over sum of weights, of all updates of all ranks.

    Names may appear at any time, and on some ranks only. A rank that never updates adds nothing.

    >>> means = NamedMeans()
    >>> means.update({"accuracy": 1.0}, weight=3)
    >>> means.update({"accuracy": 0.0}, weight=1)
    >>> means.compute()
    {'accuracy': 0.75}
    """

    def __init__(self) -> None:
        self.add_state("sums", NamedSums())

    def update(self, metrics: Mapping[str, Any], weight: Any = 1) -> None:
        """Add numbers, each a mean over `weight` samples; a mapping gives every name its own weight."""
        weights = weights_of(metrics, weight)
        for name, value in metrics.items():
            self.sums.update(name, value, weights[name])

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the means by name; names of weight 0 are left out."""
        means: dict[str, Any] = states["sums"].means
        return means


def weights_of(names: Iterable[str], weight: Any) -> dict[str, Any]:
    """Return the weight of each name: the one for all, or its own; ConfigError for a name without."""
    if not isinstance(weight, Mapping):
        return dict.fromkeys(names, weight)
    for name in names:
        if name not in weight:
            raise ConfigError(f"no weight for {name!r}; there are weights for {sorted(weight)}")
    return {name: weight[name] for name in names}
