"""Scikit-learn's digits in memory, two augmented views of them, and an endless order of samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

_NUM_TRAIN = 1400


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images [1400, 1, 8, 8] and labels, held-out images [397, 1, 8, 8] and labels."""
    bunch = load_digits()
    images = (torch.from_numpy(bunch.images).float()[:, None] / 16.0 - 0.305) / 0.376
    labels = torch.from_numpy(bunch.target).long()
    order = torch.from_numpy(np.random.default_rng(7).permutation(len(images)))
    train, held_out = order[:_NUM_TRAIN], order[_NUM_TRAIN:]
    return images[train], labels[train], images[held_out], labels[held_out]


def endless(count: int, samples: int, seed: int, rank: int = 0, world_size: int = 1) -> Iterator[Tensor]:
    """Yield a rank's share of batches: int64 [samples], another order each epoch, the last batch dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)[rank::world_size]
        for start in range(0, len(order) - samples + 1, samples):
            yield order[start : start + samples]


def augment(images: Tensor, generator: torch.Generator, noise: float = 0.15) -> Tensor:
    """Return images [B, 1, 8, 8] moved by up to a pixel, brightened, with noise and one erased patch."""
    count, size = len(images), images.shape[-1]
    move = torch.randint(0, 3, (count, 2), generator=generator)
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")[:, 0]
    grid = torch.arange(size)
    rows, columns = move[:, :1] + grid, move[:, 1:] + grid
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    moved = moved * (0.8 + 0.4 * torch.rand(count, 1, 1, generator=generator))
    corner = torch.randint(0, size - 1, (count, 2), generator=generator)
    inside = [(grid >= corner[:, i : i + 1]) & (grid < corner[:, i : i + 1] + 2) for i in range(2)]
    erased = inside[0][:, :, None] & inside[1][:, None, :]
    kept = torch.where(erased, torch.full((), -0.8), moved)
    return (kept + noise * torch.randn(kept.shape, generator=generator))[:, None]


def patches(images: Tensor, side: int = 2) -> Tensor:
    """Cut images [B, 1, 8, 8] into patches [B, N, side * side], row by row."""
    return F.unfold(images, side, stride=side).transpose(1, 2)
