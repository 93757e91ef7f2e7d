"""Where a representation's numbers warn and where they are bad, for any width and any number of rows.

The baseline is an isotropic Gaussian of the run's own width `dim` (D) with the run's own `count` (n) of
rows, so that the limits mean the same for 64 features and 1024, for 50 rows and 50,000. A fixed limit
does not: L2-normalised features of a healthy encoder have a std of at most 1/sqrt(D), .036 at D = 768,
and no effective rank exceeds n - 1.
"""

from __future__ import annotations

import math

from hjepa_dist_metrics.catalog.entry import Limits

# Of counts that are 0 in a healthy run: one is bad, or, for what training survives, a warning.
NOTHING = Limits(warn=0.0, bad=0.0, low_is_bad=False)
LITTLE = Limits(warn=0.0, bad=math.inf, low_is_bad=False)
CLIPPED_PERCENT = Limits(warn=10.0, bad=math.inf, low_is_bad=False)
OVERHEAD_PERCENT = Limits(warn=5.0, bad=math.inf, low_is_bad=False)


def best_rank(dim: int, count: int) -> float:
    """Return the largest rank that `count` centred rows of width `dim` can have, at least 1."""
    return float(max(min(dim, count - 1), 1))


def effective_rank_limits(dim: int, count: int) -> Limits:
    """Return a quarter of the best rank as the warning, a twentieth as collapse.

    An effective rank is at least 1, so that a twentieth alone would never be reached below 20 dimensions:
    collapse to a line (up to 1.1) is bad there too.
    """
    best = best_rank(dim, count)
    warn = 0.25 * best
    return Limits(warn=warn, bad=max(0.05 * best, min(1.1, warn)), low_is_bad=True)


def rankme_limits(dim: int, count: int) -> Limits:
    """Return a third of min(D, n) as the warning, a tenth as collapse, for ranks of singular values.

    Singular values fall more slowly than eigenvalues, their squares: of a spectrum that falls like a power
    law, the rank of the ones is two to three times that of the others.
    """
    best = float(max(min(dim, count), 1))
    warn = best / 3.0
    return Limits(warn=warn, bad=max(0.1 * best, min(1.1, warn)), low_is_bad=True)


def mean_std_limits(dim: int, count: int) -> Limits:
    """Return 0.3 / sqrt(D) as the warning, 0.03 / sqrt(D) as collapse; `count` does not matter."""
    best = 1.0 / math.sqrt(max(dim, 1))
    return Limits(warn=0.3 * best, bad=0.03 * best, low_is_bad=True)


def mean_similarity_limits(dim: int, count: int) -> Limits:
    """Return 0.5 as the warning, 0.9 as collapse, at any width and number of rows."""
    return Limits(warn=0.5, bad=0.9, low_is_bad=False)


def straggler_limits(dim: int, count: int) -> Limits:
    """Return 0.75 of the fastest rank's speed as the warning, half of it as bad."""
    return Limits(warn=0.75, bad=0.5, low_is_bad=True)


# Gradient norm of a model with several heads, and gradient norm of one head over another's.
GRADIENT_NORM_RANGE = (1e-3, 100.0)
HEAD_RATIO_RANGE = (0.1, 10.0)


def psnr_gap_limits(dim: int, count: int) -> Limits:
    """Return 3 dB between training and validation frames as the warning, 5 dB as overfitting."""
    return Limits(warn=3.0, bad=5.0, low_is_bad=False)


def similarity_gap_limits(dim: int, count: int) -> Limits:
    """Return a similarity lower by 0.1 on validation frames as the warning, by 0.2 as overfitting."""
    return Limits(warn=0.1, bad=0.2, low_is_bad=False)


def similarity_limits(dim: int, count: int) -> Limits:
    """Return a similarity to the frozen encoder of 0.85 as the warning, 0.7 as poor."""
    return Limits(warn=0.85, bad=0.7, low_is_bad=True)
