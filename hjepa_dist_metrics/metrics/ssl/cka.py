"""How alike two representations of the same things are: linear CKA, correlation (Gram) matrices."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def linear_cka(joint: Tensor, first: int) -> float:
    """Return linear CKA (Kornblith et al., 1905.00414) from the covariance of joined rows [x, y].

    |C_xy|_F^2 / (|C_xx|_F |C_yy|_F), the first `first` columns being x. 1 means the same up to rotation and
    scale; 0 where either side is constant.
    """
    xx, yy, xy = joint[:first, :first], joint[first:, first:], joint[:first, first:]
    scale = float(torch.linalg.matrix_norm(xx) * torch.linalg.matrix_norm(yy))
    if scale == 0:
        return 0.0
    return float(torch.linalg.matrix_norm(xy)) ** 2 / scale if math.isfinite(scale) else math.nan


def correlation(covariance: Tensor) -> npt.NDArray[np.float64]:
    """Return the correlation matrix [D, D] of a covariance; rows of constant features are 0."""
    std = covariance.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(std > 0, 1.0 / std, torch.zeros_like(std))
    matrix: npt.NDArray[np.float64] = (covariance * torch.outer(inverse, inverse)).clamp(-1.0, 1.0).numpy()
    return matrix
