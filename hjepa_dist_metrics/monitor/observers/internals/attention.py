"""Attention of the model's heads, and their figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from hjepa_dist_metrics.metrics import AttentionStatistics
from hjepa_dist_metrics.monitor.observers.internals.forward import FIGURES, ForwardObserver
from hjepa_dist_metrics.monitor.observers.internals.sketches import drawing

_SHOWN = {"entropy": "entropy (nats)", "logit": "largest logit", "sink": "largest share of one key"}


class AttentionFigure(AttentionStatistics):
    """Draw `attention/heads` from what `AttentionStatistics` measures."""

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the drawing; {} before the first update."""
        heads = self.head_numbers(states)
        if not heads:
            return {}
        from hjepa_dist_metrics.figures.internals.pictures import head_maps

        layers = {layer: list(own) for layer, own in groupby(heads, key=lambda head: head.layer)}
        numbers = {
            title: {layer: [getattr(head, name) for head in own] for layer, own in layers.items()}
            for name, title in _SHOWN.items()
        }
        return {"attention/heads": drawing(partial(head_maps, numbers))}


class Attention(ForwardObserver):
    """Feed `AttentionStatistics`, with the settings `logging.attention`."""

    def hooks(self, families: Sequence[str]) -> Iterator[Any]:
        """Add hooks that feed the metrics of the families, and yield their handles."""
        metrics = [self._metric(family) for family in families]
        yield from metrics[0].hooks(metrics, self.run)

    def _metric(self, family: str) -> AttentionStatistics:
        scope = self.scope
        if family == FIGURES:
            make_figure = partial(AttentionFigure, scope.model, layout=scope.layout)
            return scope.metric("attention_figure", AttentionFigure, make_figure, family)
        per_layer = scope.config.attention.per_layer
        make = partial(AttentionStatistics, scope.model, per_layer=per_layer, layout=scope.layout)
        return scope.metric("attention", AttentionStatistics, make, family)
