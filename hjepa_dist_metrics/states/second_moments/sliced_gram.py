"""Float64 products of rows on devices whose float64 is slow, made of exact float32 products.

Consumer cards do a 64th of their float32 operations in float64. A float32 product would not do: rounding at
6e-8 of the largest eigenvalue drowns the small ones, of whose roots RankMe is made. So each column is written
with digits of 8 bits ("Ozaki scheme", Ozaki et al. 2012): products of digits, added up over at most 1,024
rows, are whole numbers up to 2^24, which float32 holds exactly, TF32 included.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# Compute capabilities whose float64 runs at half of the speed of float32; others have a 32nd or a 64th of it.
_FAST_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
_BITS = 8
_FIRST = 7  # bits before the first digit's point: it lies between -128 and 128
_DIGITS = 5  # the rest is below 2^-40 of a column's largest element
_ROWS = 1 << (24 - 2 * _FIRST)


@functools.lru_cache(maxsize=64)
def float64_is_slow(device: torch.device) -> bool:
    """Return whether 15 float32 products take less time on a device than one in float64."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) not in _FAST_FLOAT64


def gram(rows: Tensor) -> Tensor:
    """Return X^T X of float64 rows X [n, D], float64 [D, D], by the fastest exact way of their device."""
    return sliced_gram(rows) if float64_is_slow(rows.device) else rows.T @ rows


def sliced_gram(rows: Tensor) -> Tensor:
    """Return X^T X of float64 rows X [n, D] from float32 products, without synchronising.

    Each element is rounded to 2^-41 of the largest in its column; all that follows is exact up to float64.
    Rows and columns of a nonfinite element are NaN.
    """
    peaks = _peaks(rows)
    usable = torch.isfinite(peaks) & (peaks > 0)
    exponent = torch.frexp(torch.where(usable, peaks, torch.ones_like(peaks))).exponent
    scale = torch.exp2(exponent.to(torch.float64))
    total = rows.new_zeros((rows.shape[1], rows.shape[1]))
    for block in torch.split(rows, _ROWS):
        total += _block_gram(torch.where(usable, block / scale, torch.zeros_like(block)))
    lost = torch.where(torch.isfinite(peaks), 0.0, float("nan"))
    return total * scale[:, None] * scale + (lost[:, None] + lost)


def _peaks(rows: Tensor) -> Tensor:
    if not rows.shape[0]:
        return rows.new_zeros(rows.shape[1])
    low, high = torch.aminmax(rows, dim=0)
    return torch.maximum(-low, high)


def _block_gram(block: Tensor) -> Tensor:
    """Return X^T X of at most 1,024 rows whose elements lie between -1 and 1."""
    digits = _digits(block)
    total = block.new_zeros((block.shape[1], block.shape[1]))
    for i, one in enumerate(digits):
        for j, other in enumerate(digits[: i + 1]):
            product = (one.T @ other).to(torch.float64)
            if i != j:
                product = product + product.T
            total += product * 2.0 ** -(2 * _FIRST + _BITS * (i + j))
    return total


def _digits(block: Tensor) -> list[Tensor]:
    """Return d_i, whole numbers of float32 between -128 and 128: X is the sum of d_i 2^-(7 + 8 i)."""
    digits, rest = [], block * 2.0**_FIRST
    for _ in range(_DIGITS):
        digit = rest.round()
        digits.append(digit.to(torch.float32))
        rest = (rest - digit) * 2.0**_BITS
    return digits
