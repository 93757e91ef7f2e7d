"""Representational collapse, read from moments of all rows of all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.ssl.formulas.gaussianity import DIRECTIONS, KNOTS, characteristic_sums, sigreg
from hjepa_dist_metrics.metrics.ssl.formulas.rows import feature_blocks, pool, row_norms, unit_rows
from hjepa_dist_metrics.metrics.ssl.formulas.sampled import cosine_numbers, pair_numbers
from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import (
    dead_features,
    discriminability,
    entropy_rank,
    mean_share,
    mean_similarity,
    participation_ratio,
    rounding_of,
    spectral_decay,
    stable_rank,
    std_similarity,
    vicreg_terms,
    without_noise,
)
from hjepa_dist_metrics.metrics.validation import require_features
from hjepa_dist_metrics.states import ClassScatter, Covariance, Moments, Sample, Sum
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.states.rows import row_mask
from hjepa_dist_metrics.states.scales import times_power_of_two

DEFAULT_SAMPLE = 512


class Collapse(DistributedMetric):
    """Tell whether features [N, D] or [B, N, D] still use their space.

    Exact over all rows of all ranks, from unit rows x / |x|: `collapse/mean_std_per_dim`, `min_std_per_dim`,
    `effective_rank`, `mean_similarity`, `std_similarity`; from the rows themselves: `rankme`,
    `rankme_centered`, `participation_ratio`, `stable_rank`, `alpha_req` with `alpha_req_r2`,
    `vicreg_variance`, `vicreg_covariance`, `sigreg`, `rms_norm`, `mean_share`, `dead_features`;
    `num_samples`, `num_features`, `nonfinite` (rows), `is_constant`. From a uniform sample of `sample` rows:
    `max_similarity`, `uniformity`, `centered_similarity`, `duplicate_share`, `neighbor_distance`,
    `similarity_histogram`.

    One tensor [B, N, D] can collapse over its tokens and over its images. The above is over tokens; over
    images, each the mean of its tokens, there are `pooled_mean_std_per_dim`, `pooled_effective_rank` and so
    on, `pooled_rankme`, `pooled_mean_share`, `pooled_uniformity`, `pooled_centered_similarity`,
    `pooled_duplicate_share`, `pooled_neighbor_distance`, and `lidar` and `between_within_ratio`.

    With a name the tags read `collapse/{name}_effective_rank` and so on. `short` is "context" or "target" for
    the short list `train/{short}_std`, `_norm`, `_rank`, of images. `full=False` keeps to what follows from
    the unit rows, at half the cost.

    >>> collapse = Collapse(dim=4)
    >>> collapse.update(torch.eye(4).repeat(16, 1))  # four points, as far apart as they can be
    >>> values = collapse.compute()
    >>> round(values["collapse/effective_rank"], 3), round(values["collapse/mean_similarity"], 3)
    (3.0, 0.238)
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
            self.add_state("pooled_sample", Sample(max(sample // 2, 1), dim, seed))
            self.add_state("norm", Moments())
            self.add_state("waves", Sum(shape=(2, KNOTS - 1, DIRECTIONS)))

    def update(self, features: Tensor, valid: Tensor | None = None, ids: Tensor | None = None) -> None:
        """Add rows; `valid` [N] or [B, N] leaves padding out, `ids` are the rows' or samples' global numbers.

        Without `ids` the sample is drawn by the rows' content: as good, but equal rows stay or go together.
        """
        require_features("features", features)
        if features.ndim not in (2, 3) or features.shape[-1] != self.dim:
            shape = list(features.shape)
            raise ConfigError(f"expected features [N, {self.dim}] or [B, N, {self.dim}], got shape {shape}")
        x = features.detach()
        kept = None if valid is None else row_mask(valid, x.shape[:-1], x.device)
        numbers = None if ids is None else token_ids(moved(ids, x.device), features)
        for block, mask, named in feature_blocks(x, kept, numbers):
            unit = unit_rows(block)
            self.unit.update(unit, mask)
            self.sample.update(unit, mask, ids=named)
            if self.full:
                self._add_rows(block, mask, named)

    def _add_rows(self, x: Tensor, kept: Tensor | None, ids: Tensor | None) -> None:
        self.raw.update(x, kept)
        flat = None if kept is None else kept.reshape(-1)
        self.waves.update(characteristic_sums(x.reshape(-1, self.dim), flat))
        if x.ndim == 2:
            self.norm.update(row_norms(x), kept)
            return
        samples, has = pool(x, kept)
        unit = unit_rows(samples)
        self.norm.update(row_norms(samples), has)
        self.images.update(samples, has, x.to(torch.float64) - samples[:, None], kept)
        self.pooled_unit.update(unit, has)
        self.pooled_sample.update(unit, has, ids=None if ids is None or not x.shape[1] else ids[:, 0])

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to the merged moments; {} where there is no row."""
        unit = states["unit"]
        if unit.count == 0:
            return {}
        sample = states["sample"].rows_kept
        values = {"num_samples": unit.count, "num_features": self.dim, "nonfinite": unit.nonfinite}
        values |= _unit_moments(unit, states.get("raw", unit)) | cosine_numbers(sample) | pair_numbers(sample)
        if not self.full:
            return {self.prefix + name: value for name, value in values.items()}
        raw, images = states["raw"], states["images"]
        values |= _raw_moments(raw) | {"sigreg": sigreg(states["waves"].value, unit.count)}
        if images.between.count:
            values |= _of_images(states)
        tags = {self.prefix + name: value for name, value in values.items()}
        return tags | self._short_list(images.between if images.between.count else raw, states, values)

    def _short_list(
        self, samples: Any, states: Mapping[str, Any], values: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self.short is None:
            return {}
        rank = values.get("pooled_effective_rank", values["effective_rank"])
        moments, exponent = samples.scaled()
        std = float(moments.matrix.diagonal().clamp(min=0).sqrt().mean())
        numbers = {"std": times_power_of_two(std, exponent), "norm": states["norm"].mean, "rank": rank}
        return {f"train/{self.short}_{name}": value for name, value in numbers.items()}


def token_ids(ids: Tensor, features: Tensor) -> Tensor:
    """Return an id for each row: the ids themselves, or [B, N] numbers from the ids [B] of samples."""
    if tuple(ids.shape) == tuple(features.shape[:-1]):
        return ids
    if features.ndim != 3 or tuple(ids.shape) != (features.shape[0],):
        raise ConfigError(f"expected ids of shape {list(features.shape[:-1])} or [B], got {list(ids.shape)}")
    tokens = torch.arange(features.shape[1], device=ids.device)
    return ids[:, None] * features.shape[1] + tokens


def _unit_moments(unit: Any, rows: Any) -> dict[str, Any]:
    """Return what follows from the merged moments of the unit rows, and whether the rows are all the same."""
    matrix, count = unit.matrix, unit.count
    length = float(unit.second_moment.trace())
    similarity = mean_similarity(count, unit.mean, length)
    if length == 0 and count > 1:
        similarity = 1.0  # rows of zeros are one point, as any that are all the same
    std = matrix.diagonal().clamp(min=0).sqrt()
    finite = bool(torch.isfinite(matrix).all())
    rank = entropy_rank(without_noise(unit.spectrum(), rounding_of(unit.mean))) if finite else math.nan
    return {
        "is_constant": float(finite and not rows.scaled()[0].matrix.any()),
        "mean_std_per_dim": float(std.mean()),
        "min_std_per_dim": float(std.min()),
        "effective_rank": rank,
        "mean_similarity": similarity,
        "std_similarity": std_similarity(count, unit.mean, unit.m2),
    }


def _raw_moments(rows: Any) -> dict[str, Any]:
    """Return what follows from the merged moments of the rows as they are."""
    raw, exponent = rows.scaled()
    matrix, second = raw.matrix, raw.second_moment
    names = (
        "rankme",
        "rankme_centered",
        "participation_ratio",
        "stable_rank",
        "rms_norm",
        "mean_share",
        "dead_features",
        "vicreg_variance",
        "vicreg_covariance",
    )
    if not bool(torch.isfinite(second).all()):
        return dict.fromkeys(names, math.nan)
    spectrum = without_noise(raw.spectrum(), rounding_of(raw.mean))
    variance, covariance = vicreg_terms(matrix, exponent)
    numbers = (
        _rankme(raw),
        entropy_rank(spectrum.sqrt()),
        participation_ratio(matrix),
        stable_rank(spectrum),
        times_power_of_two(math.sqrt(max(float(second.trace()), 0.0) / raw.count), exponent),
        mean_share(raw),
        dead_features(matrix.diagonal()),
        variance,
        covariance,
    )
    decay = spectral_decay(spectrum)
    fit = {} if decay is None else {"alpha_req": decay[0], "alpha_req_r2": decay[1]}
    return dict(zip(names, numbers, strict=True)) | fit


def _rankme(raw: Any) -> float:
    return entropy_rank(without_noise(raw.spectrum("second_moment")).sqrt())


def _of_images(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of images, each the mean of its tokens, and of images against their tokens."""
    images, pooled = states["images"], states["pooled_unit"]
    means, _ = images.between.scaled()
    finite = bool(torch.isfinite(means.second_moment).all())
    numbers = {
        "num_samples": pooled.count,
        **_unit_moments(pooled, images.between),
        "rankme": _rankme(means) if finite else math.nan,
        "mean_share": mean_share(means),
        **pair_numbers(states["pooled_sample"].rows_kept),
    }
    return {f"pooled_{name}": value for name, value in numbers.items()} | discriminability(images)
