"""Eigenvalues of merged moments: costly to work out, small to send."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]


def symmetric_eigenvalues(matrix: Tensor) -> Tensor:
    """Return the eigenvalues of a symmetric float64 [D, D], rising; NaN where the matrix is not finite.

    NaN too where LAPACK does not converge: an error on one rank would cost the whole sync.
    """
    if not bool(torch.isfinite(matrix).all()):
        return _unknown(matrix)
    try:
        values: Tensor = torch.linalg.eigvalsh(matrix)
    except LinAlgError:
        return _unknown(matrix)
    return values


def discriminant_eigenvalues(between: Tensor, within: Tensor, delta: float) -> Tensor:
    """Return the eigenvalues of Sw^-1/2 Sb Sw^-1/2, Sw = within + delta I, rising, none below zero.

    They are those of L^-1 Sb L^-T with Cholesky's L L^T = Sw, at a third of the cost of the root. Where
    `delta` is lost in rounding beside `within`, the root is taken of eigenvalues that are `delta` at least.
    """
    if not bool(torch.isfinite(between).all() and torch.isfinite(within).all()):
        return _unknown(between)
    scatter = within + delta * torch.eye(len(within), dtype=within.dtype, device=within.device)
    lower, failed = torch.linalg.cholesky_ex(scatter)
    if bool(failed):
        try:
            values, vectors = torch.linalg.eigh(scatter)
        except LinAlgError:
            return _unknown(between)
        whitening = (vectors * values.clamp(min=delta).rsqrt()) @ vectors.T
        white = whitening @ between @ whitening
    else:
        half = torch.linalg.solve_triangular(lower, between, upper=False)
        white = torch.linalg.solve_triangular(lower, half.T, upper=False)
    return symmetric_eigenvalues(white).clamp(min=0)


def _unknown(matrix: Tensor) -> Tensor:
    return torch.full((len(matrix),), float("nan"), dtype=torch.float64, device=matrix.device)
