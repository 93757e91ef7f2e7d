"""Entries of the hierarchy's levels."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING, effective_rank_limits

_level = partial(Entry, source="S0 2.1", dashboard="hierarchy", family="representations")
_cost = partial(Entry, source="S0 2.2", dashboard="hierarchy", family="representations")

HIERARCHY = (
    _level(
        "hierarchy/level{i}_feat_mean",
        "mean feature of level {i}",
        "Mean over all features of all tokens of all ranks.",
        healthy="near 0 behind a layer norm; a drift is a shift that carries nothing",
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
        "effective rank of level {i}",
        "exp of the entropy of the normalised singular values of the uncentred tokens, exact over all ranks.",
        unit="dimensions",
        healthy="above a quarter of min(D, n - 1); below a twentieth the level has collapsed",
        limits=effective_rank_limits,
        deviation="from the merged D x D second moment; the sketch decomposes one rank's tokens every step",
    ),
    _level(
        "hierarchy/level{i}_cka",
        "similarity of level {i} to the level below",
        "Linear CKA between the pooled features of level i and of level i - 1; 1 is the same up to rotation.",
        source="S0 2.1; arXiv 1905.00414",
        healthy="below 1: levels that are all alike make the hierarchy pointless",
        deviation="added",
    ),
    _level(
        "hierarchy/level{i}_nonfinite",
        "nonfinite tokens of level {i}",
        "Tokens with a NaN or an infinity, over all ranks; the other numbers are NaN then.",
        healthy="0",
        bounds=NOTHING,
    ),
    _cost(
        "hierarchy/level{i}_num_tokens",
        "tokens of level {i}",
        "Valid tokens of an image at level i, mean over the images of all ranks that have any.",
        unit="tokens",
    ),
    _cost(
        "hierarchy/level{i}_compute_share",
        "cost of level {i}",
        "Share of the levels' arithmetic: tokens x D^2, a projection of every token, or the costs given.",
        unit="%",
    ),
    _cost(
        "hierarchy/level{i}_memory_share",
        "memory of level {i}",
        "Share of the levels' activations: tokens x D.",
        unit="%",
    ),
    Entry(
        "hierarchy/resolution",
        "tokens and cost by level",
        "Bars of token count, arithmetic and memory of each level.",
        source="S0 2.2",
        kind="image",
        family="figures",
    ),
    Entry(
        "hierarchy/level{i}_features_histogram",
        "features of level {i}",
        "Distribution of the features of level i over all ranks.",
        source="S0 2.1",
        kind="histogram",
        family="histograms",
    ),
)
