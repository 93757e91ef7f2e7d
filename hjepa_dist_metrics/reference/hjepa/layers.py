"""Transformer blocks, patch embedding and positions, small and plain."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Attend over tokens [B, N, D] with `num_heads` heads; `key_valid` bool [B, N] hides padding keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, key_valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return [B, N, D]."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if key_valid is None else key_valid[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed: torch.Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))
        return mixed


class Block(nn.Module):
    """Apply pre-norm attention and MLP, each with a residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = round(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor, key_valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return [B, N, D]."""
        x = x + self.attn(self.norm1(x), key_valid)
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbedding(nn.Module):
    """Cut images [B, C, H, W] into patches and project each: [B, N, D], rows first."""

    def __init__(self, channels: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(channels * patch_size**2, dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, N, D]."""
        side = self.patch_size
        batch, channels, height, width = images.shape
        tiles = images.reshape(batch, channels, height // side, side, width // side, side)
        patches = tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)
        tokens: torch.Tensor = self.proj(patches)
        return tokens


def sincos_positions(grid: tuple[int, int], dim: int) -> torch.Tensor:
    """Return fixed sine-cosine positions, float32 [H * W, dim]: half for the row, half for the column."""
    quarter = dim // 4
    frequency = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.reshape(-1, 1).double() * frequency for axis in (row, column)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1).float()


def init_weights(module: nn.Module) -> None:
    """Draw the weights of linear layers by Xavier's uniform rule; biases are 0."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
