"""The predictor: fills the whole grid from the context's tokens, mask tokens and positions."""

from __future__ import annotations

import torch
from torch import nn

from hjepa_dist_metrics.reference.hjepa.encoder import Tokens
from hjepa_dist_metrics.reference.hjepa.layers import Block, init_weights, sincos_positions


class Predictor(nn.Module):
    """Map context tokens to one hidden token for every patch of the grid."""

    pos_embed: torch.Tensor

    def __init__(
        self, grid: tuple[int, int], encoder_dim: int, dim: int, depth: int, num_heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.register_buffer("pos_embed", sincos_positions(grid, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tokens, patch_valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return hidden tokens [B, N, dim]; `patch_valid` bool [B, N] hides padding patches."""
        x = self._fill_grid(context) + self.pos_embed
        for block in self.blocks:
            x = block(x, patch_valid)
        out: torch.Tensor = self.norm(x)
        return out

    def _fill_grid(self, context: Tokens) -> torch.Tensor:
        """Put context tokens at their positions and the mask token everywhere else: [B, N, dim]."""
        embedded = self.embed(context.features)
        token = self.mask_token.to(embedded.dtype)
        values = torch.where(context.valid.unsqueeze(-1), embedded, token)
        grid = token.expand(len(values), len(self.pos_embed), -1)
        return grid.scatter(1, context.positions.unsqueeze(-1).expand_as(values), values)
