"""Catalog entries of the optimizer's updates, its moments and the weights."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry

_update = partial(Entry, dashboard="learning_rate")

ENTRIES = (
    _update(
        "learning_rate/avg_param_update",
        "gradient times learning rate",
        "Sum over parameters of |gradient| times learning rate, over the root of the number of elements.",
        deviation="not the step that Adam takes: see update/{group}_ratio",
    ),
    _update(
        "update/{group}_ratio",
        "relative update of a parameter group",
        "norm(p_after - p_before) / norm(p_before), of what the optimizer really did.",
        healthy="about 1e-3; above 1e-2 is violent, below 1e-5 hardly learns",
    ),
    _update("update/{group}_norm", "update norm of a parameter group", "norm(p_after - p_before)."),
    _update(
        "update/{group}_exp_avg_norm",
        "norm of Adam's first moment",
        "L2 norm of the running mean of the group's gradient.",
        dashboard="",
    ),
    _update(
        "update/{group}_exp_avg_sq_mean",
        "mean of Adam's second moment",
        "Mean over the group's elements of the running mean of squared gradients.",
        healthy="no sudden jumps; next to 0 the step size explodes",
        dashboard="",
    ),
    _update(
        "weights/{group}_norm",
        "weight norm of a parameter group",
        "L2 norm of the group's parameters before the step.",
        healthy="slowly rising, then flat",
        dashboard="",
    ),
    _update("weights/{group}_mean", "mean weight of a parameter group", "Mean over elements.", dashboard=""),
    _update(
        "weights/{group}_std", "spread of a parameter group", "Standard deviation of elements.", dashboard=""
    ),
    Entry(
        "weights/{name}",
        "weight histogram",
        "Distribution of a parameter's values.",
        kind="histogram",
        family="histograms",
        healthy="no growing tails, no pile at 0",
    ),
)
