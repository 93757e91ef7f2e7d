"""Seeded 64-bit keys for rows, the same on every device and for every split.

The finaliser is SplitMix64's (Steele et al. 2014); int64 arithmetic wraps as unsigned arithmetic does.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def mix(values: Tensor, seed: int) -> Tensor:
    """Return non-negative int64 keys that look random and depend on value and seed alone."""
    z = values * _GAMMA + _signed(seed * 0x632BE59BD9B4E019 + 0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    # The largest key is reserved for "no row".
    return ((z ^ _shift(z, 31)) & 0x7FFFFFFFFFFFFFFF).clamp(max=0x7FFFFFFFFFFFFFFE)


def row_keys(rows: Tensor, seed: int) -> Tensor:
    """Return a key for each float32 row [N, D] from its bits: equal rows have equal keys."""
    bits = rows.contiguous().view(torch.int32)
    positions = torch.arange(rows.shape[1], dtype=torch.int64, device=rows.device)
    factors = mix(positions, seed ^ 0x5DEECE66D) | 1
    total = torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
    for start in range(0, rows.shape[1], 64):
        block = bits[:, start : start + 64].to(torch.int64)
        total = total + (block * factors[start : start + 64]).sum(dim=1)
    return mix(total, seed)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Shift right without the sign bit's copies."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
