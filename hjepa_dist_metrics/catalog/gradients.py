"""Entries of gradients, clipping, learning rates and updates."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import CLIPPED_PERCENT, LITTLE, NOTHING

_flow = partial(Entry, source="S0 5.1", dashboard="gradient_flow")
_clip = partial(Entry, source="S0 8.2", dashboard="gradient_flow")
_rate = partial(Entry, source="S0 5.2", dashboard="learning_rate")

_NOT_A_NORM = "the sketch calls the sum of absolute values a norm; that is `_abs_sum` here"

GRADIENTS = (
    _flow(
        "gradients/global_norm",
        "gradient norm",
        "L2 norm of the gradient of the whole model, whatever ranks hold it.",
        healthy="steady or falling; next to 0 vanishes, jumps explode",
    ),
    _flow(
        "gradients/{module}_mean",
        "mean gradient of a module",
        "Mean of |gradient| over the module's elements.",
    ),
    _flow("gradients/{module}_max", "largest gradient of a module", "Largest |gradient| of the module."),
    _flow("gradients/{module}_min", "smallest gradient of a module", "Smallest |gradient| of the module."),
    _flow("gradients/{module}_std", "spread of a module's gradient", "Standard deviation over its elements."),
    _flow(
        "gradients/{module}_avg",
        "average gradient of a module",
        "Mean of |gradient| over the module's elements, under the name of the document's module table.",
    ),
    _flow(
        "gradients/{module}_total_norm",
        "gradient norm of a module",
        "L2 norm of the module's gradient; 0 for the target encoder, which has none.",
        healthy="of one order of magnitude over the modules that train; 0 for the target encoder",
        deviation=_NOT_A_NORM,
    ),
    _flow("gradients/{module}_abs_sum", "sum of a module's gradient", "Sum of |gradient| over the module."),
    _flow(
        "gradients/ratio_{i}",
        "gradient of layer i over layer i - 1",
        "Gradient norm of a layer over that of the layer before it.",
        healthy="near 1; steadily below or above vanishes or explodes through the depth",
    ),
    _flow(
        "gradients/snr",
        "signal to noise of the gradient",
        "Squared norm of the true gradient over the variance of one sample's, from two batch sizes.",
        source="arXiv 1812.06162",
        healthy="falls through the training",
    ),
    _flow(
        "gradients/noise_scale",
        "gradient noise scale",
        "Batch size above which larger batches stop paying: S / |G|^2, both smoothed apart.",
        unit="samples",
        source="arXiv 1812.06162",
        healthy="near or above the global batch size",
    ),
    _flow(
        "gradients/nonfinite",
        "nonfinite gradients",
        "Gradient elements that were NaN or infinite.",
        unit="elements",
        healthy="0",
        bounds=NOTHING,
    ),
    Entry(
        "gradients/first_nonfinite",
        "first nonfinite gradient",
        "Name of the first parameter, in the model's order, whose gradient holds a NaN or an infinity.",
        source="S0 5.1",
        kind="text",
        healthy="absent",
    ),
    _flow(
        "gradients/{module}_zero_fraction",
        "zeros in a module's gradient",
        "Share of the module's gradient elements that are exactly 0.",
        healthy="near 0; a rise is dead units",
        deviation="added",
    ),
    Entry(
        "gradients/{name}",
        "gradient histogram",
        "Distribution of a parameter's or module's gradient over power-of-two bins.",
        source="S0 5.1",
        kind="histogram",
        family="histograms",
        healthy="spread over several powers of two; a spike at 0 is a dead part",
    ),
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
        deviation="the sketch reports it at every 100th step only",
    ),
    _clip(
        "gradient/clipping_percentage_window",
        "clipped steps lately",
        "Share of the last steps, 100 by default, that were clipped.",
        unit="%",
        healthy="below 10 after warmup",
        bounds=CLIPPED_PERCENT,
        deviation="added",
    ),
    _clip(
        "gradient/nonfinite_steps",
        "steps with nonfinite gradients",
        "Steps so far whose gradient norm was NaN or infinite.",
        unit="steps",
        healthy="0; a few where a gradient scaler looks for its scale",
        bounds=LITTLE,
        deviation="added",
    ),
    _clip(
        "gradient/skipped_steps",
        "skipped steps",
        "Steps so far that all ranks passed over because the norm was NaN or infinite on one.",
        unit="steps",
        healthy="0",
        bounds=LITTLE,
        deviation="added; only where skipping is switched on",
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

LEARNING_RATE = (
    _rate("learning_rate/base_lr", "learning rate", "Learning rate of the first parameter group."),
    _rate("learning_rate/param_group_{i}", "learning rate of group i", "Learning rate of parameter group i."),
    _rate(
        "learning_rate/avg_param_update",
        "gradient times learning rate",
        "Sum over parameters of |gradient| times learning rate, over the root of the number of elements.",
        deviation="as the document defines it; it is not the step that Adam takes: see update/{group}_ratio",
    ),
    _rate(
        "learning_rate/warmup_stage",
        "stage of the schedule",
        "0 in warmup, 1 at or after the peak, 2 at the end value.",
        healthy="0, then 1",
    ),
    _rate(
        "update/{group}_ratio",
        "relative update of a parameter group",
        "norm(p_after - p_before) / norm(p_before), of what the optimizer really did.",
        healthy="about 1e-3; above 1e-2 is violent, below 1e-5 hardly learns",
        deviation="added: the real update",
    ),
    _rate("update/{group}_norm", "update norm of a parameter group", "norm(p_after - p_before)."),
    _rate(
        "update/{group}_exp_avg_norm",
        "norm of Adam's first moment",
        "L2 norm of the running mean of the group's gradient.",
        dashboard="",
        deviation="added",
    ),
    _rate(
        "update/{group}_exp_avg_sq_mean",
        "mean of Adam's second moment",
        "Mean over the group's elements of the running mean of squared gradients.",
        healthy="no sudden jumps; next to 0 the step size explodes",
        dashboard="",
        deviation="added",
    ),
    _rate(
        "weights/{group}_norm",
        "weight norm of a parameter group",
        "L2 norm of the group's parameters before the step.",
        healthy="slowly rising, then flat",
        dashboard="",
        deviation="added",
    ),
    _rate("weights/{group}_mean", "mean weight of a parameter group", "Mean over elements.", dashboard=""),
    _rate(
        "weights/{group}_std", "spread of a parameter group", "Standard deviation of elements.", dashboard=""
    ),
    Entry(
        "weights/{name}",
        "weight histogram",
        "Distribution of a parameter's values.",
        source="S1",
        kind="histogram",
        family="histograms",
        healthy="no growing tails, no pile at 0",
    ),
)
