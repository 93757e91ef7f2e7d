"""SimCLR (arXiv 2002.05709) on digits: two views of an image attract each other, other images repel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.health.recipe import Recipe, Step
from benchmarks.health.recipes.data import augment, digits, endless
from benchmarks.health.recipes.nets import ConvEncoder, mlp


class SimCLR(Recipe):
    """SGD with momentum and a cosine; positive features of a convolutional encoder, with a common mean."""

    rate = 0.05
    batch_size = 96
    warmup = 20
    cosine = True
    temperature = 0.2

    def build(self) -> None:
        """Make encoder, projector and SGD."""
        self.encoder = ConvEncoder(96)
        self.projector = mlp(96, 96, 48)
        self.model = nn.ModuleDict({"encoder": self.encoder, "projector": self.projector})
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=self.base_rate, momentum=0.9, weight_decay=1e-4
        )
        self.attraction = self.repulsion = 1.0

    def batches(self) -> Iterator[Tensor]:
        """Yield images."""
        images = digits()[0]
        order = endless(len(images), self.samples, self.setting.seed, *self.shard)
        yield from (images[index] for index in order)

    def forward(self, batch: Tensor) -> Step:
        """Contrast each view with all others of the batch."""
        features = self.encoder(torch.cat([augment(batch, self.generator) for _ in range(2)]))
        projected = F.normalize(self.projector(features), dim=1)
        logits = projected @ projected.T / self.temperature
        count = len(batch)
        positive = (torch.arange(2 * count) + count) % (2 * count)
        attraction = logits[torch.arange(2 * count), positive].mean()
        others = logits.masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
        repulsion = others.logsumexp(dim=1).mean()
        loss = self.repulsion * repulsion - self.attraction * attraction
        observed = {"features": {"encoder": features, "projector": projected}}
        return Step(loss, {"loss": loss.detach()}, count, observed)

    def represent(self) -> tuple[Tensor, Tensor]:
        """Return the encoder's features of held-out digits."""
        _, _, images, labels = digits()
        return self.encoder(images), labels

    def fixed_batch(self) -> Tensor:
        """Return held-out digits."""
        return digits()[2][:96]

    def embed(self) -> Tensor:
        """Return the projections of held-out digits."""
        projected: Tensor = self.projector(self.encoder(digits()[2]))
        return projected
