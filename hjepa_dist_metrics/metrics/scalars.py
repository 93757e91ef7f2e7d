"""Plain numbers: means over everything seen, and values that every rank has alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import Replicated, Sum


class WeightedMean(DistributedMetric):
    """Average a number over all samples of all ranks: sum of value * count over sum of counts, as `tag`."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.add_state("total", Sum())
        self.add_state("count", Sum())

    def update(self, value: Tensor | float, count: Tensor | float = 1) -> None:
        """Add a mean over `count` samples."""
        mean = torch.as_tensor(value).detach().to(torch.float64)
        counted = torch.as_tensor(count).detach().to(mean.device, torch.float64, non_blocking=True)
        # A mean over nothing is often NaN: with a count of zero it is no finding, it is nothing.
        self.total.update(torch.where(counted > 0, mean * counted, torch.zeros_like(mean)))
        self.count.update(counted)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mean; {} before the first update."""
        total, count = states["total"].value, states["count"].value
        return {self.tag: total / count} if count else {}


class ReplicatedScalars(DistributedMetric):
    """Report the latest values of numbers that every rank has alike, a momentum schedule for instance.

    Ranks whose values differ are named in a `DesyncError`.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = sorted(tags)
        self.add_state("values", Replicated(shape=(len(self.tags),)))

    def update(self, values: Mapping[str, Tensor | float]) -> None:
        """Replace the values; every tag must be there."""
        if sorted(values) != self.tags:
            raise ConfigError(f"expected values for {self.tags}, got {sorted(values)}")
        parts = [torch.as_tensor(values[tag], dtype=torch.float64).reshape(()) for tag in self.tags]
        device = next((part.device for part in parts if part.device.type != "cpu"), parts[0].device)
        self.values.update(torch.stack([part.to(device, non_blocking=True) for part in parts]))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return one value a tag; {} before the first update."""
        values = states["values"].value
        known = zip(self.tags, values, strict=True)
        return {} if (values != values).all() else dict(known)
