"""Features, the context encoder's features, and predictions with their targets.

The collapse alert judges the context's and the target's finest level and the streams that users name. Coarser
levels are means of tokens, which resemble each other by design, and predictions rightly have a lower rank
than their targets: both have the whole table, to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import (
    Collapse,
    DistributedMetric,
    HierarchyFeatures,
    PredictionQuality,
    ViewAgreement,
)
from hjepa_dist_metrics.metrics.validation import require_features
from hjepa_dist_metrics.monitor.observer import Observer

M = TypeVar("M", bound=DistributedMetric)

# One stream, several by name, or the levels of a hierarchy, fine to coarse.
Streams = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
StreamMasks = Tensor | Mapping[str, Tensor] | Sequence[Tensor | None] | None
# A tensor for each level of a hierarchy, or one where there is one level.
Levels = Tensor | Sequence[Tensor]
LevelMasks = Tensor | Sequence[Tensor | None] | None


class Representations(Observer):
    """Measure collapse, the hierarchy's levels, and how well predictions meet their targets."""

    takes = ("features", "context_features", "predictions", "views")
    also = ("valid", "ids", "context_valid", "targets", "prediction_valid", "views_valid")
    family = "representations"

    def __init__(self) -> None:
        self._judged: dict[str, int] = {}  # the width of each stream that is judged, by tag prefix

    def observe(
        self,
        features: Streams | None = None,
        valid: StreamMasks = None,
        ids: Tensor | None = None,
        context_features: Tensor | None = None,
        context_valid: Tensor | None = None,
        predictions: Sequence[Tensor] | None = None,
        targets: Sequence[Tensor] = (),
        prediction_valid: Sequence[Tensor | None] | None = None,
        views: Tensor | None = None,
        views_valid: Tensor | None = None,
    ) -> None:
        """Add what a step hands over; the arguments are those of `TrainingMonitor.step`.

        `views` [B, V, D] are embeddings of augmented views of the step's samples, `views_valid` bool [B, V].
        """
        if features is not None:
            self.scope.run(lambda: self._add_features(features, valid, ids))
        if context_features is not None:
            require_features("context_features", context_features)
            metric = self._collapse("context", context_features, short="context")
            self.scope.run(lambda: metric.update(context_features, context_valid, ids))
        if predictions is not None:
            self.scope.run(lambda: self._add_predictions(predictions, targets, prediction_valid, ids))
        if views is not None:
            require_features("views", views)
            agreement = self._metric("views", ViewAgreement, lambda: ViewAgreement(views.shape[-1]))
            self.scope.run(lambda: agreement.update(views, views_valid))

    def _add_features(self, features: Streams, valid: StreamMasks, ids: Tensor | None) -> None:
        if isinstance(features, Sequence):
            self._add_levels(features, valid, ids)
            return
        for name, tensor in _streams(features).items():
            require_features("features" if name is None else f"features {name!r}", tensor)
            mask = valid.get(name) if isinstance(valid, Mapping) and name is not None else valid
            if not (mask is None or isinstance(mask, Tensor)):
                raise ConfigError("valid masks by name go with features by name, a list of them with a list")
            self._collapse(name, tensor).update(tensor, mask, ids)

    def _add_levels(self, features: Sequence[Tensor], valid: StreamMasks, ids: Tensor | None) -> None:
        """Add the levels of a hierarchy, the finest of which is the target's stream."""
        masks = [None] * len(features) if valid is None else valid
        if isinstance(masks, (Tensor, Mapping)):
            raise ConfigError("features by level go with a list of valid masks, one a level")
        for i, level in enumerate(features):
            require_features(f"features of level {i}", level)
        dims = [level.shape[-1] for level in features]
        hierarchy = self._metric("hierarchy", HierarchyFeatures, lambda: HierarchyFeatures(dims))
        hierarchy.update(features, masks, histograms=self.scope.is_due("histograms"))
        self._collapse(None, features[0], short="target").update(features[0], masks[0], ids)
        for i, (level, mask) in enumerate(zip(features, masks, strict=True)):
            if i:
                self._collapse(f"level{i}", level, judged=False).update(level, mask, ids)

    def _add_predictions(
        self,
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        valid: Sequence[Tensor | None] | None,
        ids: Tensor | None,
    ) -> None:
        dims = [level.shape[-1] for level in predictions]
        quality = self._metric("prediction", PredictionQuality, lambda: PredictionQuality(len(dims), dims))
        quality.update(predictions, targets, valid, ids)
        for i, level in enumerate(predictions):
            mask = None if valid is None else valid[i]
            self._collapse(f"prediction{i}", level, judged=False).update(level, mask, ids)

    def _collapse(
        self, name: str | None, features: Tensor, *, short: str | None = None, judged: bool = True
    ) -> Collapse:
        key = "collapse" if name is None else f"collapse_{name}"
        dim = features.shape[-1]
        metric = self._metric(key, Collapse, lambda: Collapse(dim, name, short=short))
        if judged:
            self._judged[metric.prefix] = metric.dim
        return metric

    def _metric(self, name: str, kind: type[M], make: Callable[[], M]) -> M:
        return self.scope.metric(name, kind, make, "representations")


def _streams(features: Any) -> Mapping[str | None, Any]:
    if isinstance(features, Tensor):
        return {None: features}
    if isinstance(features, Mapping):
        return features
    require_features("features", features)
    return {}
