"""What the masks of masked prediction really look like, over all ranks."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.buffered import BufferedMetric
from hjepa_dist_metrics.metrics.ssl.formulas.connected_components import count_components
from hjepa_dist_metrics.metrics.validation import require_mask
from hjepa_dist_metrics.states import Distinct, Sum
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.states.rows import row_weights
from hjepa_dist_metrics.states.sketches.hashing import mix

_HASH_SEED = 0x6D61736B
_KEY_BITS = torch.iinfo(torch.int64).max - 1  # the largest key is reserved for "no row"
_DIFFERENT_MASKS = 1024
_MOST_BUFFERED_FLAGS = 1 << 20
_DIFFERENT_BATCHES = 256


class Masking(BufferedMetric[Tensor]):
    """Count masked patches, their blocks and their repeats; exact integers over all ranks.

    Tags under `masking/`: `mask_ratio`, `num_masked_patches`, `num_unmasked_patches`, `target_mask_count`,
    `context_target_overlap`, `num_blocks` (where counted); `unique_masks`, `repeated_fraction` and
    `collision_probability` of single masks, compared by their hash; and `repeated_batches`, the share of
    ranks' batches, back to the one before the window, that hold the masks of another batch in its order:
    ranks that share a seed, or a generator that stands still.

    `grid` is (rows, columns) of the patches, the square root of `num_patches` where it is whole.

    >>> masking = Masking(num_patches=4)
    >>> masking.update(torch.tensor([[True, True, False, False], [False, True, True, False]]))
    >>> values = masking.compute()
    >>> values["masking/mask_ratio"], values["masking/context_target_overlap"]
    (0.5, 0.0)
    """

    def __init__(self, num_patches: int, grid: tuple[int, int] | None = None) -> None:
        self.num_patches, self.grid = num_patches, _grid(num_patches, grid)
        # images, patches to predict, those of them that the context sees, images with counted blocks, blocks
        self.add_state("counts", Sum(shape=(5,)))
        self.add_state("coverage", Sum(shape=(num_patches,)))
        self.add_state("masks", Distinct(_DIFFERENT_MASKS))
        self.add_state("batches", Distinct(_DIFFERENT_BATCHES))
        self._last_batch: tuple[Tensor, Tensor] | None = None  # its hash, and whether there was any yet
        self._window_is_new = True

    def update(
        self,
        mask: Tensor,
        *,
        target: Tensor | None = None,
        context: Tensor | None = None,
        blocks: Tensor | None = None,
        count_blocks: bool = True,
        valid: Tensor | None = None,
    ) -> None:
        """Add masks, bool [B, N], True = masked; `valid`, bool [B], leaves padded samples out.

        `target` [B, N] marks the patches to predict where they are not the masked ones, `context` [B, N] what
        the context encoder sees where that is not the rest. `blocks` gives each mask's blocks, a count [B] or
        rectangles [B, K, 4] with height 0 for none; without them, connected regions are counted on the grid
        unless `count_blocks` is false.
        """
        masked = self._flags("mask", mask, mask)
        if target is None and context is None and valid is None:
            self._count_blocks(self._blocks(masked, blocks, count_blocks))
            self._wait(masked)
            return
        self._flush_buffer()
        kept = None if valid is None else row_weights(valid, mask.shape[:1], masked.device)
        coverage = _rows(masked, kept).sum(dim=0)
        images = torch.full((), len(masked), device=masked.device) if kept is None else kept.sum()
        pieces = [images, coverage.sum(), torch.zeros_like(images)]
        if target is not None or context is not None:
            wanted = masked if target is None else self._flags("target", target, mask)
            seen = ~masked if context is None else self._flags("context", context, mask)
            pieces[1:] = [_rows(wanted, kept).sum(), _rows(wanted & seen, kept).sum()]
        counted = self._blocks(masked, blocks, count_blocks)
        if counted is not None:
            pieces += [images, counted.sum() if kept is None else torch.where(kept, counted, 0).sum()]
        self.counts.update(torch.stack(pieces + [torch.zeros_like(images)] * (5 - len(pieces))))
        self.coverage.update(coverage)
        self._hash(masked, kept)

    def _wait(self, masked: Tensor) -> None:
        """Buffer a copy of a batch of masks, a megabyte of them at most."""
        self._defer(masked.clone())
        if len(self._buffer) * masked.numel() > _MOST_BUFFERED_FLAGS:
            self._flush_buffer()

    def _count_blocks(self, counted: Tensor | None) -> None:
        if counted is not None:
            nothing = torch.zeros(3, dtype=torch.int64, device=counted.device)
            images = torch.full((1,), len(counted), device=counted.device)
            self.counts.update(torch.cat([nothing, images, counted.sum()[None]]))

    def _flush(self, steps: Sequence[Tensor]) -> None:
        for (size, _), batches in itertools.groupby(steps, lambda masked: (len(masked), masked.device)):
            if size:
                self._fold_alike(torch.stack(list(batches)))

    def _fold_alike(self, masked: Tensor) -> None:
        """Count and hash batches of masks, bool [k, B, N], as one after the other would be."""
        coverage = masked.sum(dim=(0, 1))
        images = torch.full((), masked[..., 0].numel(), device=masked.device)
        nothing = torch.zeros_like(images)
        self.counts.update(torch.stack([images, coverage.sum(), nothing, nothing, nothing]))
        self.coverage.update(coverage)
        keys = self._keys(masked)
        self.masks.update(keys)
        batches = self._batch_key(keys)
        self._add_batches(batches, torch.ones_like(batches, dtype=torch.bool))

    def reset(self) -> None:
        """Forget everything seen but the last batch's hash, which the next window compares with."""
        self._flush_buffer()
        super().reset()
        self._window_is_new = True

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Divide the counts; {} before the first mask."""
        images, targets, overlap, counted, blocks = states["counts"].value
        if not images:
            return {}
        masked = states["coverage"].value.sum() / images
        masks, batches = states["masks"], states["batches"]
        tags = {
            "masking/mask_ratio": masked / self.num_patches,
            "masking/num_masked_patches": masked,
            "masking/num_unmasked_patches": self.num_patches - masked,
            "masking/target_mask_count": targets / images,
            "masking/context_target_overlap": overlap / targets if targets else 0.0,
            "masking/unique_masks": masks.distinct,
            "masking/repeated_fraction": masks.repeated,
            "masking/collision_probability": masks.collision,
            "masking/repeated_batches": batches.repeated,
        }
        return tags | ({"masking/num_blocks": blocks / counted} if counted else {})

    def _flags(self, name: str, flags: Tensor, mask: Tensor) -> Tensor:
        require_mask(name, flags)
        if flags.shape[1] != self.num_patches or flags.shape != mask.shape:
            got = list(flags.shape)
            raise ConfigError(f"expected {name} as bool [B, {self.num_patches}], got shape {got}")
        return moved(flags.detach(), mask.device)

    def _blocks(self, masked: Tensor, blocks: Tensor | None, count: bool) -> Tensor | None:
        if blocks is None:
            return count_components(masked, self.grid) if count and self.grid is not None else None
        if blocks.ndim not in (1, 3) or len(blocks) != len(masked):
            raise ConfigError(f"expected blocks [{len(masked)}] or [{len(masked)}, K, 4], got {blocks.shape}")
        blocks = moved(blocks.detach(), masked.device)
        return blocks.to(torch.int64) if blocks.ndim == 1 else (blocks[..., 2] > 0).sum(dim=1)

    def _hash(self, masked: Tensor, kept: Tensor | None) -> None:
        if len(masked) == 0:
            return
        keys = self._keys(masked)
        self.masks.update(keys, kept)
        batch = self._batch_key(keys if kept is None else keys * kept)[None]
        self._add_batches(
            batch, torch.ones_like(batch, dtype=torch.bool) if kept is None else kept.any()[None]
        )

    def _keys(self, masked: Tensor) -> Tensor:
        """Return a key for each mask, [...] of [..., N].

        Sums of random numbers, modulo 2^64, are random themselves: nothing has to be mixed any further.
        """
        return (masked * _numbers(self.num_patches, _HASH_SEED, masked.device)).sum(dim=-1) & _KEY_BITS

    def _batch_key(self, keys: Tensor) -> Tensor:
        """Return a key for each batch of masks, [...] of [..., B], by their order; keys of 0 add nothing."""
        return (keys * _numbers(keys.shape[-1], _HASH_SEED + 1, keys.device)).sum(dim=-1) & _KEY_BITS

    def _add_batches(self, batches: Tensor, seen: Tensor) -> None:
        if self._window_is_new and self._last_batch is not None:
            self.batches.update(*self._last_batch)
        self.batches.update(batches, seen)
        self._remember(batches[-1:], seen[-1:])

    def _remember(self, batch: Tensor, seen: Tensor) -> None:
        """Keep the latest batch for the next window; one that is padding throughout is none."""
        if self._last_batch is not None:
            last, known = self._last_batch
            batch, seen = torch.where(seen, batch, last), seen | known
        self._last_batch = batch, seen
        self._window_is_new = False


def _rows(flags: Tensor, kept: Tensor | None) -> Tensor:
    return flags if kept is None else flags & kept[:, None]


@functools.lru_cache(maxsize=32)
def _numbers(count: int, seed: int, device: torch.device) -> Tensor:
    """Return random odd numbers, int64 [count]: the same on every rank and device."""
    return mix(torch.arange(count, device=device), seed) | 1


def _grid(num_patches: int, grid: tuple[int, int] | None) -> tuple[int, int] | None:
    if num_patches < 1:
        raise ConfigError(f"num_patches must be 1 or more, got {num_patches}")
    if grid is None:
        side = math.isqrt(num_patches)
        return (side, side) if side * side == num_patches else None
    if grid[0] * grid[1] != num_patches:
        raise ConfigError(f"a grid of {grid[0]}x{grid[1]} does not have num_patches={num_patches}")
    return grid[0], grid[1]


_masking = partial(Entry, dashboard="masking")
_figure = partial(Entry, kind="image", family="figures")

ENTRIES = (
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
        "Share of masks, over all ranks, that were drawn before in the window, compared by their hash.",
        healthy="near 0 on large grids; on small ones it grows with the window, since there are few masks",
    ),
    _masking(
        "masking/unique_masks",
        "different masks",
        "Number of different masks of all ranks in the window, compared by their hash; estimated above 1024.",
        unit="masks",
        healthy="near the number of images",
    ),
    _masking(
        "masking/collision_probability",
        "probability that two masks are equal",
        "Share of the pairs of masks, over all ranks, that are equal: sum c (c - 1) / (n (n - 1)).",
        healthy="near 0 at any window; above a half nearly every image has the same mask",
        deviation="unlike the share of repeats it does not grow with the window",
    ),
    _masking(
        "masking/repeated_batches",
        "repeated batches of masks",
        "Share of the ranks' batches of masks, back to the one before the window, that equal another batch "
        "of the window in all masks and their order.",
        healthy="0; above it ranks or workers share a seed, or the generator stands still",
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
