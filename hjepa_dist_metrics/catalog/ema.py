"""Entries of the target encoder's moving average."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry

_ema = partial(Entry, source="S0 1.2", dashboard="ema")

EMA = (
    _ema(
        "ema/momentum_current",
        "momentum now",
        "Momentum of the moving average at this step.",
        healthy="rises to ema/momentum_target; 1 for good means that the teacher is frozen",
    ),
    _ema(
        "ema/momentum_target",
        "momentum at the end",
        "Momentum that the schedule ends at.",
        healthy="constant",
    ),
    _ema(
        "ema/parameter_divergence",
        "distance of the encoders",
        "L2 norm of the difference of all weights and buffers, context encoder minus target encoder.",
        healthy="settles at a level that falls with the learning rate",
        deviation="the sketch adds up norms of parameters: not a norm, a host sync each, and without buffers",
    ),
    _ema(
        "ema/relative_divergence",
        "relative distance of the encoders",
        "ema/parameter_divergence over the norm of the target's weights.",
        healthy="below about 0.1; growing without end is a stale teacher, exactly 0 a shared one",
        deviation="added: the distance alone has no scale",
    ),
    _ema(
        "ema/cosine",
        "cosine of the encoders",
        "Cosine between all weights of the context encoder and all of the target encoder.",
        healthy="near 1",
        deviation="added",
    ),
    _ema(
        "ema/update_magnitude",
        "last move of the teacher",
        "Norm of the target encoder's own last move over the norm of its weights.",
        healthy="small and above 0; exactly 0 with momentum below 1 means that the update never runs, "
        "as where a wrapper hides the target encoder",
        deviation="added: divergence alone is blind to a frozen teacher",
    ),
    _ema(
        "ema/target_weight_stability",
        "stability of the teacher",
        "1 - ema/update_magnitude.",
        healthy="near 1, and below it",
    ),
)
