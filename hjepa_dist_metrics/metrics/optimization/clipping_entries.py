"""Catalog entries of gradient clipping."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import CLIPPED_PERCENT, LITTLE

_clip = partial(Entry, dashboard="gradient_flow")

ENTRIES = (
    _clip(
        "gradient/global_norm_before_clip",
        "gradient norm before clipping",
        "L2 norm of the whole gradient before it is clipped.",
        healthy="mostly below the threshold",
    ),
    _clip(
        "gradient/global_norm_after_clip",
        "gradient norm after clipping",
        "Norm before clipping times the clip coefficient.",
        healthy="at most the threshold",
    ),
    _clip("gradient/was_clipped", "clipped", "1 where this step was clipped, else 0."),
    _clip(
        "gradient/clipping_ratio",
        "clip coefficient",
        "Norm after clipping over norm before.",
        healthy="near 1",
    ),
    _clip(
        "gradient/clipping_percentage",
        "clipped steps",
        "Share of all steps so far that were clipped; steps with nonfinite gradients are counted apart.",
        unit="%",
        healthy="below 10 after warmup; near 100 the threshold is the learning rate",
    ),
    _clip(
        "gradient/clipping_percentage_window",
        "clipped steps lately",
        "Share of the last steps, 100 by default, that were clipped.",
        unit="%",
        healthy="below 10 after warmup",
        bounds=CLIPPED_PERCENT,
    ),
    _clip(
        "gradient/nonfinite_steps",
        "steps with nonfinite gradients",
        "Steps so far whose gradient norm was NaN or infinite.",
        unit="steps",
        healthy="0; a few where a gradient scaler looks for its scale",
        bounds=LITTLE,
    ),
    _clip(
        "gradient/skipped_steps",
        "skipped steps",
        "Steps so far that all ranks passed over because the norm was NaN or infinite on one.",
        unit="steps",
        healthy="0",
        bounds=LITTLE,
        deviation="only where skipping is switched on",
    ),
    _clip(
        "gradient/{group}/global_norm_before_clip",
        "gradient norm of a parameter group before clipping",
        "The same for one parameter group.",
    ),
    _clip(
        "gradient/{group}/global_norm_after_clip",
        "gradient norm of a parameter group after clipping",
        "The same for one parameter group.",
    ),
)
