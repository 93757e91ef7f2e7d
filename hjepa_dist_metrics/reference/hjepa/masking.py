"""Rectangular target masks, drawn by global sample index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.reference.data.randomness import indexed_uniform

_DRAWS_PER_BLOCK = 4


@dataclass(frozen=True)
class MaskBatch:
    """Hold the masks of a batch and the blocks that they are made of.

    `mask` bool [B, N], True = masked; `blocks` int64 [B, K, 4]: top, left, height, width in patches, height 0
    where a block was dropped to keep enough patches visible.
    """

    mask: torch.Tensor
    blocks: torch.Tensor


class MultiBlockMaskGenerator:
    """Draw `num_target_blocks` rectangles of patches for every sample (blocks as in I-JEPA, 2301.08243).

    1. Area is uniform in `scale` times the grid, height over width log-uniform in `aspect_ratio`.
    2. The corner is uniform over the places where the rectangle fits.
    3. A block that would leave fewer than `min_visible` patches is dropped; the first one shrinks to one
    patch.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_target_blocks: int = 3,
        scale: Sequence[float] = (0.15, 0.35),
        aspect_ratio: Sequence[float] = (0.66, 1.5),
        *,
        min_visible: int = 1,
        seed: int = 0,
    ) -> None:
        patches = grid[0] * grid[1]
        if not 1 <= min_visible < patches:
            raise ConfigError(
                f"model.masking.min_visible is {min_visible}; allowed: 1 to {patches - 1} "
                f"on a grid of {grid[0]}x{grid[1]} patches"
            )
        self.grid, self.num_patches, self.num_target_blocks = grid, patches, num_target_blocks
        self.scale, self.aspect_ratio = tuple(scale), tuple(aspect_ratio)
        self.min_visible, self.seed = min_visible, seed
        self._drawn = 0

    def __call__(self, batch_size: int) -> torch.Tensor:
        """Return bool [batch_size, N] of the next `batch_size` indices, counted from 0."""
        start, self._drawn = self._drawn, self._drawn + batch_size
        return self.generate(torch.arange(start, self._drawn), epoch=0)

    def generate(self, sample_indices: torch.Tensor, epoch: int) -> torch.Tensor:
        """Return bool [B, N] on the CPU, True = masked: a function of seed, epoch and sample index."""
        return self.generate_blocks(sample_indices, epoch).mask

    def generate_blocks(self, sample_indices: torch.Tensor, epoch: int) -> MaskBatch:
        """Return the masks of `generate` together with their blocks, for statistics of the geometry."""
        draws = self.num_target_blocks * _DRAWS_PER_BLOCK
        uniform = indexed_uniform(sample_indices, draws, seed=self.seed, epoch=epoch, stream="mask")
        mask = np.zeros((len(uniform), *self.grid), dtype=bool)
        blocks = np.zeros((len(uniform), self.num_target_blocks, 4), dtype=np.int64)
        for k in range(self.num_target_blocks):
            block = self._rectangles(uniform[:, k * _DRAWS_PER_BLOCK : (k + 1) * _DRAWS_PER_BLOCK])
            crowded = self.num_patches - (mask | self._paint(block)).sum(axis=(1, 2)) < self.min_visible
            block[crowded, 2:] = 1 if k == 0 else 0
            mask |= self._paint(block)
            blocks[:, k] = block
        flat = torch.from_numpy(mask.reshape(len(mask), self.num_patches))
        return MaskBatch(flat, torch.from_numpy(blocks))

    def _rectangles(self, uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Turn four uniform numbers a row into (top, left, height, width), int64 [B, 4]."""
        low, high = self.scale
        area = (low + (high - low) * uniform[:, 0]) * self.num_patches
        log_low, log_high = np.log(self.aspect_ratio)
        ratio = np.exp(log_low + (log_high - log_low) * uniform[:, 1])
        height = np.clip(np.rint(np.sqrt(area * ratio)), 1, self.grid[0])
        width = np.clip(np.rint(np.sqrt(area / ratio)), 1, self.grid[1])
        top = np.floor(uniform[:, 2] * (self.grid[0] - height + 1))
        left = np.floor(uniform[:, 3] * (self.grid[1] - width + 1))
        return np.stack([top, left, height, width], axis=1).astype(np.int64)

    def _paint(self, block: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return bool [B, H, W], True inside each row's rectangle."""
        top, left, height, width = (block[:, i, None] for i in range(4))
        rows, columns = np.arange(self.grid[0])[None], np.arange(self.grid[1])[None]
        in_rows = (rows >= top) & (rows < top + height)
        in_columns = (columns >= left) & (columns < left + width)
        painted: npt.NDArray[np.bool_] = in_rows[:, :, None] & in_columns[:, None, :]
        return painted
