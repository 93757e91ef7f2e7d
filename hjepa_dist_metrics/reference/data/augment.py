"""Augmentation drawn by global sample index and epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from hjepa_dist_metrics.reference.data.randomness import indexed_uniform


def random_shift(
    images: torch.Tensor, indices: torch.Tensor, *, max_shift: int, seed: int, epoch: int
) -> torch.Tensor:
    """Move each image [B, C, H, W] by up to `max_shift` pixels each way; edges are repeated.

    The shift is a function of (seed, epoch, index): the same whichever rank and batch hold the sample.
    """
    if max_shift == 0:
        return images
    uniform = indexed_uniform(indices, 2, seed=seed, epoch=epoch, stream="shift")
    offset = torch.from_numpy(np.floor(uniform * (2 * max_shift + 1)).astype(np.int64)).to(images.device)
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    height, width = images.shape[-2:]
    rows = offset[:, :1] + torch.arange(height, device=images.device)
    columns = offset[:, 1:] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
