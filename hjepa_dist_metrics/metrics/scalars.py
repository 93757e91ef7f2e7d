"""Plain numbers: means over everything seen, and values that every rank has alike."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Self

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import changes
from hjepa_dist_metrics.metrics.base import DistributedMetric, Values
from hjepa_dist_metrics.metrics.inputs import as_number, device_of
from hjepa_dist_metrics.metrics.roster import notes_of
from hjepa_dist_metrics.states import Mean, Replicated
from hjepa_dist_metrics.values import Scalar, Value

if TYPE_CHECKING:
    from hjepa_dist_metrics.metrics.roster import Merged

_tag = operator.attrgetter("tag")


class WeightedMean(DistributedMetric):
    """Average a number over all samples of all ranks: sum of value * count over sum of counts, as `tag`."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.add_state("mean", Mean())

    @property
    def tag(self) -> str:
        """Return the tag of the mean."""
        return self._tag

    @tag.setter
    def tag(self, tag: str) -> None:
        self._tag = tag
        changes.note()

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
        found = merged.numbers(metrics, "mean")
        if found is None:
            return super().compute_many(metrics, merged)
        # Plain Python: after a wait each of NumPy's functions is met with cold caches and takes 20 us.
        (totals, counts), columns = found
        # A subclass with tags of its own need not say when they change.
        tags, distinct = _tags(metrics) if cls.tag is WeightedMean.tag else (_tags_of(metrics), False)
        if 0.0 in counts:
            return [
                (tag, Scalar(totals[i] / counts[i]))
                for tag, i in zip(tags, columns, strict=True)
                if counts[i]
            ]
        means = [*map(operator.truediv, totals, counts)]
        pairs: Iterable[tuple[str, Value | float]]
        pairs = zip(tags, map(Scalar, map(means.__getitem__, columns)), strict=True)
        return dict(pairs) if distinct else pairs


def _tags(metrics: Mapping[str, WeightedMean]) -> tuple[list[str], bool]:
    """Return the tags, looked up anew after a change only, and whether each is there once."""
    notes, moment = notes_of(metrics), changes.latest()
    known: tuple[int, tuple[list[str], bool]] | None = notes.get("tags")
    if known is None or known[0] != moment:
        tags = _tags_of(metrics)
        known = notes["tags"] = moment, (tags, len(set(tags)) == len(tags))
    return known[1]


def _tags_of(metrics: Mapping[str, WeightedMean]) -> list[str]:
    return [*map(_tag, metrics.values())]


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
        parts = [as_number(repr(tag), values[tag]) for tag in self.tags]
        device = device_of(parts)
        self.values.update(torch.stack([part.to(device, non_blocking=True) for part in parts]))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return one value a tag; {} before the first update."""
        values = states["values"].value
        known = zip(self.tags, values, strict=True)
        return {} if (values != values).all() else dict(known)
