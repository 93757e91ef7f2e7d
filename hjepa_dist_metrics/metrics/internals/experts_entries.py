"""Catalog entries of the load of experts."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry

_scalar = partial(Entry, dashboard="internals")
_SWITCH = "Fedus et al., Switch Transformers, arXiv 2101.03961"
_OVERLOAD = "Tokens of a layer's busiest expert over the mean, over all ranks"
_ENTROPY = "Entropy of a layer's load over its largest value, the logarithm of the number of experts"

ENTRIES = (
    _scalar(
        "experts/utilization",
        "experts in use",
        "Share of all experts of all layers that got a token of any rank.",
        healthy="1",
    ),
    _scalar(
        "experts/dead_experts",
        "dead experts",
        "Experts of all layers together that got no token; experts/dead names them.",
        unit="experts",
        healthy="0; an expert without tokens is not trained",
    ),
    _scalar(
        "experts/overload_factor_median",
        "overload of the busiest expert",
        f"{_OVERLOAD}; median over layers.",
        source=_SWITCH,
        healthy="near 1; above the capacity factor tokens are dropped",
    ),
    _scalar("experts/overload_factor_max", "overload of the worst layer", f"{_OVERLOAD}; the highest layer."),
    _scalar(
        "experts/load_entropy_median",
        "balance of the load",
        f"{_ENTROPY}; median over layers.",
        healthy="near 1: balanced; towards 0 the routing collapses onto one expert",
    ),
    _scalar("experts/load_entropy_min", "balance of the worst layer", f"{_ENTROPY}; the lowest layer."),
    _scalar(
        "experts/effective_experts_median",
        "effective number of experts",
        "e to the entropy of a layer's load; median over layers.",
        unit="experts",
        healthy="near experts/num_experts; near experts/experts_per_token the routing has collapsed",
    ),
    _scalar(
        "experts/routing_entropy",
        "entropy of the routing",
        "Entropy of the router's probabilities for a token over its largest value, mean over all tokens.",
        healthy="falls from 1 as the router decides; with a load that stays balanced",
    ),
    _scalar(
        "experts/dropped_fraction",
        "dropped tokens",
        "Share of the tokens' choices that went to no expert.",
        healthy="0, or a few percent where experts have a capacity",
    ),
    Entry("experts/num_experts", "experts of a layer", "Number of experts of each layer.", unit="experts"),
    Entry("experts/experts_per_token", "experts of a token", "Choices for each token, mean.", unit="experts"),
    Entry(
        "experts/busiest", "busiest expert", "Layer and expert of experts/overload_factor_max.", kind="text"
    ),
    Entry(
        "experts/dead",
        "which experts are dead",
        "The layers with most experts without a token, and the experts.",
        kind="text",
        healthy="absent",
    ),
    _scalar("experts/{name}_overload_factor", "overload of {name}", f"{_OVERLOAD}."),
    _scalar("experts/{name}_load_entropy", "balance of {name}", f"{_ENTROPY}."),
    _scalar("experts/{name}_dead_experts", "dead experts of {name}", "Experts of the layer without a token."),
    Entry(
        "experts/load",
        "load of the experts",
        "Tokens of each expert of each layer over the layer's mean.",
        kind="image",
        healthy="one colour",
        family="figures",
    ),
)
