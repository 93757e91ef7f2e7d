"""LinearProbe: logistic regression on features, online and over all ranks."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.metrics.ssl.probes.base import SingleProbe
from hjepa_dist_metrics.metrics.ssl.probes.classifiers import Classifier, LinearClassifier
from hjepa_dist_metrics.states.sketches.recent_sample import UNIFORM


class LinearProbe(SingleProbe):
    """Tell how well a linear classifier tells the classes of features, which get no gradient from it.

    Tags `probe/{stream}_linear_top1`, `_top5`, `_loss` (cross-entropy in nats) over held-out rows, `_rows`
    learned from and `_nonfinite` rows, where the others are NaN. Rows of all ranks come together in a bounded
    queue of `queue` rows (by default 16384, fewer of more than 128 features), a quarter of which is held out.
    At each log L-BFGS fits multinomial logistic regression with the penalty `l2` / (2 n) |W|^2 to the
    standardised rest, as scikit-learn's LogisticRegression(C=1 / l2) does: the result is that of one process
    on all samples, at any number of ranks and any cadence, and needs no learning rate. On scikit-learn's
    digits AdamW on each rank's own batches, averaged at each log, ends 8 to 13 points below it after one pass
    and 2 to 7 after ten, with up to 2 points between 1, 2 and 4 ranks. Between logs a training step costs a
    copy of its rows. `half_life` is the number of steps after which a row is half as likely to be in the
    queue as a new one.

    >>> probe = LinearProbe(dim=2, stream="encoder")
    >>> labels = torch.arange(512) % 2
    >>> probe.update(nn.functional.one_hot(labels).float() + 0.1 * torch.randn(512, 2), labels)
    >>> probe.compute()["probe/encoder_linear_top1"]
    1.0
    """

    kind: ClassVar[str] = "linear"

    def __init__(
        self,
        dim: int,
        num_classes: int | None = None,
        stream: str = "features",
        *,
        queue: int | None = None,
        half_life: float = UNIFORM,
        l2: float = 1.0,
    ) -> None:
        super().__init__(dim, num_classes, stream, queue, half_life)
        self.l2 = l2

    def classifier_of(self, rows: Tensor, labels: Tensor) -> Classifier:
        """Return logistic regression on the rows."""
        return LinearClassifier(rows, labels, self.l2)

    def numbers(self, scores: Any) -> dict[str, float]:
        """Return accuracies and the loss; NaN where no row has a known label."""
        hits, among_five, loss, known, count = (float(part) for part in scores)
        nats = loss / known if known else float("nan")
        return {"top1": hits / count, "top5": among_five / count, "loss": nats}


_linear = partial(Entry, dashboard="probes", family="representations")

ENTRIES = (
    _linear(
        "probe/{name}_linear_top1",
        "linear probe of {name}",
        "Share of held-out rows whose class logistic regression on the other labelled rows finds. The "
        "features get no gradient from it.",
        healthy="rises; a fall while the loss goes on falling is forgetting",
    ),
    _linear(
        "probe/{name}_linear_top5",
        "linear probe of {name}, best five",
        "Share of held-out rows whose class is among the five most probable ones.",
        healthy="rises; 1 where there are five classes or fewer",
    ),
    _linear(
        "probe/{name}_linear_loss",
        "loss of the linear probe of {name}",
        "Cross-entropy of the linear probe on held-out rows of classes that it has learned.",
        unit="nats",
        healthy="falls; ln(classes) is chance",
    ),
    _linear(
        "probe/{name}_linear_rows",
        "rows of the linear probe of {name}",
        "Labelled rows that the probe learns from: three quarters of its queue.",
        unit="rows",
        dashboard="",
        healthy="constant once the queue is full",
    ),
    _linear(
        "probe/{name}_linear_nonfinite",
        "nonfinite rows of the linear probe of {name}",
        "Labelled rows with a NaN or an infinity; the probe's other numbers are NaN then.",
        unit="rows",
        dashboard="",
        healthy="0",
        bounds=NOTHING,
    ),
)
