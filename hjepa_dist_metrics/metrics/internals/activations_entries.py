"""Catalog entries of activations and of their gradients."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING

_scalar = partial(Entry, dashboard="internals", family="representations")
_text = partial(Entry, kind="text", family="representations")
_OUTLIERS = "Bondarenko et al., Quantizable Transformers, arXiv 2306.12929"
_RMS = "Root mean square of all elements of a block's output, over all rows of all ranks"
_MAGNITUDE = "Largest magnitude of any element of a block's output"
_KURTOSIS = "Fourth standardised moment of all elements of a block's output, 3 of a Gaussian"
_RATIO = "Largest root mean square of a unit of a block over the median of all its units"
_ZEROS = "Share of the elements of a block's output that are exactly 0"
_DEAD = "Share of a block's units that have the same value in every row of all ranks"

ENTRIES = (
    _scalar("activation/rms_min", "size of the smallest block's activations", f"{_RMS}; the lowest block."),
    _scalar("activation/rms_median", "size of activations", f"{_RMS}; median over the blocks."),
    _scalar(
        "activation/rms_max",
        "size of the largest block's activations",
        f"{_RMS}; the highest block.",
        healthy="steady, or growing slowly over depth; growth without end ends in overflow",
    ),
    _scalar(
        "activation/absmax_max",
        "largest activation",
        f"{_MAGNITUDE}, of all blocks; activation/largest says where.",
        source=_OUTLIERS,
        healthy="within some tens of the root mean square; below 65504 for half precision",
    ),
    _scalar(
        "activation/kurtosis_median",
        "kurtosis of activations",
        f"{_KURTOSIS}; median over the blocks.",
        source=_OUTLIERS,
        healthy="near 3; hundreds are outlier units",
    ),
    _scalar("activation/kurtosis_max", "largest kurtosis", f"{_KURTOSIS}; the highest block."),
    _scalar(
        "activation/outlier_ratio_max",
        "largest outlier unit",
        f"{_RATIO}; the highest block. activation/outlier says which unit.",
        source=_OUTLIERS,
        healthy="below about 10; a few units of tens or hundreds hurt quantisation",
    ),
    _scalar("activation/zero_fraction_max", "zeros", f"{_ZEROS}; the highest block."),
    _scalar(
        "activation/dead_fraction_max",
        "dead units of the worst block",
        f"{_DEAD}; the highest block.",
        healthy="0; a share that grows is a layer that dies",
    ),
    _scalar(
        "activation/dead_units",
        "dead units",
        "Units that have the same value in every row of all ranks, of all blocks together.",
        unit="units",
        healthy="none in most models, few after rectifiers",
    ),
    _scalar(
        "activation/nonfinite",
        "nonfinite activations",
        "Elements of the blocks' outputs that were NaN or infinite.",
        unit="elements",
        healthy="0",
        bounds=NOTHING,
    ),
    _text(
        "activation/largest", "where the largest activation is", "Block and unit of activation/absmax_max."
    ),
    _text("activation/outlier", "outlier unit", "Block and unit of activation/outlier_ratio_max."),
    _text("activation/dead", "where dead units are", "The blocks with most dead units.", healthy="absent"),
    _text(
        "activation/first_nonfinite",
        "first nonfinite block",
        "The first block whose output held a NaN or an infinity.",
        healthy="absent",
    ),
    _scalar("activation/{module}_rms", "size of {module}'s activations", f"{_RMS}."),
    _scalar("activation/{module}_absmax", "largest activation of {module}", f"{_MAGNITUDE}."),
    _scalar("activation/{module}_kurtosis", "kurtosis of {module}", f"{_KURTOSIS}."),
    _scalar("activation/{module}_zero_fraction", "zeros of {module}", f"{_ZEROS}."),
    _scalar("activation/{module}_dead_fraction", "dead units of {module}", f"{_DEAD}."),
    _scalar("activation/{module}_outlier_ratio", "largest outlier unit of {module}", f"{_RATIO}."),
    Entry(
        "activation/depth",
        "activations over depth",
        "Root mean square and largest magnitude of each block's output, over depth.",
        kind="image",
        healthy="smooth lines; a jump is a block that adds outliers",
        family="figures",
    ),
    _scalar(
        "activation_gradient/rms_min",
        "size of the smallest gradient of activations",
        "Root mean square of the loss's gradient by a block's output; the lowest block.",
        healthy="within a few orders of magnitude of the highest: far below it vanishes through the depth",
        deviation="of the scaled loss under a GradScaler",
    ),
    _scalar(
        "activation_gradient/rms_median",
        "size of the gradients of activations",
        "The same; median over the blocks.",
    ),
    _scalar(
        "activation_gradient/rms_max",
        "size of the largest gradient of activations",
        "The same; the highest block.",
    ),
    _scalar(
        "activation_gradient/absmax_max",
        "largest gradient of an activation",
        "Largest magnitude of any element of these gradients.",
    ),
    _scalar(
        "activation_gradient/zero_fraction_max",
        "zeros in gradients of activations",
        "Share of exact zeros; the highest block.",
    ),
    _scalar(
        "activation_gradient/{module}_rms",
        "size of the gradient of {module}'s output",
        "Root mean square of the loss's gradient by the block's output.",
    ),
    _scalar(
        "activation_gradient/{module}_absmax",
        "largest gradient of {module}'s output",
        "Largest magnitude of the loss's gradient by the block's output.",
    ),
    _scalar(
        "activation_gradient/{module}_zero_fraction",
        "zeros in the gradient of {module}'s output",
        "Share of exact zeros in the loss's gradient by the block's output.",
    ),
)
