"""Statistics of a tensor by unit and over all elements, in float64 and in blocks of bounded size.

Reductions to a bool or along columns for both ends at once cost ten times what these operations do on a CPU.
"""

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
        ranges, moments = _of_block(part)
        units = ranges if units is None else UnitRanges.merge_rows(units, ranges)
        elements = moments if elements is None else FourthMoments.merge_rows(elements, moments)
    assert units is not None
    assert elements is not None
    return units, elements


def _of_block(rows: Tensor) -> tuple[Tensor, Tensor]:
    exact = rows.to(torch.float64)
    if rows.dtype == torch.float64:  # whose squares may leave its range
        return ranges_of(exact), fourth_moments_of(exact.reshape(-1, 1))
    return _narrow_ranges(exact), _narrow_moments(exact.reshape(-1))


def _narrow_ranges(rows: Tensor) -> Tensor:
    """Return `ranges_of` rows whose squares float64 holds."""
    norm = (rows * rows).sum(dim=0).sqrt()
    zeros = torch.eq(rows, 0.0, out=torch.empty_like(rows)).sum(dim=0)
    count = torch.full_like(norm, float(rows.shape[0]))
    return torch.stack([count, norm, rows.amin(dim=0), rows.amax(dim=0), zeros])


def _narrow_moments(values: Tensor) -> Tensor:
    """Return `fourth_moments_of` values [n] whose fourth powers float64 holds, as [6, 1]."""
    bad = torch.ne(values * 0.0, 0.0, out=torch.empty_like(values)).sum()
    mean = values.mean()
    centred = values - mean
    squares = centred * centred
    second = torch.dot(centred, centred)
    safe = torch.where(second == 0, 1.0, second)
    third, fourth = torch.dot(squares, centred) / safe**1.5, torch.dot(squares, squares) / safe**2
    count = torch.full_like(second, float(len(values)))
    mean = torch.where(bad > 0, float("nan"), mean)
    return torch.stack([count, mean, second.sqrt(), third, fourth, bad])[:, None]
