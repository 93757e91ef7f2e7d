"""The pictures of a run, made of what its batches show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from hjepa_dist_metrics.monitor.observer import Observer

if TYPE_CHECKING:
    from hjepa_dist_metrics.monitor.observers.run_figures import RunFigures


class Figures(Observer):
    """Keep what the figures are drawn from, on the steps that log them."""

    takes = ("images",)
    also = ("mask", "predictions", "targets", "prediction_valid", "ids", "blocks")
    family = "figures"

    def observe(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        predictions: Any = None,
        targets: Any = None,
        prediction_valid: Any = None,
        ids: Tensor | None = None,
        blocks: Tensor | None = None,
    ) -> None:
        """Add a batch; the arguments are those of `TrainingMonitor.step`."""
        settings = self.scope.config.figures
        if not settings.enabled:
            return
        from hjepa_dist_metrics.monitor.observers.run_figures import RunFigures, observed

        batch = observed(images, mask, predictions, targets, valid=prediction_valid, ids=ids, blocks=blocks)
        metric: RunFigures = self.scope.metric(
            "figures", RunFigures, lambda: RunFigures(batch, settings.projection), "figures"
        )
        metric.update(batch)
