"""Probes of labelled features: rows on some steps, accuracies at the cadence of representations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.ssl.probes.stream import StreamProbes
from hjepa_dist_metrics.metrics.validation import require_features
from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.states.sketches.recent_sample import UNIFORM

_FAMILY = "representations"
_LOOKS = 32  # steps between two logs at which rows are taken

Labelled = Iterator[tuple[str, Tensor, Tensor | None]]


class Probes(Observer):
    """Hand the rows and labels of about 32 steps between two logs to a linear and a kNN probe per stream.

    Streams are those of `features` by name, "features" where there is one, "target" for the finest of a
    hierarchy's levels, and "context" for `context_features`.
    """

    takes = ("labels",)
    also = ("features", "valid", "ids", "context_features", "context_valid")
    family = None

    def __init__(self) -> None:
        self._labelled = False

    @property
    def takes_next(self) -> bool:
        """Return whether the coming step's features are used where it has labels, as far as is known."""
        return self._labelled and self.is_due

    @property
    def is_due(self) -> bool:
        """Return whether the coming step's labelled features are used."""
        scope = self.scope
        between = scope.steps_between(_FAMILY) if scope.config.probes.enabled else None
        return between is not None and (scope.step % max(1, between // _LOOKS) == 0 or scope.is_due(_FAMILY))

    def observe(
        self,
        labels: Tensor,
        features: Any = None,
        valid: Any = None,
        ids: Tensor | None = None,
        context_features: Tensor | None = None,
        context_valid: Tensor | None = None,
    ) -> None:
        """Add a step's rows; the arguments are those of `TrainingMonitor.step`."""
        self._labelled = True
        if not self.is_due:
            return
        for name, rows, mask in labelled_streams(features, valid):
            self._add(name, rows, labels, mask, ids)
        if context_features is not None:
            self._add("context", context_features, labels, context_valid, ids)

    def _add(self, name: str, rows: Tensor, labels: Tensor, mask: Tensor | None, ids: Tensor | None) -> None:
        require_features(f"features {name!r}", rows)
        scope, dim = self.scope, rows.shape[-1]
        settings, half_life = scope.config.probes, float(scope.steps_between(_FAMILY) or UNIFORM)
        probe = scope.metric(
            f"probes_{name}",
            StreamProbes,
            lambda: StreamProbes(dim, settings.num_classes, name, settings.queue, half_life),
            _FAMILY,
        )
        scope.run(lambda: probe.update(rows, labels, mask, ids, scope.step))


def labelled_streams(features: Any, valid: Any) -> Labelled:
    """Yield name, features and mask of each stream of `TrainingMonitor.step`'s features."""
    if features is None:
        return
    if isinstance(features, Mapping):
        masks = valid if isinstance(valid, Mapping) else {}
        if valid is not None and not isinstance(valid, Mapping):
            raise ConfigError("valid masks by name go with features by name")
        for name, rows in features.items():
            yield name, rows, masks.get(name)
    elif isinstance(features, Sequence):
        yield "target", features[0], valid[0] if isinstance(valid, Sequence) else None
    else:
        yield "features", features, valid
