"""Sums whose bits do not depend on the order of the addends, of float64 values of any size.

After Demmel and Nguyen (2015, "Parallel reproducible summation"): the exponents of float64 are cut into
places of `WIDTH` bits that are the same for all values. A value is split at the borders of the places, so
that each part is a whole number of its place's unit, and parts of one place add up without any error, up to
2^27 of them. Of a sum the highest place that any value reaches is kept and the two below it: what is left out
is less than 2^-52 of the largest value for each value.

A sum is a row of float64 [2 + PLACES]: the sum of nonfinite values, the number of the highest place, and the
sums of the parts from there down.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 26
PLACES = 3
_NONE = -(1 << 20)  # below the place of any value


def split(values: Tensor) -> Tensor:
    """Return the sums of one value each, float64 [n, 2 + PLACES], from float64 [n]."""
    finite = torch.isfinite(values)
    rest = torch.where(finite, values, 0.0)
    exponent = torch.frexp(rest).exponent - 1  # of the leading bit
    top = torch.div(exponent, WIDTH, rounding_mode="floor").to(torch.float64)
    top = torch.where(rest == 0, float(_NONE), top)
    parts = []
    for place in range(PLACES):
        unit = torch.where(rest == 0, 0.0, (top - place) * WIDTH)
        part = _ldexp(torch.trunc(_ldexp(rest, -unit)), unit)
        parts.append(part)
        rest = rest - part
    special = torch.where(finite, torch.zeros_like(values), values)
    return torch.stack([special, top, *parts], dim=-1)


def add_up(sums: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return the sum of the sums [n, 2 + PLACES] of each group; `group` int64 [n] are their numbers."""
    special = sums.new_zeros(groups).index_add(0, group, sums[:, 0])
    top = sums.new_full((groups,), float(_NONE)).scatter_reduce(0, group, sums[:, 1], "amax")
    lower = (top[group] - sums[:, 1]).to(torch.int64)  # how many places a row's own begin below the group's
    total = sums.new_zeros((groups, PLACES))
    for place in range(PLACES):
        target = lower + place
        kept = target < PLACES
        total = total.index_put((group[kept], target[kept]), sums[kept, 2 + place], accumulate=True)
    return torch.cat([special[:, None], top[:, None], total], dim=1)


def total(sums: Tensor) -> Tensor:
    """Return the sums as float64 [n], from the lowest place up; nonfinite where a value was."""
    value = sums[:, 1 + PLACES]
    for place in range(PLACES - 1, 0, -1):
        value = value + sums[:, 1 + place]
    return value + sums[:, 0]


def _ldexp(values: Tensor, exponent: Tensor) -> Tensor:
    """Return values * 2^exponent in two exact steps: one power alone could leave the range of float64."""
    half = torch.trunc(exponent / 2)
    return values * _power_of_two(half) * _power_of_two(exponent - half)


def _power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent from the bits of a float64, which no device rounds."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)
