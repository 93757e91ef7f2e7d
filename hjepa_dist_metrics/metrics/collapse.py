"""Representational collapse, read from moments of all rows of all ranks (S0 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.spectrum import eigenvalues, entropy_rank, mean_similarity, pairwise
from hjepa_dist_metrics.states import Covariance, Sample
from hjepa_dist_metrics.values import Histogram

SIMILARITY_EDGES = np.linspace(-1.0, 1.0, 65)
DEFAULT_SAMPLE = 512


class Collapse(DistributedMetric):
    """Tell whether features [N, D] or [B, N, D] still use their space.

    Everything is measured on unit rows x / |x|. Exact over all rows: `collapse/mean_std_per_dim`,
    `min_std_per_dim`, `effective_rank`, `mean_similarity`, `num_samples` and `nonfinite` (rows),
    `is_constant`. From a uniform sample of `sample` rows over all ranks: `max_similarity`,
    `similarity_histogram`. With a name the tags read `collapse/{name}_effective_rank` and so on.
    """

    def __init__(
        self, dim: int, name: str | None = None, sample: int = DEFAULT_SAMPLE, seed: int = 0
    ) -> None:
        self.dim = dim
        self.prefix = "collapse/" if name is None else f"collapse/{name}_"
        self.add_state("unit", Covariance(dim))
        self.add_state("sample", Sample(sample, dim, seed))

    def update(self, features: Tensor, valid: Tensor | None = None, ids: Tensor | None = None) -> None:
        """Add rows; `valid` [N] or [B, N] leaves padding out, `ids` are the rows' or samples' global numbers.

        Without `ids` the sample is drawn by the rows' content, which is as good but treats equal rows alike.
        """
        if features.ndim not in (2, 3) or features.shape[-1] != self.dim:
            shape = list(features.shape)
            raise ConfigError(f"expected features [N, {self.dim}] or [B, N, {self.dim}], got shape {shape}")
        unit = unit_rows(features)
        self.unit.update(unit, valid)
        self.sample.update(unit, valid, ids=None if ids is None else token_ids(ids, features))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to the merged moments; {} where there is no row."""
        unit = states["unit"]
        if unit.count == 0:
            return {}
        values = {"num_samples": unit.count, "nonfinite": unit.nonfinite}
        values |= _moments(unit) | _similarities(states["sample"].rows_kept)
        return {self.prefix + name: value for name, value in values.items()}


def unit_rows(features: Tensor) -> Tensor:
    """Return x / |x| in float32 or better; rows of zeros stay zero."""
    x = features.detach()
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp(min=1e-12)


def token_ids(ids: Tensor, features: Tensor) -> Tensor:
    """Return an id for each row: the ids themselves, or [B, N] numbers from the ids [B] of samples."""
    if tuple(ids.shape) == tuple(features.shape[:-1]):
        return ids
    if features.ndim != 3 or tuple(ids.shape) != (features.shape[0],):
        raise ConfigError(f"expected ids of shape {list(features.shape[:-1])} or [B], got {list(ids.shape)}")
    tokens = torch.arange(features.shape[1], device=ids.device)
    return ids[:, None] * features.shape[1] + tokens


def _moments(unit: Any) -> dict[str, Any]:
    """Return what follows from the merged moments of the unit rows."""
    matrix = unit.matrix
    std = matrix.diagonal().clamp(min=0).sqrt()
    finite = bool(torch.isfinite(matrix).all())
    squared_mean = float(unit.mean @ unit.mean)
    rank = entropy_rank(eigenvalues(matrix, squared_mean)) if finite else float("nan")
    trace = float(unit.m2.trace()) + unit.count * squared_mean
    return {
        "is_constant": float(finite and not matrix.any()),
        "mean_std_per_dim": float(std.mean()),
        "min_std_per_dim": float(std.min()),
        "effective_rank": rank,
        "mean_similarity": mean_similarity(unit.count, unit.mean, trace),
    }


def _similarities(rows: Tensor) -> dict[str, Any]:
    """Return the largest cosine between two sampled rows and the histogram of all; {} below two rows."""
    if len(rows) < 2:
        return {}
    cosines = pairwise(rows).numpy()
    finite = cosines[np.isfinite(cosines)].clip(-1.0, 1.0)
    largest = float(cosines.max()) if len(finite) == len(cosines) else float("nan")
    histogram = Histogram.of(finite, SIMILARITY_EDGES, nonfinite=len(cosines) - len(finite))
    return {"max_similarity": largest, "similarity_histogram": histogram}
