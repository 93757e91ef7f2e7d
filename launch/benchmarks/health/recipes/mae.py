"""A masked autoencoder (arXiv 2111.06377) on digits: paint the masked patches from the visible ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.health.recipe import Recipe, Step
from benchmarks.health.recipes.data import digits, endless, patches
from benchmarks.health.recipes.nets import Block, PatchTransformer


class MAE(Recipe):
    """Ten of sixteen patches are masked; AdamW with warm-up, a cosine, and clipped gradients."""

    rate = 3e-3
    steps = 150
    log_every = 5
    batch_size = 48
    warmup = 20
    cosine = True
    clip = 1.0
    probe_every = 4

    def build(self) -> None:
        """Make encoder, decoder and AdamW."""
        self.encoder, dim = PatchTransformer(32), 32
        self.decoder = nn.ModuleDict({"block": Block(dim, 4), "paint": nn.Linear(dim, 4)})
        self.model = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})
        tokens = {"hidden": nn.Parameter(torch.zeros(dim)), "place": nn.Parameter(0.2 * torch.randn(16, dim))}
        self.tokens = nn.ParameterDict(tokens)
        self.model["tokens"] = self.tokens
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.base_rate, weight_decay=0.05)
        self.masked, self.repeats, self.leaks = 10, 0, 0

    def batches(self) -> Iterator[Tensor]:
        """Yield images."""
        images = digits()[0]
        order = endless(len(images), self.samples, self.setting.seed, *self.shard)
        yield from (images[index] for index in order)

    def _order(self, count: int) -> Tensor:
        """Return each image's patches in random order, int64 [B, 16]: the first ones are masked.

        With `repeats` 1 every batch has the same masks, with 2 every image.
        """
        generator = torch.Generator().manual_seed(5) if self.repeats else self.generator
        draws = torch.rand(1 if self.repeats == 2 else count, 16, generator=generator)
        return draws.argsort(dim=1).expand(count, -1)

    def forward(self, batch: Tensor) -> Step:
        """Return the mean squared error on the masked patches."""
        order, truth = self._order(len(batch)), patches(batch)
        masked, seen = order[:, : self.masked], order[:, self.masked - self.leaks :]
        tokens = self.encoder(batch, seen)
        hidden = self.tokens["hidden"].expand(len(batch), 16, -1)
        places = seen[:, :, None].expand(-1, -1, hidden.shape[-1])
        x = self.decoder["block"](hidden.scatter(1, places, tokens) + self.tokens["place"])
        error = (self.decoder["paint"](x) - truth).square().mean(dim=2)
        loss = error.gather(1, masked).mean() if self.masked else 0.0 * error.sum()
        mask = torch.zeros(len(batch), 16, dtype=torch.bool).scatter_(1, masked, True)
        given = torch.zeros_like(mask).scatter_(1, seen, True)
        observed: dict[str, Any] = {"mask": mask.view(-1, 4, 4), "context_mask": given.view(-1, 4, 4)}
        if self.logs_features:  # of whole images: which patches are visible tells images apart as well
            with torch.no_grad():
                observed["features"] = self.encoder(batch)
        return Step(loss, {"loss": loss.detach()}, len(batch), observed)

    def represent(self) -> tuple[Tensor, Tensor]:
        """Return the mean tokens of held-out digits."""
        _, _, images, labels = digits()
        return self.encoder(images).mean(dim=1), labels

    def more_facts(self) -> dict[str, float]:
        """Return how far images lie apart, over how far the tokens of an image do."""
        tokens = self.encoder(digits()[2])
        images = tokens.mean(dim=1)
        within = (tokens - images[:, None]).square().sum(dim=2).mean()
        between = (images - images.mean(dim=0)).square().sum(dim=1).mean()
        return {"between": float(between / within)}

    def fixed_batch(self) -> Tensor:
        """Return held-out digits."""
        return digits()[2][:64]
