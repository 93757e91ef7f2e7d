"""Plain numbers: means over all updates, and values that are the same on every rank."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric, Values
from hjepa_dist_metrics.metrics.validation import as_number, device_of
from hjepa_dist_metrics.states import Mean, Replicated
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.sync import Merged
from hjepa_dist_metrics.values import Scalar

_tag = operator.attrgetter("tag")


class WeightedMean(DistributedMetric):
    """Average a number over all samples of all ranks: sum of value * count over sum of counts, as `tag`.

    >>> mean = WeightedMean("val/accuracy")
    >>> mean.update(1.0, count=3)
    >>> mean.update(0.0, count=1)
    >>> mean.compute()
    {'val/accuracy': 0.75}
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.add_state("mean", Mean())

    def update(self, value: Tensor | float, count: Tensor | float = 1) -> None:
        """Add a mean over `count` samples."""
        self.mean.update(value, count)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mean; {} before the first update."""
        mean = states["mean"]
        return {self.tag: mean.value} if mean.count else {}

    @classmethod
    def compute_many(cls, metrics: Mapping[str, Self], merged: Merged) -> Values:
        """Return the means in one pass over the merged block."""
        block = merged.columns(list(metrics), "mean")
        if block is None:
            return super().compute_many(metrics, merged)
        totals, counts = (
            block.tolist()
        )  # plain Python: after a wait NumPy's functions are met with cold caches
        rows = zip(map(_tag, metrics.values()), totals, counts, strict=True)
        return [(tag, Scalar(total / count)) for tag, total, count in rows if count]


class ReplicatedScalars(DistributedMetric):
    """Report the latest values of numbers that are the same on every rank, a momentum schedule for instance.

    Ranks whose values differ are named in a `DesyncError`.

    >>> scalars = ReplicatedScalars(["temperature"])
    >>> scalars.update({"temperature": 0.07})  # the same on every rank: others would be a DesyncError
    >>> scalars.compute()
    {'temperature': 0.07}
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self.tags = sorted(tags)
        self.add_state("values", Replicated(shape=(len(self.tags),)))

    def update(self, values: Mapping[str, Tensor | float]) -> None:
        """Replace the values; every tag must be there."""
        if sorted(values) != self.tags:
            raise ConfigError(f"expected values for {self.tags}, got {sorted(values)}")
        parts = [as_number(repr(tag), values[tag]) for tag in self.tags]
        device = device_of(parts)
        self.values.update(torch.stack([moved(part, device) for part in parts]))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return one value a tag; {} before the first update."""
        values = states["values"].value
        known = zip(self.tags, values, strict=True)
        return {} if (values != values).all() else dict(known)
