"""Formulas on a matrix of similarities whose diagonal holds the right pairs. Host float64 in, numbers out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.values import Image

Matrix = npt.NDArray[np.float64]

# Similarities of float32 rows nearer than this share of their spread are equal, or than rounding of float64.
_TIE, _ROUNDING = 1e-6, 1e-14
_SIDE = 320
_COLD, _NEUTRAL, _WARM = (
    np.array(rgb, dtype=np.float64) for rgb in ((33, 102, 172), (247,) * 3, (178, 24, 43))
)
_MISSING = 128


def recall_at(similarity: Matrix, k: int) -> float:
    """Return how often a row's own column [n, n] is among its k largest; NaN where a similarity is.

    Of equally similar columns each is as likely to come first: a collapsed encoder, to which all columns are
    equal, is at chance, k / n, and not at 1.
    """
    if not np.isfinite(similarity).all():
        return float("nan")
    own = similarity.diagonal()[:, None]
    tie = max(_TIE * float(np.ptp(similarity)), _ROUNDING)
    better = (similarity > own + tie).sum(axis=1)
    equal = (np.abs(similarity - own) <= tie).sum(axis=1)
    return float(np.clip((k - better) / equal, 0.0, 1.0).mean())


def diagonal_contrast(similarity: Matrix) -> float:
    """Return (mean of the diagonal - mean of the rest) / std of the rest; 0 where the rest is constant.

    Over n pairs without any relation it scatters about 0 with a standard deviation of 1 / sqrt(n).
    """
    count = len(similarity)
    rest = similarity[~np.eye(count, dtype=bool)]
    if not np.isfinite(similarity).all():
        return float("nan")
    spread = float(rest.std()) if len(rest) else 0.0
    return 0.0 if spread <= _ROUNDING else float((similarity.diagonal().mean() - rest.mean()) / spread)


def heatmap(similarity: Matrix) -> Image:
    """Draw similarities [n, m], a square each, from -1 (blue) over 0 (white) to 1 (red); NaN is grey."""
    side = max(_SIDE // max(similarity.shape), 1)
    value = np.nan_to_num(similarity).clip(-1.0, 1.0)[..., None]
    colour = _NEUTRAL + np.where(value < 0, -value * (_COLD - _NEUTRAL), value * (_WARM - _NEUTRAL))
    colour[~np.isfinite(similarity)] = _MISSING
    pixels = colour.round().astype(np.uint8)
    return Image(pixels.repeat(side, axis=0).repeat(side, axis=1))
