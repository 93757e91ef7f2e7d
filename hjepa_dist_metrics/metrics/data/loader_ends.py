"""Ranks that run out of batches before the others do."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import Max


class LoaderEnds(DistributedMetric):
    """Report `data/steps_missing`, the most steps that a rank took fewer than another, and whose they are.

    `data/ended_early_rank` is the lowest rank with the fewest steps.

    >>> ends = LoaderEnds()
    >>> ends.update(missing=3)  # this rank ran out of batches three steps before the others
    >>> ends.compute()
    {'data/steps_missing': 3.0, 'data/ended_early_rank': 0.0}
    """

    def __init__(self) -> None:
        self.add_state("missing", Max())

    def update(self, missing: int) -> None:
        """Report how many steps fewer than others this rank has taken so far."""
        self.missing.update(float(missing))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        missing = states["missing"].value
        if not missing >= 0:
            return {}
        early = {"data/ended_early_rank": float(states["missing"].rank or 0)} if missing else {}
        return {"data/steps_missing": missing, **early}


_data = partial(Entry, dashboard="stability")

ENTRIES = (
    _data(
        "data/steps_missing",
        "steps missing on a rank",
        "Steps by which the rank with the fewest steps since the start is behind the one with most, written "
        "where there are any: while a rank waits for the others, and at the end of an epoch or of the run.",
        unit="steps",
        healthy="0, and not written; others are batches that a rank's loader did not have",
    ),
    _data(
        "data/ended_early_rank",
        "first rank to run out of batches",
        "Number of the lowest rank with the fewest steps, behind data/steps_missing.",
        unit="rank",
        dashboard="",
    ),
)
