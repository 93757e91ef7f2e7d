"""What each level of the hierarchy holds, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING, rankme_limits
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.histograms import histogram_value
from hjepa_dist_metrics.metrics.ssl.formulas.cka import debiased_cka, linear_cka
from hjepa_dist_metrics.metrics.ssl.formulas.rows import feature_blocks, pool, row_norms
from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import entropy_rank, squared_length, without_noise
from hjepa_dist_metrics.states import Covariance, Histogram, Max, Min, Moments, PairedCovariance, Sum
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.states.scales import times_power_of_two

# Fixed edges, so that counts are the same for every split: tenths of a decade on both sides of 0.
_DECADES = np.logspace(-3.0, 3.0, 61)
FEATURE_EDGES = np.concatenate([-_DECADES[::-1], [0.0], _DECADES])
# Mean tokens of two levels that are nearer than this share of their scatter are the same but for rounding.
_SAME = 1e-6


class HierarchyFeatures(DistributedMetric):
    """Describe the features of every level, over all valid tokens of all ranks.

    Tags under `hierarchy/level{i}_`: `feat_mean`, `feat_std` (over all elements), `feat_norm` (of a token),
    `feat_min`, `feat_max`, `effective_rank` (of the uncentred tokens), `num_tokens` (valid ones of an image
    that has any, mean), `nonfinite` (tokens), `features_histogram`, `compute_share` and `memory_share` in
    percent, and from level 1 on `cka` and `cka_debiased` with the level below, of the images' mean tokens. A
    level whose tokens are averages of the level below has the same means, and a CKA of 1 at every step, by
    construction: it has no `cka`. A level without tokens has no tags.

    Cost is tokens x D^2, a projection of every token, or as `costs` says (one number a level, of an image);
    memory is tokens x D.

    >>> features = HierarchyFeatures(dims=[4, 4])
    >>> features.update([torch.eye(4).repeat(8, 1, 1), torch.ones(8, 2, 4)])
    >>> values = features.compute()
    >>> [round(values[f"hierarchy/level{i}_effective_rank"], 3) for i in (0, 1)]
    [4.0, 1.0]
    """

    def __init__(self, dims: Sequence[int], costs: Sequence[float] | None = None) -> None:
        self.dims = [int(dim) for dim in dims]
        if not self.dims:
            raise ConfigError("a hierarchy needs at least one level, got dims=[]")
        self.costs = None if costs is None else [float(cost) for cost in costs]
        if self.costs is not None and len(self.costs) != len(self.dims):
            raise ConfigError(f"expected {len(self.dims)} costs, one a level, got {list(self.costs)}")
        self.add_state("images", Sum(shape=(len(self.dims),)))
        for i, dim in enumerate(self.dims):
            self.add_state(f"tokens{i}", Covariance(dim))
            self.add_state(f"norms{i}", Moments())
            self.add_state(f"low{i}", Min())
            self.add_state(f"high{i}", Max())
            self.add_state(f"histogram{i}", Histogram(FEATURE_EDGES))
            if i:
                self.add_state(f"pair{i}", PairedCovariance(self.dims[i - 1], dim))

    def update(
        self,
        features: Sequence[Tensor],
        valid: Sequence[Tensor | None] | None = None,
        *,
        histograms: bool = True,
    ) -> None:
        """Add a batch: for each level [B, N_l, D_l], and bool [B, N_l] where some tokens are padding.

        Without `histograms` the features are not counted into bins, which costs more than all the rest.
        """
        masks = [None] * len(self.dims) if valid is None else list(valid)
        if len(features) != len(self.dims) or len(masks) != len(self.dims):
            got = f"{len(features)} features and {len(masks)} masks"
            raise ConfigError(f"expected one entry for each of {len(self.dims)} levels, got {got}")
        checked = [self._check(i, f, m) for i, (f, m) in enumerate(zip(features, masks, strict=True))]
        for i, (tokens, mask) in enumerate(checked):
            self._add_level(i, tokens, mask, histograms)
        pooled = [pool(tokens, mask) for tokens, mask in checked]
        self.images.update(torch.stack([_images(mean, has) for mean, has in pooled]))
        for i in range(1, len(pooled)):
            (below, has_below), (here, has_here) = pooled[i - 1], pooled[i]
            if len(below) != len(here):
                raise ConfigError(f"levels {i - 1} and {i} have {len(below)} and {len(here)} images")
            self.states[f"pair{i}"].update(torch.cat([below, here], dim=1), _both(has_below, has_here))

    def _check(self, level: int, features: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        dim = self.dims[level]
        if features.ndim != 3 or features.shape[-1] != dim:
            shape = list(features.shape)
            raise ConfigError(f"level {level}: expected features [B, N, {dim}], got shape {shape}")
        lead = features.shape[:2]
        if valid is None:
            return features.detach(), None
        if valid.shape != lead:
            raise ConfigError(f"level {level}: expected valid as {list(lead)}, got {list(valid.shape)}")
        return features.detach(), moved(valid, features.device, torch.bool)

    def _add_level(self, i: int, tokens: Tensor, valid: Tensor | None, histograms: bool) -> None:
        self.states[f"tokens{i}"].update(tokens, valid)
        for block, mask, _ in feature_blocks(tokens, valid, None):
            self.states[f"norms{i}"].update(row_norms(block), mask)
        if tokens.numel():
            self.states[f"low{i}"].update(_without(tokens, valid, math.inf).amin())
            self.states[f"high{i}"].update(_without(tokens, valid, -math.inf).amax())
        if histograms:
            counted = None if valid is None else valid[..., None].expand_as(tokens)
            self.states[f"histogram{i}"].update(tokens, counted)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to the merged moments; {} where there is no token."""
        images = states["images"].value
        present = [i for i in range(len(self.dims)) if states[f"tokens{i}"].count]
        counts = {i: states[f"tokens{i}"].count / max(images[i], 1) for i in present}
        tags: dict[str, Any] = {}
        for i in present:
            named = self._level(i, states) | {"num_tokens": counts[i]} | self._shares(i, counts)
            if i and states[f"pair{i}"].count:
                named |= _similarity(states[f"pair{i}"], counts[i] != counts.get(i - 1))
            tags |= {f"hierarchy/level{i}_{name}": value for name, value in named.items()}
        return tags

    def _level(self, i: int, states: Mapping[str, Any]) -> dict[str, Any]:
        (tokens, exponent), histogram = states[f"tokens{i}"].scaled(), states[f"histogram{i}"]
        mean, elements = float(tokens.mean.mean()), tokens.count * self.dims[i]
        squares = float(tokens.m2.trace() + tokens.count * ((tokens.mean - mean) ** 2).sum())
        finite = bool(torch.isfinite(tokens.second_moment).all())
        spectrum = tokens.spectrum("second_moment")
        numbers: dict[str, Any] = {
            "feat_mean": times_power_of_two(mean, exponent),
            "feat_std": times_power_of_two(math.sqrt(squares / max(elements - 1, 1)), exponent),
            "feat_norm": states[f"norms{i}"].mean,
            "feat_min": states[f"low{i}"].value,
            "feat_max": states[f"high{i}"].value,
            "effective_rank": entropy_rank(without_noise(spectrum).sqrt()) if finite else math.nan,
            "nonfinite": tokens.nonfinite,
        }
        if histogram.counts.any() or histogram.nonfinite:
            total = times_power_of_two(mean * elements, exponent)
            square_total = times_power_of_two(squares + elements * mean**2, 2 * exponent)
            numbers["features_histogram"] = histogram_value(histogram, total, square_total)
        return numbers

    def _shares(self, i: int, counts: Mapping[int, float]) -> dict[str, float]:
        costs = {j: self.costs[j] if self.costs else counts[j] * self.dims[j] ** 2 for j in counts}
        memory = {j: counts[j] * self.dims[j] for j in counts}
        return {
            "compute_share": 100.0 * costs[i] / (sum(costs.values()) or 1.0),
            "memory_share": 100.0 * memory[i] / sum(memory.values()),
        }


