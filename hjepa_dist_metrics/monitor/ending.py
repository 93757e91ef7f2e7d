"""The end of a run whose ranks need not end at the same step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hjepa_dist_metrics.metrics import DistributedMetric
from hjepa_dist_metrics.states import Max, Sum


class Ending(DistributedMetric):
    """Count the ranks that have finished and the last step of any; it writes no tag of its own."""

    persistent = True

    def __init__(self) -> None:
        self.add_state("finished", Sum())
        self.add_state("last_step", Max())

    def update(self, last_step: int) -> None:
        """Record that this rank has finished."""
        self.finished.update(1)
        self.last_step.update(last_step)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing: the monitor reads the states."""
        return {}
