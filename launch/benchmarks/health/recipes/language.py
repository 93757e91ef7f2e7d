"""A small language model: a causal transformer that predicts the next character of Python's manual."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.health.recipe import Recipe, Step
from benchmarks.health.recipes.nets import Block

_LENGTH, _CHARACTERS = 32, 96


@cache
def text() -> tuple[Tensor, Tensor]:
    """Return the manual's characters to train on and those held out, int64."""
    manual = "".join(topics[name] for name in sorted(topics))[:220_000]
    codes = torch.tensor(list(manual.encode("ascii", "ignore"))).clamp(31, 31 + _CHARACTERS - 1) - 31
    return codes[:180_000], codes[180_000:]


class LanguageModel(Recipe):
    """AdamW with warm-up and a cosine, gradients clipped at 1; a validation now and then."""

    rate = 3e-3
    batch_size = 24
    warmup = 16
    cosine = True
    clip = 1.0
    probe_every = 5

    def build(self) -> None:
        """Make the transformer and AdamW."""
        dim = 48
        self.net = nn.ModuleDict(
            {
                "embed": nn.Embedding(_CHARACTERS, dim),
                "place": nn.Embedding(_LENGTH, dim),
                "blocks": nn.ModuleList(Block(dim, 4) for _ in range(2)),
                "norm": nn.LayerNorm(dim),
                "head": nn.Linear(dim, _CHARACTERS),
            }
        )
        self.model = self.net
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.base_rate, weight_decay=0.01)
        # The tokens that the loss is divided by, over those that there are.
        self.tokens_counted = 1.0

    def batches(self) -> Iterator[Tensor]:
        """Yield pieces of the text, int64 [B, 33]."""
        codes = text()[0]
        while True:
            start = torch.randint(0, len(codes) - _LENGTH, (self.samples, 1), generator=self.generator)
            yield codes[start + torch.arange(_LENGTH + 1)]

    def _tokens(self, codes: Tensor) -> Tensor:
        net: Any = self.net
        length = codes.shape[1]
        x: Tensor = net["embed"](codes) + net["place"].weight[:length]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        for block in net["blocks"]:
            x = block(x, mask)
        normed: Tensor = net["norm"](x)
        return normed

    def forward(self, batch: Tensor) -> Step:
        """Return the cross entropy of the next characters."""
        tokens = self._tokens(batch[:, :-1])
        loss = F.cross_entropy(self.net["head"](tokens).flatten(0, 1), batch[:, 1:].flatten())
        loss = loss / self.tokens_counted
        return Step(
            loss, {"loss": loss.detach()}, len(batch), {"features": tokens, "tokens": tokens.shape[1]}
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss on held-out text."""
        return {"val/loss": float(self.forward(self.fixed_batch()).loss)}

    def fixed_batch(self) -> Tensor:
        """Return held-out text."""
        return text()[1][: 32 * (_LENGTH + 1)].view(32, _LENGTH + 1)
