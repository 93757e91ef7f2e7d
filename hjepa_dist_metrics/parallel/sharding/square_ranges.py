"""Sums of squares that neither overflow nor vanish, at any size of what is squared, and that just add up.

A float64 norm of 1e200 has no square in float64. Squares are therefore kept in three ranges, scaled by powers
of two, after Blue (1978), as LAPACK's `dnrm2` does: what adds up are three numbers instead of one.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LARGE, _SMALL = 2.0**500, 2.0**-480
_SCALE = 2.0**600


def square_ranges(norms: Tensor) -> Tensor:
    """Return the squares of float64 norms [...] as [3, ...]: of large ones scaled down, plain, scaled up."""
    large, small = norms > _LARGE, norms < _SMALL
    nothing = torch.zeros_like(norms)
    down = torch.where(large, norms / _SCALE, nothing)
    up = torch.where(small, norms * _SCALE, nothing)
    plain = torch.where(large | small, nothing, norms)  # NaN stays here
    return torch.stack([down, plain, up]).square_()


def root(ranges: Tensor) -> Tensor:
    """Return the norms [...] from sums of squares in ranges [3, ...]."""
    large, plain, small = ranges.unbind()
    shrunk = _SCALE**-1 / _SCALE
    of_large = (large + plain * shrunk).sqrt() * _SCALE
    of_plain = (plain + small * shrunk).sqrt()
    of_small = small.sqrt() / _SCALE
    found = torch.where(large > 0, of_large, torch.where(plain == 0, of_small, of_plain))
    return torch.where(plain.isnan() | large.isnan(), plain + large, found)


def root_sum_square(norms: Tensor) -> Tensor:
    """Return the norm of float64 norms [..., n] over their last dimension."""
    return root(square_ranges(norms).sum(dim=-1))
