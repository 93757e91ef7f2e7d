"""Small networks: an MLP, a convolutional encoder, a transformer over patches, projection heads."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.health.recipes.data import patches


def mlp(*widths: int, norm: bool = True, last: nn.Module | None = None) -> nn.Sequential:
    """Return linear layers with batch norm and ReLU between them; `last` follows the last one."""
    layers: list[nn.Module] = []
    for i, (wide, narrow) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(wide, narrow))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(narrow), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers, *([] if last is None else [last]))


class FlatEncoder(nn.Module):
    """Encode images as flat vectors: [B, 1, 8, 8] to [B, dim]."""

    def __init__(self, dim: int, hidden: int = 128, last: nn.Module | None = None) -> None:
        super().__init__()
        self.body = mlp(64, hidden, hidden)
        self.output = nn.Linear(hidden, dim)
        self.last = last or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, dim]."""
        features: Tensor = self.last(self.output(torch.relu(self.body(images.flatten(1)))))
        return features


class ConvEncoder(nn.Module):
    """Two convolutions with batch norm, mean over the image, ReLU features: [B, 1, 8, 8] to [B, dim]."""

    def __init__(self, dim: int, channels: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
        )
        self.output = nn.Linear(2 * channels * 16, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return features [B, dim], none below 0."""
        return torch.relu(self.output(self.body(images).flatten(1)))


class Block(nn.Module):
    """A transformer block with layer norm before attention and MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, dim]; `mask` bool [N, N], True = not attended to."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchTransformer(nn.Module):
    """Encode images as 16 tokens: [B, 1, 8, 8] to [B, 16, dim]; `kept` int64 [B, K] takes some of them."""

    def __init__(self, dim: int, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(4, dim)
        self.place = nn.Parameter(0.2 * torch.randn(16, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, dim]."""
        x = self.embed(patches(images)) + self.place
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[-1]))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out
