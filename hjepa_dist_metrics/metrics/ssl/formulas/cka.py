"""How much two representations of the same things have in common: linear CKA, correlation (Gram) matrices."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.states import PairedCovariance


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


def debiased_cka(joint: PairedCovariance) -> float | None:
    """Return linear CKA from unbiased estimates of the HSIC (Song et al. 2012; Nguyen et al., 2010.15327).

    Its mean is 0 for independent x and y, of few rows too, and it may be negative. None of fewer than four
    rows, and where a side varies so little that its own estimate is not positive.
    """
    moments, _ = joint.scaled()
    count = moments.count
    if count < 4:
        return None
    hsic = _unbiased_hsic(moments, count)
    if not np.isfinite(hsic).all():
        return math.nan
    own = hsic.diagonal()
    return float(hsic[0, 1] / math.sqrt(own[0]) / math.sqrt(own[1])) if (own > 0).all() else None


def _unbiased_hsic(moments: PairedCovariance, count: int) -> npt.NDArray[np.float64]:
    """Return n (n - 3) times the unbiased HSIC of x and x, x and y, y and y, float64 [2, 2].

    With M = X^T Y of centred rows, a = |x|^2 and b = |y|^2 of each row:
    |M|_F^2 - n / (n - 2) sum a b + sum a sum b / ((n - 1) (n - 2)).
    """
    m2, sides = moments.m2, (slice(None, moments.first), slice(moments.first, None))
    squares = np.array([[float(m2[one, other].square().sum()) for other in sides] for one in sides])
    traces = np.array([float(m2[side, side].trace()) for side in sides])
    diagonal = count / (count - 2) * moments.energy.cpu().numpy()
    centring: npt.NDArray[np.float64] = np.outer(traces, traces) / ((count - 1) * (count - 2))
    unbiased: npt.NDArray[np.float64] = squares - diagonal + centring
    return unbiased


def correlation(covariance: Tensor) -> npt.NDArray[np.float64]:
    """Return the correlation matrix [D, D] of a covariance; rows of constant features are 0."""
    std = covariance.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(std > 0, 1.0 / std, torch.zeros_like(std))
    matrix: npt.NDArray[np.float64] = (covariance * torch.outer(inverse, inverse)).clamp(-1.0, 1.0).numpy()
    return matrix
