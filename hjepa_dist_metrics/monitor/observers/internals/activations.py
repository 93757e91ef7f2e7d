"""Activations of the model's blocks, and their figure over depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hjepa_dist_metrics.metrics import ActivationStatistics
from hjepa_dist_metrics.monitor.observer import Scope
from hjepa_dist_metrics.monitor.observers.internals.forward import FIGURES, ForwardObserver
from hjepa_dist_metrics.monitor.observers.internals.sketches import drawing


class ActivationFigure(ActivationStatistics):
    """Draw `activation/depth` from what `ActivationStatistics` measures."""

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the drawing; {} before the first update."""
        blocks = self.blocks(states).get("activation", [])
        if not blocks:
            return {}
        from hjepa_dist_metrics.figures.internals.pictures import activation_depth

        rms, absmax = ({block.name: getattr(block, name) for block in blocks} for name in ("rms", "absmax"))
        return {"activation/depth": drawing(partial(activation_depth, rms, absmax))}


class Activations(ForwardObserver):
    """Feed `ActivationStatistics`, with the settings `logging.activations`."""

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run; ConfigError where the settings name modules that the model has not."""
        settings = scope.config.activations
        self._make = partial(ActivationStatistics, scope.model, settings.modules, layout=scope.layout)
        self._make_figure = partial(ActivationFigure, scope.model, settings.modules, layout=scope.layout)
        self._make()
        super().attach(scope)

    def hooks(self, families: Sequence[str]) -> Iterator[Any]:
        """Add hooks that feed the metrics of the families, and yield their handles."""
        metrics = [self._metric(family) for family in families]
        yield from metrics[0].hooks(metrics, self.run)

    def _metric(self, family: str) -> ActivationStatistics:
        settings = self.scope.config.activations
        if family == FIGURES:
            return self.scope.metric("activation_figure", ActivationFigure, self._make_figure, family)
        make = partial(self._make, gradients=settings.gradients, per_block=settings.per_block)
        return self.scope.metric("activations", ActivationStatistics, make, family)
