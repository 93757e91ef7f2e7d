"""Catalog entries of attention."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry

_scalar = partial(Entry, dashboard="internals", family="representations")
_text = partial(Entry, kind="text", family="representations")
_ENTROPY = "Entropy of a query's weights over the keys that it sees, mean over all queries of all ranks"
_RELATIVE = "The entropy over its largest value, the logarithm of the number of keys that the query sees"
_LOGIT = "Largest q k / sqrt(d) of a head, before softmax, over all queries and keys of all ranks"
_SINK = "Largest mean share that one key has of all queries' attention, mean over samples"
_COLLAPSE = "arXiv 2303.06296"
_GROWTH = "arXiv 2302.05442"
_SINKS = "arXiv 2309.17453"

ENTRIES = (
    _scalar(
        "attention/entropy_min",
        "entropy of the sharpest head",
        f"{_ENTROPY}; the lowest head, which attention/lowest_entropy names.",
        unit="nats",
        source=_COLLAPSE,
    ),
    _scalar(
        "attention/entropy_median", "entropy of attention", f"{_ENTROPY}; median over heads.", unit="nats"
    ),
    _scalar(
        "attention/entropy_max", "entropy of the flattest head", f"{_ENTROPY}; the highest head.", unit="nats"
    ),
    _scalar(
        "attention/relative_entropy_min",
        "relative entropy of the sharpest head",
        f"{_RELATIVE}; the lowest head.",
        source=_COLLAPSE,
    ),
    _scalar(
        "attention/relative_entropy_median",
        "relative entropy of attention",
        f"{_RELATIVE}; median over heads.",
        source=_COLLAPSE,
        healthy="between 0 and 1; at 1 heads look at nothing, towards 0 attention collapses onto single keys",
    ),
    _scalar("attention/logit_median", "largest logit of the median head", f"{_LOGIT}; median over heads."),
    _scalar(
        "attention/logit_max",
        "largest attention logit",
        f"{_LOGIT}; the highest head, which attention/largest_logit names.",
        source=_GROWTH,
        healthy="tens; growth without end makes attention one-hot and training diverge: normalise q and k",
    ),
    _scalar(
        "attention/sink_median", "sink of the median head", f"{_SINK}; median over heads.", source=_SINKS
    ),
    _scalar(
        "attention/sink_max",
        "strongest attention sink",
        f"{_SINK}; the highest head. attention/strongest_sink names head and key.",
        source=_SINKS,
        healthy="above 0.5 most attention of a head goes to one key, often the first or a register",
    ),
    Entry(
        "attention/relative_entropy",
        "relative entropies of the heads",
        f"{_RELATIVE}; all heads.",
        kind="histogram",
        family="representations",
    ),
    Entry(
        "attention/logit",
        "largest logits of the heads",
        f"{_LOGIT}; all heads.",
        kind="histogram",
        family="representations",
    ),
    _text("attention/lowest_entropy", "sharpest head", "Layer and head of attention/entropy_min."),
    _text("attention/largest_logit", "head of the largest logit", "Layer and head of attention/logit_max."),
    _text("attention/strongest_sink", "where the sink is", "Layer, head and key of attention/sink_max."),
    _scalar(
        "attention/{module}_entropy",
        "entropy of {module}",
        f"{_ENTROPY}; mean over the heads.",
        unit="nats",
    ),
    _scalar("attention/{module}_logit", "largest logit of {module}", f"{_LOGIT}; the highest head."),
    _scalar("attention/{module}_sink", "sink of {module}", f"{_SINK}; mean over the heads."),
    Entry(
        "attention/heads",
        "attention by head",
        "Entropy, largest logit and sink of each head of each layer.",
        kind="image",
        healthy="varied; a layer of one colour has heads that do the same",
        family="figures",
    ),
)
