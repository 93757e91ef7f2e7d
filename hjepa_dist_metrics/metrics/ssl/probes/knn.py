"""KNNProbe: a nearest-neighbour classifier on features, online and over all ranks."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.ssl.probes.base import SingleProbe
from hjepa_dist_metrics.metrics.ssl.probes.classifiers import Classifier, NearestNeighbours
from hjepa_dist_metrics.states.sketches.recent_sample import UNIFORM


class KNNProbe(SingleProbe):
    """Tell how well the nearest neighbours of a row tell its class: nothing to train, nothing to choose.

    Tag `probe/{stream}_knn_top1`: the share of held-out rows of which the `k` most similar ones of the queue
    vote for the right class, each with exp(cosine / temperature) (k = 20 and 0.07 are DINO's, 2104.14294),
    with `_rows` in the queue and `_nonfinite` rows, where the share is NaN. The queue is that of
    `LinearProbe`: a sample of the labelled rows of all ranks, the same at any number of ranks.

    >>> probe = KNNProbe(dim=2, stream="encoder")
    >>> labels = torch.arange(512) % 2
    >>> probe.update(nn.functional.one_hot(labels).float() + 0.1 * torch.randn(512, 2), labels)
    >>> probe.compute()["probe/encoder_knn_top1"]
    1.0
    """

    kind: ClassVar[str] = "knn"

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        stream: str = "features",
        *,
        k: int = 20,
        temperature: float = 0.07,
        queue: int | None = None,
        half_life: float = UNIFORM,
    ) -> None:
        if k < 1 or not temperature > 0:
            raise ConfigError(f"expected k >= 1 and a temperature > 0, got k={k}, temperature={temperature}")
        super().__init__(dim, num_classes, stream, queue, half_life)
        self.k, self.temperature = k, temperature

    def classifier_of(self, rows: Tensor, labels: Tensor) -> Classifier:
        """Return the vote of the rows nearest to another."""
        return NearestNeighbours(rows, labels, self.k, self.temperature)

    def numbers(self, scores: Any) -> dict[str, float]:
        """Return the accuracy."""
        return {"top1": float(scores[0] / scores[-1])}


_knn = partial(Entry, family="representations")

ENTRIES = (
    _knn(
        "probe/{name}_knn_top1",
        "kNN probe of {name}",
        "Share of held-out rows whose class their nearest labelled rows by cosine vote for, as in DINO.",
        source="arXiv 2104.14294",
        dashboard="probes",
        healthy="rises; a fall while the loss goes on falling is forgetting",
    ),
    _knn(
        "probe/{name}_knn_rows",
        "rows of the kNN probe of {name}",
        "Labelled rows that vote: three quarters of the probe's queue.",
        unit="rows",
        healthy="constant once the queue is full",
    ),
    _knn(
        "probe/{name}_knn_nonfinite",
        "nonfinite rows of the kNN probe of {name}",
        "Labelled rows with a NaN or an infinity; the probe's accuracy is NaN then.",
        unit="rows",
        healthy="0",
        bounds=NOTHING,
    ),
)
