"""Classifiers that a probe makes of labelled rows, and what they score on rows that they have not seen."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.ssl.formulas.rows import unit_rows
from hjepa_dist_metrics.metrics.ssl.probes.logistic import fit_logistic
from hjepa_dist_metrics.metrics.ssl.probes.rows import from_scaled
from hjepa_dist_metrics.states.scales import power_of_two

_CONSTANT = 1e-6  # of a feature's size: its spread is rounding
_BLOCK = 1 << 24  # scores at a time


class Classifier(ABC):
    """Give the probabilities of classes; made of scaled rows [n, D + 1], see `scaled_rows`, on the host."""

    def __init__(self, labels: Tensor) -> None:
        # The labels that occur, in order; a row of another label is a miss.
        self.labels, self.classes = torch.unique(labels, return_inverse=True)

    @abstractmethod
    def log_probabilities(self, rows: Tensor) -> Tensor:
        """Return ln p of each class of scaled rows, float64 [m, C]."""

    def scores(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return what adds up: hits, hits among the best five, summed loss, its rows, all rows; float64 [5].

        Rows of labels that the classifier does not know are misses and have no loss. Of equal scores the
        smaller label comes first.
        """
        size = max(1, _BLOCK // max(len(self.labels), self._memory()))
        pairs = zip(torch.split(rows, size), torch.split(labels, size), strict=True)
        parts = [self._scores(part, truth) for part, truth in pairs if len(part)]
        return torch.stack(parts).sum(dim=0) if parts else torch.zeros(5, dtype=torch.float64, device="cpu")

    def _memory(self) -> int:
        return 1

    def _scores(self, rows: Tensor, labels: Tensor) -> Tensor:
        given = self.log_probabilities(rows)
        place = torch.searchsorted(self.labels, labels).clamp(max=len(self.labels) - 1)
        known = self.labels[place] == labels
        own = given.gather(1, place[:, None])
        order = torch.arange(given.shape[1], device=given.device)
        ahead = ((given > own) | ((given == own) & (order < place[:, None]))).sum(dim=1)
        losses = torch.where(known, -own[:, 0], 0.0)
        columns = ((ahead < 1) & known, (ahead < 5) & known, losses, known, torch.ones_like(known))
        return torch.stack([column.to(torch.float64).sum() for column in columns])


class LinearClassifier(Classifier):
    """Logistic regression on standardised rows."""

    def __init__(self, rows: Tensor, labels: Tensor, l2: float) -> None:
        super().__init__(labels)
        self._exponent = rows[:, -1].amax().to(torch.float64)
        x = self._plain(rows)
        self._mean = x.mean(dim=0)
        spread = x.std(dim=0, correction=0)
        varies = spread > _CONSTANT * x.abs().amax(dim=0)
        self._factor = torch.where(varies, 1.0 / torch.where(varies, spread, 1.0), 0.0)
        self._weights, self._bias = fit_logistic(self._standardised(x), self.classes, len(self.labels), l2)

    def _plain(self, rows: Tensor) -> Tensor:
        """Return rows / 2^exponent of the largest training row."""
        return from_scaled(rows) * power_of_two(rows[:, -1:].to(torch.float64) - self._exponent)

    def _standardised(self, x: Tensor) -> Tensor:
        return (x - self._mean) * self._factor

    def log_probabilities(self, rows: Tensor) -> Tensor:
        """Return the log-softmax of W x + b."""
        return torch.log_softmax(self._standardised(self._plain(rows)) @ self._weights.T + self._bias, dim=1)


class NearestNeighbours(Classifier):
    """A vote of the `k` most similar rows, each with the weight exp(cosine / temperature)."""

    def __init__(self, rows: Tensor, labels: Tensor, k: int, temperature: float) -> None:
        super().__init__(labels)
        self._bank = unit_rows(from_scaled(rows)).to(torch.float32)
        self._k, self._temperature = min(k, len(rows)), temperature

    def _memory(self) -> int:
        return len(self._bank)

    def log_probabilities(self, rows: Tensor) -> Tensor:
        """Return the logarithm of each class's share of the votes; minus infinity where it has no vote."""
        cosine = unit_rows(from_scaled(rows)).to(torch.float32) @ self._bank.T
        best, place = cosine.topk(self._k, dim=1)
        votes = torch.softmax(best.to(torch.float64) / self._temperature, dim=1)
        shares = votes.new_zeros((len(rows), len(self.labels)))
        return shares.scatter_add(1, self.classes[place], votes).log()