def _similarity(pair: PairedCovariance, resampled: bool) -> dict[str, float]:
    """Return CKA of two levels' mean tokens; {} where one of another number of tokens averages the other."""
    moments, _ = pair.scaled()
    if resampled and _same_means(moments):
        return {}
    debiased = debiased_cka(moments)
    numbers = {"cka": linear_cka(moments.matrix, moments.first)}
    return numbers if debiased is None else {**numbers, "cka_debiased": debiased}


def _same_means(pair: PairedCovariance) -> bool:
    """Return whether x and y of the rows are the same, from |x - y|^2 against their scatter."""
    if pair.first != pair.second:
        return False
    x, y = slice(None, pair.first), slice(pair.first, None)
    scatter = float(pair.m2.trace())
    shift = pair.mean[x] - pair.mean[y]
    apart = scatter - 2.0 * float(pair.m2[x, y].trace()) + pair.count * squared_length(shift)
    return scatter > 0 and apart <= _SAME * scatter


def _without(x: Tensor, valid: Tensor | None, filling: float) -> Tensor:
    return x if valid is None else x.masked_fill(~valid[..., None], filling)


def _images(pooled: Tensor, has: Tensor | None) -> Tensor:
    return torch.full((), len(pooled), device=pooled.device) if has is None else has.sum()


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first & second


