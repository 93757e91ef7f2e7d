"""What both probes share: a bounded queue of labelled rows, of which a part is held out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.ssl.collapse import token_ids
from hjepa_dist_metrics.metrics.ssl.probes.classifiers import Classifier
from hjepa_dist_metrics.metrics.ssl.probes.held_out import HeldOutScores
from hjepa_dist_metrics.metrics.ssl.probes.rows import labelled_rows, require_in_range, scaled_rows
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.states import Max, Min, RecentSample
from hjepa_dist_metrics.states.base import moved

_FEWEST, _MOST, _NUMBERS = 1024, 16384, 1 << 21  # rows of a queue, and numbers in it
_BLOCK = 1 << 20  # numbers that are copied in float64 at a time
_HELD_OUT = 3  # rows whose key has these bits at 0 are held out, one in four


class Probe(DistributedMetric):
    """Keep labelled rows of the whole run, newer ones rather than older ones, and classify a held-out part.

    The queue is one sample of the rows of all ranks, the same for any split. A quarter of it, always the same
    ids, is never learned from and gives the numbers. See `LinearProbe` and `KNNProbe`.
    """

    persistent: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        num_classes: int | None,
        stream: str,
        queue: int | None,
        half_life: float,
    ) -> None:
        if num_classes is not None and num_classes < 2:
            raise ConfigError(f"a probe needs two classes or more, got num_classes={num_classes}")
        self.dim, self.num_classes, self.stream = dim, num_classes, stream
        size = min(_MOST, max(_FEWEST, _NUMBERS // max(dim, 1))) if queue is None else queue
        self.add_state("rows", RecentSample(size, dim + 1, half_life))
        self.add_state("highest_label", Max())
        self.add_state("lowest_label", Min())

    @property
    def name(self) -> str:
        """Return what errors call the probe."""
        return f"{type(self).__name__} of {self.stream!r}"

    def update(
        self,
        features: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        ids: Tensor | None = None,
        step: int = 0,
    ) -> None:
        """Add features [N, D], or [B, N, D] that are averaged over tokens, with labels [N], [B] or [B, N].

        Labels are 0 to num_classes - 1; -1 and -100 mean that a sample has none. `valid` bool [N] or [B, N]
        leaves rows or tokens out. `ids` are the samples' global numbers, so that a sample that comes again
        takes its own place and is held out for good or not at all. `step` is the number of the training step:
        newer rows push out older ones, and a sample's newest row its older one.
        """
        given = labelled_rows(self.name, features, labels, valid, self.dim)
        marks = torch.where(given.counted, given.labels, 0)
        if labels.device.type == "cpu" and len(marks):  # known without a wait: said at once
            require_in_range(self.name, int(marks.min()), int(marks.max()), self.num_classes)
        self.highest_label.update(marks)
        self.lowest_label.update(marks)
        names = None if ids is None else self._names(ids, features, labels)
        size = max(1, _BLOCK // self.dim)
        for start in range(0, len(marks), size):
            part = slice(start, start + size)
            own = None if names is None else names[part]
            self.rows.update(scaled_rows(given.rows[part]), marks[part], given.counted[part], own, step)

    def _names(self, ids: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Return a number for each row: of tokens where the labels are of tokens."""
        numbers = moved(ids, features.device)
        numbers = token_ids(numbers, features) if labels.ndim == 2 else numbers
        if numbers.shape != labels.shape:
            shapes = f"{list(labels.shape)}, got {list(ids.shape)}"
            raise ConfigError(f"{self.name} expected ids of its labels' shape {shapes}")
        return numbers.reshape(-1)

    @property
    @abstractmethod
    def parts(self) -> tuple[SingleProbe, ...]:
        """Return the probes of one classifier each whose numbers this one reports."""


class SingleProbe(Probe):
    """A probe of one classifier; a subclass says which."""

    kind: ClassVar[str]

    @property
    def parts(self) -> tuple[SingleProbe, ...]:
        """Return the probe itself."""
        return (self,)

    @abstractmethod
    def classifier_of(self, rows: Tensor, labels: Tensor) -> Classifier:
        """Return the classifier that learns from scaled rows."""

    @abstractmethod
    def numbers(self, scores: Any) -> dict[str, float]:
        """Return tags without their prefix from the five sums of `Classifier.scores`, of a row or more."""

    def classifier(self, states: Mapping[str, Any]) -> Classifier | None:
        """Return the classifier that learns from all rows of merged states; None where there are none."""
        (rows, labels, _), (others, truth, _) = self._split(states)
        rows, labels = torch.cat([rows, others]), torch.cat([labels, truth])
        return self.classifier_of(rows, labels) if len(rows) else None

    def held_out(self, stream: str | None = None, context: ProcessContext | None = None) -> HeldOutScores:
        """Return a metric that scores held-out batches with what all ranks have learned by now.

        It reports the probe's numbers as those of `stream`, the probe's own by default. A collective call.
        ConfigError where no rank has a labelled row.
        """
        merged = self._merged(lambda states: {"classifier": self.classifier(states)}, context) or {}
        if merged.get("classifier") is None:
            raise ConfigError(f"{self.name} has no labelled row to learn from: call `update` first")
        return HeldOutScores(self, merged["classifier"], self.stream if stream is None else stream)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Learn from the queue and score what is held out; {} where either is empty."""
        highest, lowest = states["highest_label"], states["lowest_label"]
        if math.isfinite(highest.value):
            require_in_range(self.name, lowest.value, highest.value, self.num_classes)
        (rows, labels, bad), (others, truth, _) = self._split(states)
        if not len(rows) or not len(others):
            return {}
        numbers = self.numbers(self.classifier_of(rows, labels).scores(others, truth))
        if bad:
            numbers = dict.fromkeys(numbers, math.nan)
        numbers |= {"rows": len(rows), "nonfinite": bad}
        return {self.tag(name): number for name, number in numbers.items()}

    def tag(self, name: str, stream: str | None = None) -> str:
        """Return the tag of one of the probe's numbers."""
        return f"probe/{self.stream if stream is None else stream}_{self.kind}_{name}"

    def _split(self, states: Mapping[str, Any]) -> tuple[tuple[Tensor, Tensor, int], ...]:
        """Return finite rows and labels, and the number of the others, to learn from and held out."""
        sample = states["rows"]
        rows, labels, keys = sample.rows.cpu(), sample.labels.cpu(), sample.keys.cpu()
        finite = torch.isfinite(rows[:, -1])
        bad = int((~finite).sum())
        held_out = (keys & _HELD_OUT) == 0
        learned, scored = finite & ~held_out, finite & held_out
        return (rows[learned], labels[learned], bad), (rows[scored], labels[scored], bad)
