"""Small transformers of the kinds that people have, with random weights."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

SIZE = (32, 48)  # a grid of 4 x 6 patches of 8 pixels
GRID = (4, 6)


def image(seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


class PatchViT(nn.Module):
    """Patch embedding, `prefix` tokens in front, then the given blocks: `block(x)` adds its attention."""

    def __init__(self, blocks: list[nn.Module], dim: int = 24, prefix: int = 1) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 8, 8)
        self.prefix = nn.Parameter(torch.randn(prefix, dim))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            out = block(x)
            x = x + (out[0] if isinstance(out, tuple) else out)
        return x


class SelfMHA(nn.Module):
    """nn.MultiheadAttention as blocks call it: positionally, without asking for weights."""

    def __init__(self, dim: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x, None, False)[0]


class DinoAttention(nn.Module):
    """Attention as DINO and I-JEPA write it: dropout on the weights, weights returned."""

    def __init__(self, dim: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.qkv, self.attn_drop = heads, nn.Linear(dim, 3 * dim), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5).softmax(dim=-1)
        weights = self.attn_drop(weights)
        return (weights @ v).transpose(1, 2).reshape(b, n, d), weights


class FusedOrNot(nn.Module):
    """Attention as timm writes it: a fused kernel, or by hand with the query scaled first."""

    def __init__(self, dim: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.qkv, self.fused_attn, self.attn_drop = (
            heads,
            nn.Linear(dim, 3 * dim),
            True,
            nn.Identity(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            out = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            out = self.attn_drop((q * (d // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        return out.transpose(1, 2).reshape(b, n, d)


def encoder_layers(depth: int = 2, dim: int = 24, heads: int = 3) -> nn.Module:
    layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


@contextmanager
def timm_attention() -> Iterator[type[nn.Module]]:
    """Yield timm's `Attention`. timm as a whole needs torchvision; its attention does not, so a stand-in for
    the one batch norm that `timm.layers` imports is enough where torchvision is missing."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("timm is not installed (pip install --no-deps timm)")
    added = []
    if importlib.util.find_spec("torchvision") is None:
        package = types.ModuleType("timm")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = importlib.machinery.ModuleSpec("timm", None, is_package=True)
        misc = types.ModuleType("torchvision.ops.misc")
        misc.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.Module,), {})  # type: ignore[attr-defined]
        stand_ins = {"timm": package, "torchvision.ops.misc": misc}
        stand_ins |= {name: types.ModuleType(name) for name in ("torchvision", "torchvision.ops")}
        added = [name for name in stand_ins if name not in sys.modules]
        sys.modules.update({name: stand_ins[name] for name in added})
    try:
        from timm.layers.attention import Attention

        yield Attention
    finally:
        for name in added:
            del sys.modules[name]
        for name in [name for name in sys.modules if added and name.startswith("timm.")]:
            del sys.modules[name]
