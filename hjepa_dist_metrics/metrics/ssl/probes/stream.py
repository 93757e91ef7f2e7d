"""Both probes of a stream of features on one queue, as a monitor has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hjepa_dist_metrics.metrics.ssl.probes.base import Probe, SingleProbe
from hjepa_dist_metrics.metrics.ssl.probes.knn import KNNProbe
from hjepa_dist_metrics.metrics.ssl.probes.linear import LinearProbe


class StreamProbes(Probe):
    """Report what `LinearProbe` and `KNNProbe` do, from one queue."""

    def __init__(
        self, dim: int, num_classes: int | None, stream: str, queue: int | None, half_life: float
    ) -> None:
        super().__init__(dim, num_classes, stream, queue, half_life)
        # These hold no rows of their own: they are formulas.
        self._parts: tuple[SingleProbe, ...] = (
            LinearProbe(dim, num_classes, stream, queue=1),
            KNNProbe(dim, num_classes, stream, queue=1),
        )

    @property
    def parts(self) -> tuple[SingleProbe, ...]:
        """Return the two probes, whose formulas take the states of this one."""
        return self._parts

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the numbers of both."""
        return {tag: number for part in self.parts for tag, number in part.compute_from(states).items()}
