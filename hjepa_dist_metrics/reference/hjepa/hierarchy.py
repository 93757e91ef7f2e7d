"""Levels of the hierarchy: pooled grids that know which tokens are real."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hjepa_dist_metrics.errors import ConfigError


def level_grids(grid: tuple[int, int], num_levels: int) -> list[tuple[int, int]]:
    """Return every level's (rows, columns), fine to coarse; each halves the one before, rounding up.

    Raises ConfigError where a level would be no coarser than the one before it.
    """
    grids = [grid]
    while len(grids) < num_levels and grids[-1] != (1, 1):
        rows, columns = grids[-1]
        grids.append(((rows + 1) // 2, (columns + 1) // 2))
    if len(grids) < num_levels:
        raise ConfigError(
            f"model.num_hierarchies is {num_levels}, but a grid of {grid[0]}x{grid[1]} patches allows at "
            f"most {len(grids)}: use fewer levels or a smaller model.patch_size"
        )
    return grids


def _window_sums(x: torch.Tensor, grid: tuple[int, int], level: int) -> torch.Tensor:
    """Sum [B, N, C] over windows of 2^level x 2^level patches, padded with 0 at the edge: [B, N_l, C]."""
    side = 2**level
    rows, columns = grid
    down, across = -rows % side, -columns % side
    tiles = F.pad(x.reshape(len(x), rows, columns, -1), (0, 0, 0, across, 0, down))
    shape = (len(x), (rows + down) // side, side, (columns + across) // side, side, x.shape[-1])
    return tiles.reshape(shape).sum(dim=(2, 4)).flatten(1, 2)


def pool_tokens(x: torch.Tensor, valid: torch.Tensor, grid: tuple[int, int], level: int) -> torch.Tensor:
    """Average each window's valid tokens: x [B, N, D], valid bool [B, N] -> [B, N_l, D], 0 without any."""
    if level == 0:
        return x * valid.unsqueeze(-1)
    weight = valid.unsqueeze(-1).to(x.dtype)
    total, count = _window_sums(x * weight, grid, level), _window_sums(weight, grid, level)
    return total / count.clamp(min=1)


def pool_any(flags: torch.Tensor, grid: tuple[int, int], level: int) -> torch.Tensor:
    """Return bool [B, N_l]: True where any patch of the window has its flag (bool [B, N]) set."""
    if level == 0:
        return flags
    return _window_sums(flags.unsqueeze(-1).to(torch.float32), grid, level).squeeze(-1) > 0
