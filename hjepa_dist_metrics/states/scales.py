"""Powers of two by which rows are divided before their squares leave the range of float64.

Scaling by a power of two costs no digits. Exponents are multiples of 256, so that rows of ordinary size are
never scaled at all, and states of rows of the same size seldom have different ones.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

STEP = 256
_LARGEST = 768  # beyond it 2^-exponent is no longer exact


def scale_exponent(*values: Tensor) -> Tensor:
    """Return the exponent for values of all tensors together, 0-d float64: 0 unless beyond 2^-128 to 2^128.

    0 where a value is not finite: the moments are NaN then at any scale.
    """
    largest = torch.stack([_largest(tensor) for tensor in values]).amax()
    exponent = STEP * torch.round(torch.log2(largest) / STEP)
    usable = torch.isfinite(largest) & (largest > 0)
    return torch.where(usable, exponent.clamp(-_LARGEST, _LARGEST), torch.zeros_like(exponent))


def _largest(values: Tensor) -> Tensor:
    if values.numel() == 0:
        return values.new_zeros(())
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2^exponent; exactly 1 where the exponent is 0."""
    return torch.exp2(exponent)


def unit_scale(values: Tensor, dim: int = -1) -> Tensor:
    """Return the largest magnitude along `dim`, 1 where it is 0 or not finite: divide by it, then square."""
    largest = values.abs().amax(dim=dim, keepdim=True)
    return torch.where(torch.isfinite(largest) & (largest > 0), largest, torch.ones_like(largest))


def times_power_of_two(value: float, exponent: int) -> float:
    """Return value * 2^exponent, the largest float64 of its sign where that is beyond float64."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(sys.float_info.max, value)


def standard_deviation(values: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation (divided by n) of values of any size; NaN where one is not finite."""
    scale = _magnitude(values)
    return scale * float((values / scale).std())


def square_sum(values: npt.NDArray[np.float64]) -> float:
    """Return the sum of squares of values of any size, the largest float64 where it is beyond float64."""
    scale = _magnitude(values)
    total = scale * float((values / scale) @ (values / scale)) * scale
    return min(total, sys.float_info.max)  # NaN stays


def _magnitude(values: npt.NDArray[np.float64]) -> float:
    """Return the largest magnitude; 1 of zeros alone, NaN where a value is not finite."""
    largest = float(np.abs(values).max(initial=0.0))
    return (largest or 1.0) if math.isfinite(largest) else math.nan
