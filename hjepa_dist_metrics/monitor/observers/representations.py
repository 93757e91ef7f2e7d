"""What a step of self-distillation shows, and which metrics it feeds.

The collapse alert judges the context's and the target's finest level and the streams that users name. Coarser
levels are means of tokens, alike by design, and predictions rightly have a lower rank than their targets:
they keep what the context tells of those. Both have the whole table, to be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import (
    Collapse,
    EMADynamics,
    HierarchyFeatures,
    Masking,
    PredictionQuality,
)
from hjepa_dist_metrics.metrics.validation import require_features, require_mask
from hjepa_dist_metrics.monitor.metric_registry import MetricRegistry
from hjepa_dist_metrics.monitor.validation import require_one_mask_a_sample
from hjepa_dist_metrics.parallel import unwrap

# One stream, several by name, or the levels of a hierarchy, fine to coarse.
Streams = Tensor | Mapping[str, Tensor] | Sequence[Tensor]
Masks = Tensor | Mapping[str, Tensor] | Sequence[Tensor | None] | None
Encoders = tuple[nn.Module, nn.Module]


class Observing:
    """Feed the metrics of representations, masks and the teacher; each appears with its first observation."""

    def __init__(self, families: MetricRegistry, model: nn.Module, encoders: Encoders | None) -> None:
        self.families, self.model, self._encoders = families, model, encoders

    def features(self, features: Streams, valid: Masks, ids: Tensor | None, histograms: bool) -> None:
        """Add features: levels make a hierarchy, the finest of which is also the target's stream."""
        if isinstance(features, Sequence):
            self._levels(features, valid, ids, histograms)
            return
        for name, tensor in _streams(features).items():
            require_features("features" if name is None else f"features {name!r}", tensor)
            mask = valid.get(name) if isinstance(valid, Mapping) and name is not None else valid
            if not (mask is None or isinstance(mask, Tensor)):
                raise ConfigError("valid masks by name go with features by name, a list of them with a list")
            self._collapse(name, tensor).update(tensor, mask, ids)

    def _levels(self, features: Sequence[Tensor], valid: Masks, ids: Tensor | None, histograms: bool) -> None:
        masks = [None] * len(features) if valid is None else valid
        if isinstance(masks, (Tensor, Mapping)):
            raise ConfigError("features by level go with a list of valid masks, one a level")
        for i, level in enumerate(features):
            require_features(f"features of level {i}", level)
        dims = [level.shape[-1] for level in features]
        hierarchy = self.families.ensure("hierarchy", HierarchyFeatures, lambda: HierarchyFeatures(dims))
        hierarchy.update(features, masks, histograms=histograms)
        self._collapse(None, features[0], short="target").update(features[0], masks[0], ids)
        for i, (level, mask) in enumerate(zip(features, masks, strict=True)):
            if i:
                self._collapse(f"level{i}", level, judged=False).update(level, mask, ids)

    def context(self, features: Tensor, valid: Tensor | None, ids: Tensor | None) -> None:
        """Add the context encoder's features."""
        require_features("context_features", features)
        self._collapse("context", features, short="context").update(features, valid, ids)

    def predictions(
        self,
        predictions: Sequence[Tensor],
        targets: Sequence[Tensor],
        valid: Sequence[Tensor | None] | None,
        ids: Tensor | None,
    ) -> None:
        """Add predictions and what they were to match, level by level."""
        dims = [level.shape[-1] for level in predictions]
        quality = self.families.ensure(
            "prediction", PredictionQuality, lambda: PredictionQuality(len(dims), dims)
        )
        quality.update(predictions, targets, valid, ids)
        for i, level in enumerate(predictions):
            mask = None if valid is None else valid[i]
            self._collapse(f"prediction{i}", level, judged=False).update(level, mask, ids)

    def mask(self, mask: Tensor, samples: int, count_blocks: bool) -> None:
        """Add masks, bool [B, N] or [B, rows, columns], True = masked, of `samples` samples at most."""
        require_mask("mask", mask, grid=True)
        require_one_mask_a_sample(mask, samples)
        grid = (mask.shape[1], mask.shape[2]) if mask.ndim == 3 else None
        flat = mask.reshape(len(mask), -1)
        masking = self.families.ensure("masking", Masking, lambda: Masking(flat.shape[1], grid))
        masking.update(flat, count_blocks=count_blocks)

    def teacher(self, momentum: float, momentum_target: float, due: bool, due_next: bool) -> None:
        """Measure the encoders on steps that are logged; remember the teacher on the steps before those."""
        if not (due or due_next):
            return
        context, target = self.encoders()
        dynamics = self.families.ensure("ema", EMADynamics, EMADynamics)
        if due:
            dynamics.update(context, target, momentum, momentum_target)
        else:
            dynamics.remember(target)

    def encoders(self) -> Encoders:
        """Return the context and the target encoder: as given, or the model's attributes of these names."""
        if self._encoders is None:
            model = unwrap(self.model)
            found = [getattr(model, f"{which}_encoder", None) for which in ("context", "target")]
            if not (isinstance(found[0], nn.Module) and isinstance(found[1], nn.Module)):
                raise ConfigError(
                    f"{type(model).__name__} has no modules context_encoder and target_encoder: give "
                    "TrainingMonitor the pair as `encoders`"
                )
            self._encoders = (found[0], found[1])
        return self._encoders

    def _collapse(
        self, name: str | None, features: Tensor, *, short: str | None = None, judged: bool = True
    ) -> Collapse:
        return self.families.collapse(name, features, short=short, judged=judged)


def _streams(features: Any) -> Mapping[str | None, Any]:
    if isinstance(features, Tensor):
        return {None: features}
    if isinstance(features, Mapping):
        return features
    require_features("features", features)
    return {}
