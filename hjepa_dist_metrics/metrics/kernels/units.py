"""Statistics of a tensor by unit and over all elements, in float64 and in blocks of bounded size."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa_dist_metrics.states import FourthMoments, UnitRanges
from hjepa_dist_metrics.states.layers.fourth_moments import fourth_moments_of
from hjepa_dist_metrics.states.layers.unit_ranges import ranges_of
from hjepa_dist_metrics.states.rows import blocks


def unit_statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the blocks of `UnitRanges` [5, units] and `FourthMoments` [6, 1] of rows [n, units], n > 0."""
    units = elements = None
    for part, _ in blocks(rows, None):
        exact = part.to(torch.float64)
        ranges, moments = ranges_of(exact), fourth_moments_of(exact.reshape(-1, 1))
        units = ranges if units is None else UnitRanges.merge_rows(units, ranges)
        elements = moments if elements is None else FourthMoments.merge_rows(elements, moments)
    assert units is not None
    assert elements is not None
    return units, elements
