"""Entries of the masks."""

from __future__ import annotations

from functools import partial

from hjepa_dist_metrics.catalog.entry import Entry

_masking = partial(Entry, source="S0 1.3", dashboard="masking")
_figure = partial(Entry, source="S0 7.1", kind="image", family="figures")

MASKING = (
    _masking(
        "masking/mask_ratio",
        "share of masked patches",
        "Masked patches over all patches, over all images of all ranks.",
        healthy="near the configured ratio; a drift means that blocks are clipped or overlap",
    ),
    _masking(
        "masking/num_masked_patches", "masked patches", "Masked patches of an image, mean.", unit="patches"
    ),
    _masking(
        "masking/num_unmasked_patches",
        "visible patches",
        "Patches of an image that the context encoder sees, mean.",
        unit="patches",
        healthy="well above 0",
    ),
    _masking(
        "masking/target_mask_count",
        "patches to predict",
        "Patches of an image that the predictor has to fill in, mean.",
        unit="patches",
    ),
    _masking(
        "masking/num_blocks",
        "blocks of a mask",
        "Connected rectangular regions of an image's mask, mean.",
        unit="blocks",
        healthy="at most the configured number; 1 for good means that the blocks fall together",
    ),
    _masking(
        "masking/context_target_overlap",
        "overlap of context and target",
        "Share of the patches to predict that the context encoder sees too.",
        healthy="0: an overlap gives the answer away",
    ),
    _masking(
        "masking/repeated_fraction",
        "repeated masks",
        "Share of masks, over all ranks, that were drawn before in the window, told by their hash.",
        healthy="near 0 on large grids; near 1 means ranks or workers that share a seed",
        deviation="added: the document asks that masks do not repeat and names no number",
    ),
    _masking(
        "masking/unique_masks",
        "different masks",
        "Number of different masks of all ranks in the window, told by their hash.",
        unit="masks",
        healthy="near the number of images",
        deviation="added",
    ),
    _figure(
        "masking/geometry_analysis", "mask geometry", "Block sizes, aspect ratios, samples and coverage."
    ),
    _figure(
        "masking/coverage",
        "mask coverage",
        "How often each patch is masked, over all images of all ranks.",
        healthy="smooth, without patches that are never or always masked",
    ),
)
