"""A transformer of a few blocks, whole or one pipeline stage of it, under the names of the whole model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_dist_metrics import ProcessContext
from hjepa_dist_metrics.reference.language.config import ModelConfig
from hjepa_dist_metrics.reference.language.experts import Mixture
from hjepa_dist_metrics.reference.language.sums import ALPHABET, LENGTH


class Block(nn.Module):
    """Causal attention and a mixture of experts, each beside its input."""

    def __init__(self, config: ModelConfig, held: Sequence[int], context: ProcessContext) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv, self.out = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.mixture = Mixture(config.width, config.experts, held, context)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, N, width]."""
        split = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        result: Tensor = x + self.mixture(self.norm2(x))
        return result


class Language(nn.Module):
    """Hold the blocks `layers`, with the embedding before the first of all and the head after the last.

    Each parameter is drawn by its own name, so that it is the same beside any others that a rank holds.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Sequence[int],
        held: Sequence[int],
        context: ProcessContext,
        seed: int,
    ) -> None:
        super().__init__()
        self.is_first, self.is_last = 0 in layers, config.layers - 1 in layers
        if self.is_first:
            self.embed = nn.Embedding(len(ALPHABET), config.width)
            self.places = nn.Parameter(torch.empty(LENGTH, config.width))
        self.layers = nn.ModuleDict({str(i): Block(config, held, context) for i in layers})
        if self.is_last:
            self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, len(ALPHABET))
        _draw(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, N, width]: of letters [B, N] on the first stage, of features on others."""
        if self.is_first:
            x = self.embed(x) + self.places[: x.shape[1]]
        for block in self.layers.values():
            x = block(x)
        return self.norm(x) if self.is_last else x

    def router_logits(self, passes: int) -> dict[str, Tensor]:
        """Return the router's scores [tokens, experts] of each layer, of the newest passes."""
        found = {}
        for name, block in self.layers.items():
            assert isinstance(block, Block)
            found[f"layers.{name}"] = block.mixture.take_logits(passes)
        return found

    def loss(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next letters, int64 [B, N]."""
        return F.cross_entropy(self.head(features).flatten(0, 1), targets.flatten())


@torch.no_grad()
def _draw(model: nn.Module, seed: int) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            generator = torch.Generator().manual_seed(
                seed + sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31
            )
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * parameter.shape[-1] ** -0.5)
