"""How far features are from a standard Gaussian: the SIGReg statistic (LeJEPA, 2511.08544)."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DIRECTIONS = 32
KNOTS = 17
_LAST_KNOT = 3.0
_LAST_ANGLE = 1e9
_STEP = _LAST_KNOT / (KNOTS - 1)


@functools.lru_cache(maxsize=32)
def directions(dim: int, device: torch.device) -> Tensor:
    """Return unit directions [D, DIRECTIONS]: the same on every rank and device."""
    generator = torch.Generator("cpu").manual_seed(0x51672E6)
    drawn = torch.randn(dim, DIRECTIONS, generator=generator, dtype=torch.float64, device="cpu")
    length: Tensor = torch.linalg.vector_norm(drawn, dim=0)
    return (drawn / length).to(device, non_blocking=True)


def characteristic_sums(rows: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return sums over rows [n, D] of cos(t x.a) and sin(t x.a), float64 [2, KNOTS - 1, DIRECTIONS].

    t runs over the knots above 0, a over the directions; `valid` [n] leaves rows out. The knots are
    multiples of one step, so that the powers of one complex number give them all. Angles are reduced in
    float64; one beyond 1e9, whose place on the circle is rounding, adds nothing.
    """
    x = rows.to(torch.float64)
    angle = _STEP * (x @ directions(x.shape[-1], x.device))
    length = (angle.abs() <= _LAST_ANGLE).to(torch.float64)
    length = torch.where(torch.isfinite(angle), length, float("nan"))
    angle = torch.remainder(angle, 2.0 * math.pi)
    if valid is not None:
        angle = angle.masked_fill(~valid[:, None], 0.0)
        length = length.masked_fill(~valid[:, None], 0.0)
    precision = torch.float64 if rows.dtype == torch.float64 else torch.float32
    unit = torch.polar(length.to(precision), angle.to(precision))
    power, sums = unit, [unit.sum(dim=0)]
    for _ in range(KNOTS - 2):
        power = power * unit
        sums.append(power.sum(dim=0))
    total = torch.stack(sums).to(torch.complex128)
    return torch.stack([total.real, total.imag])


def sigreg(sums: npt.NDArray[np.float64], count: int) -> float:
    """Return the mean over directions of n * integral of |phi_n(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt.

    phi_n is the empirical characteristic function; the integral over the real line is twice a trapezoid over
    the knots in [0, 3]. For n rows of a standard Gaussian its mean is 1.0525 at any n.
    """
    knots = _STEP * np.arange(1, KNOTS)
    gaussian = np.exp(-(knots**2) / 2.0)
    weights = 2.0 * _STEP * gaussian
    weights[-1] /= 2.0
    cosine, sine = np.asarray(sums, dtype=np.float64) / count
    error = (cosine - gaussian[:, None]) ** 2 + sine**2
    return float(count * (weights @ error).mean())
