"""Formulas on second moments: spectra, ranks, similarities. Host float64 in, numbers out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states import ClassScatter
from hjepa_dist_metrics.states.scales import times_power_of_two

_DEAD = 0.01  # of the usual standard deviation
_EPS = float(torch.finfo(torch.float64).eps)


def without_noise(values: Tensor, scale: float = 0.0) -> Tensor:
    """Return rising eigenvalues [D] with rounding noise set to zero.

    Below max(lambda_1, scale) * D * eps an eigenvalue is noise; `scale` is `rounding_of` the rows' mean where
    the matrix is a covariance. NaN stays NaN.
    """
    cutoff = max(float(values[-1]), scale) * len(values) * _EPS
    return torch.where(values <= cutoff, torch.zeros_like(values), values)


def rounding_of(mean: Tensor) -> float:
    """Return the scale of the noise in the covariance of float64 rows about their `mean`.

    Rows are shifted before they are squared: what rounding leaves is that of the mean and of the rows
    themselves, (eps |mean|)^2.
    """
    return _EPS * squared_length(mean)


def squared_length(row: Tensor) -> float:
    """Return |x|^2. A sum rounds alike wherever the row lies in memory, a dot product may not."""
    return float(row.square().sum())


def covariance_spectrum(matrix: Tensor, mean: Tensor) -> Tensor:
    """Return the eigenvalues of the covariance of rows as they are, rising, noise set to zero."""
    return without_noise(torch.linalg.eigvalsh(matrix), rounding_of(mean))


def entropy_rank(weights: Tensor) -> float:
    """Return exp(H(p)) of non-negative weights, p = w / sum w, 0 log 0 = 0; 1 where all are zero.

    With the eigenvalues of a covariance it is the effective rank (Roy and Vetterli 2007), with the singular
    values of the features RankMe (Garrido et al., 2210.02885).
    """
    total = float(weights.sum())
    if math.isnan(total):
        return math.nan
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
    return (squared_length(count * mean) - second_moment_trace) / (count * (count - 1))


def std_similarity(count: int, mean: Tensor, scatter: Tensor) -> float:
    """Return the standard deviation of the cosine over ALL pairs of different rows.

    With the unit rows' `mean` m [D] and centred `scatter` S = sum (u - m)(u - m)^T [D, D], whose trace is t,
    the variance is (2 n m^T S m + |S|_F^2 - t^2 / (n - 1) - z (n - z) / n) / (n (n - 1)), where z rows are
    zero: no small difference of large numbers, however near the rows are to each other. 0 where there is no
    pair.
    """
    if count < 2:
        return 0.0
    trace = float(scatter.trace())
    squared = squared_length(mean)
    if not math.isfinite(trace + squared):
        return math.nan
    zeros = round(count - count * squared - trace)
    along = float((scatter * torch.outer(mean, mean)).sum())
    spread = 2.0 * count * along + float(scatter.square().sum())
    variance = (spread - trace**2 / (count - 1) - zeros * (count - zeros) / count) / (count * (count - 1))
    return math.sqrt(max(variance, 0.0))


def mean_share(moments: Any) -> float:
    """Return n |mean|^2 over the sum of |x|^2 of a covariance's rows: 1 where all rows are one point.

    0 where all rows are zero.
    """
    squared = moments.count * squared_length(moments.mean)
    total = squared + float(moments.m2.trace())
    return squared / total if total != 0 else 0.0


def dead_features(variance: Tensor) -> int:
    """Return how many features have a standard deviation below 1 % of the root of the mean variance."""
    return int((variance <= _DEAD**2 * variance.mean()).sum())


def participation_ratio(covariance: Tensor) -> float:
    """Return trace(C)^2 / |C|_F^2, how many directions carry the variance; 1 without any."""
    squared = float(covariance.square().sum())
    return float(covariance.trace()) ** 2 / squared if squared > 0 else 1.0


def stable_rank(values: Tensor) -> float:
    """Return the sum of rising eigenvalues over the largest; 1 where all are zero."""
    largest = float(values[-1])
    return 1.0 if largest <= 0 else float(values.sum()) / largest


def decay_window(dim: int) -> tuple[int, int]:
    """Return the first and the last rank between which the spectrum's decay is fitted: D/16 to D/2."""
    return max(1, dim // 16), dim // 2


def spectral_decay(values: Tensor) -> tuple[float, float] | None:
    """Return alpha and R^2 of lambda_j = c j^-alpha (alpha-ReQ, 2202.05808) over `decay_window`.

    `values` are rising eigenvalues. None where the window holds fewer than three of them or any that is zero:
    the slope of a rank-deficient spectrum is the slope of its noise.
    """
    first, last = decay_window(len(values))
    window = values.flip(0)[first - 1 : last]
    if len(window) < 3 or not bool((window > 0).all()):
        return None
    x = torch.arange(first, last + 1, dtype=torch.float64, device="cpu").log()
    x, y = x - x.mean(), window.log() - window.log().mean()
    slope = float((x @ y) / (x @ x))
    spread = float(y @ y)
    residual = float((y - slope * x).square().sum())
    return -slope, 1.0 - residual / spread if spread > 0 else 1.0


def vicreg_terms(covariance: Tensor, exponent: int = 0) -> tuple[float, float]:
    """Return VICReg's variance and covariance terms (2105.04906) from the covariance of rows / 2^exponent.

    mean relu(1 - sqrt(var + 1e-4)) over features, and the sum of squared off-diagonal covariances over D.
    """
    variance = covariance.diagonal()
    whole = variance * times_power_of_two(1.0, 2 * exponent)
    spread = (1.0 - (whole + 1e-4).sqrt()).clamp(min=0).mean()
    off_diagonal = float((covariance - torch.diag(variance)).square().sum() / len(variance))
    return float(spread), times_power_of_two(off_diagonal, 4 * exponent)


def lidar(spectrum: Tensor, eps: float = 1e-8) -> float:
    """Return LiDAR (2312.04000), exp of the entropy of the eigenvalues of Sw^-1/2 Sb Sw^-1/2.

    `ClassScatter.spectrum()` gives them. 1 where all are zero.
    """
    total = float(spectrum.sum())
    if total <= 0:
        return 1.0
    p = spectrum / total + eps
    return math.exp(float(-(p * p.log()).sum()))


def discriminability(classes: ClassScatter) -> dict[str, float]:
    """Return `lidar` and `between_within_ratio` of classes against their rows; {} where none has two rows.

    The ratio is 0 where all rows are the same, infinite where rows differ between classes alone.
    """
    between, scatter, _ = classes.scaled()
    if scatter is None:
        return {}
    if not bool(torch.isfinite(between).all() and torch.isfinite(scatter).all()):
        return {"lidar": math.nan, "between_within_ratio": math.nan}
    outside, inside = float(between.trace()), float(scatter.trace())
    ratio = outside / inside if inside > 0 else math.inf if outside > 0 else 0.0
    return {"lidar": lidar(classes.spectrum()), "between_within_ratio": ratio}
