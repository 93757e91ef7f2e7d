"""From merged states of attention heads to tags: few over all heads, and some for each layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from hjepa_dist_metrics.metrics.kernels.heads import POSITIONS
from hjepa_dist_metrics.states import HeadSums, NamedRows
from hjepa_dist_metrics.states.layers.head_sums import (
    ENTROPY,
    LOGIT,
    QUERIES,
    RELATIVE_ENTROPY,
    SAMPLES,
    SINK,
    SPREAD_QUERIES,
)
from hjepa_dist_metrics.values import Histogram, Text

# Fixed edges, so that they are the same for every split.
_ENTROPY_EDGES = np.linspace(0.0, 1.0, 41)
_LOGIT_EDGES = np.concatenate([-np.logspace(4, -1, 51), [0.0], np.logspace(-1, 4, 51)])


@dataclass(frozen=True)
class HeadNumbers:
    """Hold the numbers of one head of a layer, over all queries and samples of all ranks.

    `sink` is the largest mean share of one key, mean over samples; `sink_key` the key that it mostly is.
    `relative_entropy` is NaN where no query saw more than one key.
    """

    layer: str
    head: int
    entropy: float
    relative_entropy: float
    logit: float
    sink: float
    sink_key: int

    def __str__(self) -> str:
        return f"`{self.layer}`, head {self.head}"


def head_numbers(heads: NamedRows, sinks: NamedRows) -> list[HeadNumbers]:
    """Return the numbers of all heads that had a query, layer by layer."""
    positions: dict[str, Any] = dict(sinks.items())
    found: list[HeadNumbers] = []
    for layer, sums in heads.items():
        counts = positions[layer].value.reshape(-1, sums.size)
        found += _of_layer(layer, sums, counts.argmax(axis=0))
    return found


def _of_layer(layer: str, sums: HeadSums, keys: Any) -> Iterable[HeadNumbers]:
    numbers = sums.data.numpy()
    with np.errstate(all="ignore"):
        entropy, sink = numbers[ENTROPY] / numbers[QUERIES], numbers[SINK] / numbers[SAMPLES]
        relative = numbers[RELATIVE_ENTROPY] / numbers[SPREAD_QUERIES]
    for head in np.flatnonzero(numbers[QUERIES]):
        own = [float(values[head]) for values in (entropy, relative, numbers[LOGIT], sink)]
        yield HeadNumbers(layer, int(head), own[0], own[1], own[2], own[3], int(keys[head]))


def summary_tags(heads: Sequence[HeadNumbers]) -> dict[str, Any]:
    """Return the tags over all heads."""
    values = {
        name: np.array([getattr(head, name) for head in heads])
        for name in ("entropy", "relative_entropy", "logit", "sink")
    }
    relative = values["relative_entropy"][~np.isnan(values["relative_entropy"])]
    tags: dict[str, Any] = {
        "attention/entropy_min": values["entropy"].min(),
        "attention/entropy_median": np.median(values["entropy"]),
        "attention/entropy_max": values["entropy"].max(),
        "attention/logit_median": np.median(values["logit"]),
        "attention/logit_max": values["logit"].max(),
        "attention/sink_median": np.median(values["sink"]),
        "attention/sink_max": values["sink"].max(),
        "attention/logit": _histogram(values["logit"], _LOGIT_EDGES),
    }
    if len(relative):
        tags["attention/relative_entropy_min"] = relative.min()
        tags["attention/relative_entropy_median"] = np.median(relative)
        tags["attention/relative_entropy"] = _histogram(relative, _ENTROPY_EDGES)
    return tags | _texts(heads)


def _texts(heads: Sequence[HeadNumbers]) -> dict[str, Text]:
    """Return where the numbers over all heads come from."""
    lowest = min(heads, key=lambda head: head.entropy)
    largest = max(heads, key=lambda head: head.logit)
    sink = max(heads, key=lambda head: head.sink)
    key = f"key {sink.sink_key}" if sink.sink_key < POSITIONS else f"a key from number {POSITIONS} on"
    return {
        "attention/lowest_entropy": Text(f"{lowest}: {lowest.entropy:.3g} nats"),
        "attention/largest_logit": Text(f"{largest}: {largest.logit:.4g}"),
        "attention/strongest_sink": Text(f"{sink}, {key}: {100 * sink.sink:.3g} % of the attention"),
    }


def _histogram(values: Any, edges: Any) -> Histogram:
    finite = values[np.isfinite(values)]
    return Histogram.of(finite.clip(edges[0], edges[-1]), edges, len(values) - len(finite))


def per_layer_tags(heads: Sequence[HeadNumbers]) -> dict[str, Any]:
    """Return each layer's mean entropy and sink, and its largest logit."""
    tags: dict[str, Any] = {}
    for layer, group in groupby(heads, key=lambda head: head.layer):
        own = list(group)
        tags |= {
            f"attention/{layer}_entropy": np.mean([head.entropy for head in own]),
            f"attention/{layer}_logit": np.max([head.logit for head in own]),
            f"attention/{layer}_sink": np.mean([head.sink for head in own]),
        }
    return tags
