"""Catalog entries of gradient flow and of the gradient noise scale."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING

_flow = partial(Entry, dashboard="gradient_flow")
_NOT_A_NORM = "a true L2 norm; the sum of absolute values is `_abs_sum`"

ENTRIES = (
    _flow(
        "gradients/global_norm",
        "gradient norm",
        "L2 norm of the gradient of the whole model, over all ranks.",
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
        "The same as gradients/{module}_mean.",
    ),
    _flow(
        "gradients/{module}_total_norm",
        "gradient norm of a module",
        "L2 norm of the module's gradient; 0 where nothing is trained.",
        healthy="of one order of magnitude over the modules that train; 0 where nothing is trained",
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
        kind="text",
        healthy="absent",
    ),
    _flow(
        "gradients/{module}_zero_fraction",
        "zeros in a module's gradient",
        "Share of the module's gradient elements that are exactly 0.",
        healthy="near 0; a rise is dead units",
    ),
    Entry(
        "gradients/{name}",
        "gradient histogram",
        "Distribution of a parameter's or module's gradient over power-of-two bins.",
        kind="histogram",
        family="histograms",
        healthy="spread over several powers of two; a spike at 0 is a dead part",
    ),
)
