"""Formulas on second moments: spectra, ranks, similarities. Host float64 in, numbers out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS = float(torch.finfo(torch.float64).eps)


def eigenvalues(matrix: Tensor, scale: float = 0.0) -> Tensor:
    """Return the eigenvalues of a symmetric float64 [D, D], rising, with rounding noise set to zero.

    Below max(lambda_1, scale) * D * eps an eigenvalue is noise; `scale` is the size of what was subtracted
    to get the matrix (the squared mean, for a covariance).
    """
    values = torch.linalg.eigvalsh(matrix.to(torch.float64))
    cutoff = max(float(values[-1]), scale) * matrix.shape[0] * _EPS
    return torch.where(values > cutoff, values, torch.zeros_like(values))


def entropy_rank(weights: Tensor) -> float:
    """Return exp(H(p)) of non-negative weights, p = w / sum w, 0 log 0 = 0; 1 where all are zero.

    With the eigenvalues of a covariance it is the effective rank (Roy and Vetterli 2007), with the singular
    values of the features RankMe (Garrido et al., 2210.02885).
    """
    total = float(weights.sum())
    if total <= 0:
        return 1.0
    p = weights[weights > 0] / total
    return math.exp(float(-(p * p.log()).sum()))


def mean_similarity(count: int, mean: Tensor, second_moment_trace: float) -> float:
    """Return the mean cosine over ALL pairs of different rows: (|sum u|^2 - sum |u|^2) / (n (n - 1)).

    `mean` [D] is the mean of the unit rows, `second_moment_trace` the sum of their squared norms: n, less
    for rows of zeros. 0 where there is no pair.
    """
    if count < 2:
        return 0.0
    total = count * mean
    return float((total @ total - second_moment_trace) / (count * (count - 1)))


def pairwise(rows: Tensor) -> Tensor:
    """Return the cosine of every pair i < j of unit rows [k, D], float64 [k (k - 1) / 2]."""
    rows = rows.to(torch.float64)
    gram = rows @ rows.T
    upper = torch.triu_indices(len(rows), len(rows), offset=1)
    return gram[upper[0], upper[1]]
