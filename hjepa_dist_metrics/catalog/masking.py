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
        healthy="near 0 on large grids; on small ones it grows with the window, since there are few masks",
        deviation="added: the document asks that masks do not repeat and names no number",
    ),
    _masking(
        "masking/unique_masks",
        "different masks",
        "Number of different masks of all ranks in the window, told by their hash; estimated above 1024.",
        unit="masks",
        healthy="near the number of images",
        deviation="added",
    ),
    _masking(
        "masking/collision_probability",
        "chance that two masks are alike",
        "Share of the pairs of masks, over all ranks, that are alike: sum c (c - 1) / (n (n - 1)).",
        healthy="near 0 at any window; above a half nearly every image has the same mask",
        deviation="added: unlike the share of repeats it does not grow with the window",
    ),
    _masking(
        "masking/repeated_batches",
        "repeated batches of masks",
        "Share of the ranks' batches of masks, back to the one before the window, that equal another batch "
        "of the window in all masks and their order.",
        healthy="0; above it ranks or workers share a seed, or the generator stands still",
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
