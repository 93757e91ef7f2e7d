"""What a sync brought back of ranks that need not have the same metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hjepa_dist_metrics.metrics.value_codec import Documents, decode_value, encode_value
from hjepa_dist_metrics.sync import Merged, Participation, SyncResult
from hjepa_dist_metrics.values import Drawing, Value

if TYPE_CHECKING:
    from hjepa_dist_metrics.metrics.base import DistributedMetric

Metrics = Mapping[str, "DistributedMetric"]
Formulas = Callable[[Metrics, Merged], dict[str, Value]]


class UnevenResult:
    """Hold merged states of metrics, of which `own` are those that this rank has, and other ranks may not."""

    def __init__(self, own: Metrics, result: SyncResult) -> None:
        self.merged: Merged = result.merged
        self.participation: Participation = result.participation
        self.metrics = {name: metric for name, metric in own.items() if name in result.asked}
        self._result = result

    def values(self, formulas: Formulas) -> dict[str, Value]:
        """Return every metric's values: the same on every rank. A collective call where a rank lacks one.

        Pictures that are yet to be drawn cannot be sent: those are of this rank's own metrics.
        """
        session = self._result.session
        if self._result.complete:
            return session.judged(lambda: formulas(self.metrics, self.merged))
        own = formulas(self.metrics, self.merged)
        sent = {tag: encode_value(value) for tag, value in own.items() if not isinstance(value, Drawing)}
        everybody = session.again(self._result, Documents.of(sent))
        return {**own, **{tag: decode_value(text) for tag, text in everybody.texts.items()}}
