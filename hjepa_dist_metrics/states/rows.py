"""Rows as moments take them: which of them count, and how many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.states.base import as_tensor, moved

_BLOCK_ELEMENTS = 1 << 20


def row_weights(valid: Tensor, lead: Sequence[int], device: torch.device) -> Tensor:
    """Return `valid` as bool [rows]; raise ConfigError where its shape is not the rows'."""
    return row_mask(valid, lead, device).reshape(-1)


def row_mask(valid: Tensor, lead: Sequence[int], device: torch.device) -> Tensor:
    """Return `valid` as bool of the rows' shape; raise ConfigError where it has another one."""
    mask = as_tensor(valid, device)
    if tuple(mask.shape) != tuple(lead):
        raise ConfigError(f"expected a valid mask of shape {list(lead)}, got {list(mask.shape)}")
    return moved(mask, device, torch.bool)


def blocks(rows: Tensor, weight: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield blocks of rows, so that a float64 copy never takes more than a few megabytes."""
    if rows.shape[0] == 0:
        return
    step = max(1, _BLOCK_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step], None if weight is None else weight[start : start + step]
