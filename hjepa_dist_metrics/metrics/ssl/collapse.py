"""Representational collapse, read from moments of all rows of all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.ssl.gaussianity import DIRECTIONS, KNOTS, characteristic_sums, sigreg
from hjepa_dist_metrics.metrics.ssl.hierarchy import pool, widened
from hjepa_dist_metrics.metrics.ssl.spectrum import (
    entropy_rank,
    lidar,
    mean_similarity,
    pairwise,
    participation_ratio,
    rounding_of,
    spectral_decay,
    stable_rank,
    std_similarity,
    uniformity,
    vicreg_terms,
    without_noise,
)
from hjepa_dist_metrics.metrics.validation import require_features
from hjepa_dist_metrics.states import ClassScatter, Covariance, Moments, Sample, Sum
from hjepa_dist_metrics.values import Histogram

SIMILARITY_EDGES = np.linspace(-1.0, 1.0, 65)
DEFAULT_SAMPLE = 512


class Collapse(DistributedMetric):
    """Tell whether features [N, D] or [B, N, D] still use their space.

    Exact over all rows of all ranks, from unit rows x / |x|: `collapse/mean_std_per_dim`, `min_std_per_dim`,
    `effective_rank`, `mean_similarity`, `std_similarity`; from the rows themselves: `rankme`,
    `participation_ratio`, `stable_rank`, `alpha_req` with `alpha_req_r2`, `vicreg_variance`,
    `vicreg_covariance`, `sigreg`; `num_samples`, `num_features`, `nonfinite` (rows), `is_constant`. From a
    uniform sample of `sample` rows: `max_similarity`, `uniformity`, `similarity_histogram`.

    One tensor [B, N, D] can collapse over its tokens and over its images. The above is over tokens; over
    images, each the mean of its tokens, there are `pooled_mean_std_per_dim`, `pooled_effective_rank` and so
    on, `lidar` and `between_within_ratio`.

    With a name the tags read `collapse/{name}_effective_rank` and so on. `short` is "context" or "target" for
    the short list `train/{short}_std`, `_norm`, `_rank`, of images. `full=False` keeps to what follows from
    the unit rows, at half the cost.
    """

    def __init__(
        self,
        dim: int,
        name: str | None = None,
        sample: int = DEFAULT_SAMPLE,
        seed: int = 0,
        *,
        short: str | None = None,
        full: bool = True,
    ) -> None:
        self.dim, self.short, self.full = dim, short, full
        self.prefix = "collapse/" if name is None else f"collapse/{name}_"
        self.add_state("unit", Covariance(dim))
        self.add_state("sample", Sample(sample, dim, seed))
        if full:
            self.add_state("raw", Covariance(dim))
            self.add_state("images", ClassScatter(dim))
            self.add_state("pooled_unit", Covariance(dim))
            self.add_state("norm", Moments())
            self.add_state("waves", Sum(shape=(2, KNOTS - 1, DIRECTIONS)))

    def update(self, features: Tensor, valid: Tensor | None = None, ids: Tensor | None = None) -> None:
        """Add rows; `valid` [N] or [B, N] leaves padding out, `ids` are the rows' or samples' global numbers.

        Without `ids` the sample is drawn by the rows' content, which is as good but treats equal rows alike.
        """
        require_features("features", features)
        if features.ndim not in (2, 3) or features.shape[-1] != self.dim:
            shape = list(features.shape)
            raise ConfigError(f"expected features [N, {self.dim}] or [B, N, {self.dim}], got shape {shape}")
        x = features.detach()
        unit = unit_rows(x)
        self.unit.update(unit, valid)
        self.sample.update(unit, valid, ids=None if ids is None else token_ids(ids, features))
        if self.full:
            kept = None if valid is None else valid.to(x.device, torch.bool, non_blocking=True)
            self._add_rows(x, kept)

    def _add_rows(self, x: Tensor, kept: Tensor | None) -> None:
        self.raw.update(x, kept)
        flat = None if kept is None else kept.reshape(-1)
        self.waves.update(characteristic_sums(x.reshape(-1, self.dim), flat))
        samples, has = (widened(x), kept) if x.ndim == 2 else pool(x, kept)
        self.norm.update(torch.linalg.vector_norm(samples, dim=-1), has)
        if x.ndim == 3:
            self.images.update(samples, has, x.to(samples.dtype) - samples[:, None], kept)
            self.pooled_unit.update(unit_rows(samples), has)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to the merged moments; {} where there is no row."""
        unit = states["unit"]
        if unit.count == 0:
            return {}
        values = {"num_samples": unit.count, "num_features": self.dim, "nonfinite": unit.nonfinite}
        values |= _unit_moments(unit, states.get("raw", unit)) | _similarities(states["sample"].rows_kept)
        tags: dict[str, Any] = {}
        if self.full:
            values |= _raw_moments(states["raw"])
            values["sigreg"] = sigreg(states["waves"].value, unit.count)
            images, pooled = states["images"], states["pooled_unit"]
            if images.between.count:
                of_images = {"num_samples": pooled.count, **_unit_moments(pooled, images.between)}
                values |= {f"pooled_{name}": value for name, value in of_images.items()}
                values |= _classes(images)
            tags = self._short_list(states, values)
        return {self.prefix + name: value for name, value in values.items()} | tags

    def _short_list(self, states: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        if self.short is None:
            return {}
        pooled = states["images"].between
        samples = pooled if pooled.count else states["raw"]
        rank = values.get("pooled_effective_rank", values["effective_rank"])
        std = samples.matrix.diagonal().clamp(min=0).sqrt().mean()
        numbers = {"std": float(std), "norm": states["norm"].mean, "rank": rank}
        return {f"train/{self.short}_{name}": value for name, value in numbers.items()}


def unit_rows(features: Tensor) -> Tensor:
    """Return x / |x| in float32 or better; rows of zeros stay zero."""
    x = widened(features.detach())
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


def _unit_moments(unit: Any, rows: Any) -> dict[str, Any]:
    """Return what follows from the merged moments of the unit rows, and whether the rows are all alike."""
    matrix, count = unit.matrix, unit.count
    std = matrix.diagonal().clamp(min=0).sqrt()
    finite = bool(torch.isfinite(matrix).all())
    squared_mean = float(unit.mean @ unit.mean)
    rank = entropy_rank(without_noise(unit.spectrum(), squared_mean)) if finite else math.nan
    second = unit.second_moment
    return {
        "is_constant": float(finite and not rows.matrix.any()),
        "mean_std_per_dim": float(std.mean()),
        "min_std_per_dim": float(std.min()),
        "effective_rank": rank,
        "mean_similarity": mean_similarity(count, unit.mean, float(second.trace())),
        "std_similarity": std_similarity(count, unit.mean, unit.m2),
    }


def _raw_moments(raw: Any) -> dict[str, Any]:
    """Return what follows from the merged moments of the rows as they are."""
    matrix, second = raw.matrix, raw.second_moment
    names = ("rankme", "participation_ratio", "stable_rank", "vicreg_variance", "vicreg_covariance")
    if not bool(torch.isfinite(second).all()):
        return dict.fromkeys(names, math.nan)
    spectrum = without_noise(raw.spectrum(), rounding_of(raw.mean))
    rankme = entropy_rank(without_noise(raw.spectrum("second_moment")).sqrt())
    numbers = (rankme, participation_ratio(matrix), stable_rank(spectrum), *vicreg_terms(matrix))
    decay = spectral_decay(spectrum)
    fit = {} if decay is None else {"alpha_req": decay[0], "alpha_req_r2": decay[1]}
    return dict(zip(names, numbers, strict=True)) | fit


def _classes(images: Any) -> dict[str, Any]:
    """Return how images stand apart beyond their tokens' scatter; {} where no image has two tokens."""
    between, scatter = images.between.matrix, images.scatter
    if scatter is None:
        return {}
    if not bool(torch.isfinite(between).all() and torch.isfinite(scatter).all()):
        return {"lidar": math.nan, "between_within_ratio": math.nan}
    inside = float(scatter.trace())
    ratio = float(between.trace()) / inside if inside > 0 else math.inf
    return {"lidar": lidar(images.spectrum()), "between_within_ratio": ratio}


def _similarities(rows: Tensor) -> dict[str, Any]:
    """Return the largest cosine between two sampled rows and the histogram of all; {} below two rows."""
    if len(rows) < 2:
        return {}
    cosines, distances = pairwise(rows)
    largest, spread = float(cosines.max()), uniformity(distances)
    if not math.isfinite(spread):
        cosines = cosines[torch.isfinite(cosines)]
    counted = cosines.clamp(-1.0, 1.0)
    histogram = Histogram(
        SIMILARITY_EDGES,
        _counts(counted).numpy(),
        *((float(counted.min()), float(counted.max())) if len(counted) else (0.0, 0.0)),
        float(counted.sum()),
        float(counted @ counted),
        nonfinite=len(distances) - len(counted),
    )
    return {"max_similarity": largest, "uniformity": spread, "similarity_histogram": histogram}


def _counts(cosines: Tensor) -> Tensor:
    """Count cosines between `SIMILARITY_EDGES`, whose width is a power of two: scaling by it is exact."""
    bins = len(SIMILARITY_EDGES) - 1
    places = (cosines * (bins / 2)).floor_().to(torch.int64).add_(bins // 2).clamp_(max=bins - 1)
    return torch.bincount(places, minlength=bins)
