"""The encoder: a vision transformer that can be shown a part of the patches only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from hjepa_dist_metrics.reference.hjepa.layers import Block, PatchEmbedding, init_weights, sincos_positions


class Tokens(NamedTuple):
    """Hold encoded tokens of a batch whose samples may have different numbers of them.

    `features` [B, K, D], zero at padding; `valid` bool [B, K]; `positions` int64 [B, K], each token's patch
    number.
    """

    features: torch.Tensor
    valid: torch.Tensor
    positions: torch.Tensor


def visible_first(visible: torch.Tensor, max_visible: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions int64 [B, K] and valid bool [B, K]: a sample's visible patches in order, then padding.

    K is the largest number of visible patches. On the CPU it is counted; on a device the host would wait for
    the count, and torch.compile would break its graph: there K is `max_visible`, an upper bound that the
    caller knows, or N.
    """
    if max_visible is None:
        on_host = visible.device.type == "cpu" and not torch.compiler.is_compiling()
        max_visible = max(int(visible.sum(dim=1).max()), 1) if on_host else visible.shape[1]
    order = visible.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :max_visible]
    return order, visible.gather(1, order)


def take_tokens(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return x [B, N, D] at `positions` [B, K]: [B, K, D]."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class VisionEncoder(nn.Module):
    """Encode patches with their positions; hidden patches enter neither as queries nor as keys."""

    pos_embed: torch.Tensor

    def __init__(
        self,
        grid: tuple[int, int],
        patch_size: int,
        channels: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.grid, self.embed_dim = grid, dim
        self.patch_embed = PatchEmbedding(channels, patch_size, dim)
        self.register_buffer("pos_embed", sincos_positions(grid, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.apply(init_weights)

    def forward(
        self, images: torch.Tensor, visible: torch.Tensor | None = None, max_visible: int | None = None
    ) -> Tokens:
        """Encode images [B, C, H, W]; `visible` bool [B, N] are the patches to look at, None: all."""
        x = self.patch_embed(images) + self.pos_embed
        if visible is None:
            positions = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
            return Tokens(self._run(x, None), torch.ones_like(positions, dtype=torch.bool), positions)
        positions, valid = visible_first(visible, max_visible)
        x = take_tokens(x, positions)
        # A sample without any visible patch attends to its padding: softmax over nothing would be NaN.
        key_valid = valid | ~valid.any(dim=1, keepdim=True)
        return Tokens(self._run(x, key_valid) * valid.unsqueeze(-1), valid, positions)

    def _run(self, x: torch.Tensor, key_valid: torch.Tensor | None) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, key_valid)
        out: torch.Tensor = self.norm(x)
        return out
