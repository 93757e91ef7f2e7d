"""What probes that are done learning score on batches of a validation set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.ssl.probes.classifiers import Classifier
from hjepa_dist_metrics.metrics.ssl.probes.rows import labelled_rows, require_in_range, scaled_rows
from hjepa_dist_metrics.states import Sum


class Scored(Protocol):
    """What a probe says of its classifier's scores."""

    dim: int
    num_classes: int | None

    @property
    def name(self) -> str:
        """Return what errors call the probe."""

    def numbers(self, scores: Any) -> dict[str, float]:
        """Return names and numbers from the five sums of `Classifier.scores`."""

    def tag(self, name: str, stream: str | None = None) -> str:
        """Return the tag of a number, of the probe's own stream by default."""


class HeldOutScores(DistributedMetric):
    """Score held-out batches of all ranks with a probe's classifier: the probe's numbers as `stream`'s.

    Every rank must have the same classifier: `LinearProbe.held_out` and `KNNProbe.held_out` make one.
    """

    def __init__(self, probe: Scored, classifier: Classifier, stream: str) -> None:
        self._probe, self._classifier, self._stream = probe, classifier, stream
        self.add_state("scores", Sum(shape=(5,)))

    def update(self, features: Tensor, labels: Tensor, valid: Tensor | None = None) -> None:
        """Score a batch, as `LinearProbe.update` takes it; on a device this waits for it."""
        probe = self._probe
        given = labelled_rows(probe.name, features, labels, valid, probe.dim)
        rows, marks, counted = (part.cpu() for part in given)
        rows, marks = scaled_rows(rows[counted]), marks[counted]
        if len(marks):
            require_in_range(probe.name, int(marks.min()), int(marks.max()), probe.num_classes)
            self.scores.update(self._classifier.scores(rows, marks))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the probe's numbers over all rows; {} where there are none."""
        scores = states["scores"].value
        if not scores[-1] > 0:
            return {}
        numbers = self._probe.numbers(scores)
        return {self._probe.tag(name, self._stream): number for name, number in numbers.items()}