_level = partial(Entry, dashboard="hierarchy", family="representations")

ENTRIES = (
    _level(
        "hierarchy/level{i}_feat_mean",
        "mean feature of level {i}",
        "Mean over all features of all tokens of all ranks.",
        healthy="near 0 after a layer norm; a drift is a shift that carries nothing",
    ),
    _level(
        "hierarchy/level{i}_feat_std",
        "spread of level {i}'s features",
        "Standard deviation over all features of all tokens of all ranks.",
        healthy="steady; towards 0 collapses, growing without end explodes",
    ),
    _level(
        "hierarchy/level{i}_feat_norm",
        "token norm of level {i}",
        "L2 norm of a token, mean.",
        healthy="steady",
    ),
    _level("hierarchy/level{i}_feat_min", "smallest feature of level {i}", "Smallest feature of any token."),
    _level("hierarchy/level{i}_feat_max", "largest feature of level {i}", "Largest feature of any token."),
    _level(
        "hierarchy/level{i}_effective_rank",
        "RankMe of level {i} (uncentred)",
        "exp of the entropy of the normalised singular values of the tokens as they are, neither centred nor "
        "normalised, exact over all ranks. collapse/effective_rank is of centred eigenvalues of unit rows, "
        "and two to three times lower.",
        unit="dimensions",
        source="arXiv 2210.02885",
        healthy="above a third of min(D, n); below a tenth the level has collapsed, or its tokens share a "
        "large mean: see collapse/mean_share",
        limits=rankme_limits,
        deviation="from the merged D x D second moment, not from one rank's tokens",
    ),
    _level(
        "hierarchy/level{i}_cka",
        "similarity of level {i} to the level below",
        "Linear CKA between the images' mean tokens of level i and of level i - 1; 1 is the same up to "
        "rotation. Absent where level i only averages tokens of level i - 1: their means are the same.",
        source="arXiv 1905.00414",
        healthy="below 1: levels that are all the same make the hierarchy pointless; independent levels of "
        "few images read high: see the debiased one",
    ),
    _level(
        "hierarchy/level{i}_cka_debiased",
        "debiased similarity of level {i} to the level below",
        "Linear CKA from unbiased estimates of the HSIC: 0 on average for independent levels, of few images "
        "too. Absent of fewer than four images, and where hierarchy/level{i}_cka is.",
        source="arXiv 2010.15327",
        healthy="below 1; near 0 the levels have nothing in common",
    ),
    _level(
        "hierarchy/level{i}_nonfinite",
        "nonfinite tokens of level {i}",
        "Tokens with a NaN or an infinity, over all ranks; the other numbers are NaN then.",
        healthy="0",
        bounds=NOTHING,
    ),
    _level(
        "hierarchy/level{i}_num_tokens",
        "tokens of level {i}",
        "Valid tokens of an image at level i, mean over the images of all ranks that have any.",
        unit="tokens",
    ),
    _level(
        "hierarchy/level{i}_compute_share",
        "cost of level {i}",
        "Share of the levels' arithmetic: tokens x D^2, a projection of every token, or the costs given.",
        unit="%",
    ),
    _level(
        "hierarchy/level{i}_memory_share",
        "memory of level {i}",
        "Share of the levels' activations: tokens x D.",
        unit="%",
    ),
    Entry(
        "hierarchy/resolution",
        "tokens and cost by level",
        "Bars of token count, arithmetic and memory of each level.",
        kind="image",
        family="figures",
    ),
    Entry(
        "hierarchy/level{i}_features_histogram",
        "features of level {i}",
        "Distribution of the features of level i over all ranks.",
        kind="histogram",
        family="histograms",
    ),
)
