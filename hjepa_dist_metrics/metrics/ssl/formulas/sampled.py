"""What is read from the pairs of a uniform sample of unit rows. Host float64 in, numbers out."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import mean_similarity
from hjepa_dist_metrics.values import Histogram

SIMILARITY_EDGES = np.linspace(-1.0, 1.0, 65)
# Rows nearer than this share of the root of the mean squared distance of two rows are duplicates.
_DUPLICATE = 1e-3


def pair_numbers(rows: Tensor) -> dict[str, Any]:
    """Return what the pairs of sampled unit rows [k, D] say; {} below two rows.

    `uniformity`, `centered_similarity` (mean cosine of two rows about the mean of all) and `duplicate_share`
    (of rows that another sampled row equals but for a thousandth of the usual distance), and
    `neighbor_distance` (median distance of a row to its nearest, over the usual distance).
    """
    if len(rows) < 2:
        return {}
    centred = centred_rows(rows)
    squared = _squared_distances(centred)
    names = ("uniformity", "centered_similarity", "duplicate_share", "neighbor_distance")
    if not bool(torch.isfinite(squared).all()):
        return dict.fromkeys(names, math.nan)
    numbers = (uniformity(above_diagonal(squared)), centred_similarity(centred), *nearest(squared))
    return dict(zip(names, numbers, strict=True))


def cosine_numbers(rows: Tensor) -> dict[str, Any]:
    """Return `max_similarity`, the largest cosine of two sampled rows, and `similarity_histogram` of all."""
    if len(rows) < 2:
        return {}
    wide = rows.to(torch.float64)
    cosines = above_diagonal(wide @ wide.T)
    finite = cosines[torch.isfinite(cosines)]
    counted = finite.clamp(-1.0, 1.0)
    histogram = Histogram(
        SIMILARITY_EDGES,
        _counts(counted).numpy(),
        *((float(counted.min()), float(counted.max())) if len(counted) else (0.0, 0.0)),
        float(counted.sum()),
        float(counted @ counted),
        nonfinite=len(cosines) - len(counted),
    )
    return {"max_similarity": float(cosines.max()), "similarity_histogram": histogram}


def centred_rows(rows: Tensor) -> Tensor:
    """Return rows about their mean, float64: zero where all rows are the same."""
    shifted = rows.to(torch.float64) - rows[0].to(torch.float64)
    return shifted - shifted.mean(dim=0)


def _squared_distances(centred: Tensor) -> Tensor:
    """Return the squared distance of every two rows [k, k]; about their mean little cancels."""
    gram = centred @ centred.T
    squares = gram.diagonal().clone()
    return gram.mul_(-2.0).add_(squares).add_(squares[:, None]).clamp_(min=0.0)


def uniformity(squared_distances: Tensor) -> float:
    """Return log of the mean of exp(-2 d^2) over the squared distances of all pairs (2005.10242).

    Of unit rows it is 0 for a point, -4 + 4 / D and a little more for the whole sphere.
    """
    return math.log1p(float(torch.expm1(-2.0 * squared_distances).mean()))


def centred_similarity(centred: Tensor) -> float:
    """Return the mean cosine of two rows about the mean of all; 0 where all rows are the same."""
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    unit = centred / torch.where(length == 0, 1.0, length)
    return mean_similarity(len(unit), unit.mean(dim=0), float(unit.square().sum()))


def nearest(squared_distances: Tensor) -> tuple[float, float]:
    """Return the share of rows that have a twin, and the median distance of a row to its nearest.

    From the squared distance of every two rows [k, k]; the median is over the root of their mean, and 0 where
    all rows are the same.
    """
    count = len(squared_distances)
    usual = float(squared_distances.sum()) / (count * (count - 1))
    closest = squared_distances.clone().fill_diagonal_(math.inf).amin(dim=1)
    twins = float((closest <= _DUPLICATE**2 * usual).to(torch.float64).mean())
    return twins, math.sqrt(float(closest.median()) / usual) if usual > 0 else 0.0


def above_diagonal(matrix: Tensor) -> Tensor:
    """Return what lies above the diagonal, row by row; NumPy picks it faster than torch."""
    return torch.from_numpy(matrix.numpy()[_upper(len(matrix))])


@functools.lru_cache(maxsize=8)
def _upper(size: int) -> npt.NDArray[np.bool_]:
    return np.triu(np.ones((size, size), dtype=np.bool_), 1)


def _counts(cosines: Tensor) -> Tensor:
    """Count cosines between `SIMILARITY_EDGES`, whose width is a power of two: scaling by it is exact."""
    bins = len(SIMILARITY_EDGES) - 1
    places = (cosines * (bins / 2)).floor_().to(torch.int64).add_(bins // 2).clamp_(max=bins - 1)
    return torch.bincount(places, minlength=bins)
