"""Connected regions of masks on a grid, with tensor operations of fixed shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def count_components(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return int64 [B]: how many regions of True cells that touch by a side each mask [B, H * W] has.

    Cells take the smallest label of their neighbours and jump to the label's own label (hooking and pointer
    jumping after Shiloach and Vishkin 1982), so that the steps grow with the logarithm of the cells.
    """
    rows, columns = grid
    cells = rows * columns
    own = torch.arange(cells, device=mask.device).expand(len(mask), cells)
    labels = own.clone()
    masked = mask.reshape(len(mask), cells)
    for _ in range(2 * math.ceil(math.log2(max(cells, 2))) + 2):
        before = labels
        nearest = _smallest_neighbour(labels.masked_fill(~masked, cells), grid)
        nearest = torch.where(masked, nearest, own)
        labels = labels.scatter_reduce(1, labels, nearest, "amin")
        labels = torch.minimum(labels, nearest)
        labels = labels.gather(1, labels)
        labels = labels.gather(1, labels)
        if mask.device.type == "cpu" and torch.equal(labels, before):  # a device would have to be waited for
            break
    return (masked & (labels == own)).sum(dim=1)


def _smallest_neighbour(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the smallest label among each cell and its four neighbours."""
    cells = labels.reshape(-1, *grid)
    best = cells.clone()
    best[:, 1:] = torch.minimum(best[:, 1:], cells[:, :-1])
    best[:, :-1] = torch.minimum(best[:, :-1], cells[:, 1:])
    best[:, :, 1:] = torch.minimum(best[:, :, 1:], cells[:, :, :-1])
    best[:, :, :-1] = torch.minimum(best[:, :, :-1], cells[:, :, 1:])
    return best.reshape(labels.shape)
