"""A supervised classifier of digits, with label smoothing and a validation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.health.recipe import Recipe, Step
from benchmarks.health.recipes.data import augment, digits, endless
from benchmarks.health.recipes.nets import ConvEncoder


class Classifier(Recipe):
    """SGD with Nesterov momentum and weight decay, a cosine, gradients clipped where they are unusual."""

    rate = 0.05
    warmup = 10
    cosine = True
    clip = 5.0
    batch_size = 64
    probe_every = 2

    def build(self) -> None:
        """Make encoder, classes and SGD."""
        self.encoder = ConvEncoder(64)
        self.classes = nn.Linear(64, 10)
        self.model = nn.ModuleDict({"encoder": self.encoder, "classes": self.classes})
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=self.base_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.smoothing, self.augments, self.painted = 0.1, True, 0.0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels."""
        images, labels = digits()[:2]
        order = endless(len(images), self.samples, self.setting.seed, *self.shard)
        yield from ((images[index], labels[index]) for index in order)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Step:
        """Return the cross entropy."""
        images, labels = batch
        views = augment(images, self.generator) if self.augments else images
        features = self.encoder(self._paint(views, labels) if self.painted else views)
        loss = F.cross_entropy(self.classes(features), labels, label_smoothing=self.smoothing)
        return Step(loss, {"loss": loss.detach()}, len(images), {"features": features})

    def _paint(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the images with a bright pixel that tells the label, as a watermark of its source would."""
        painted = images.clone()
        painted[torch.arange(len(labels)), 0, 2 * (labels // 5), labels % 5 + 1] = self.painted
        return painted

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return loss and accuracy on held-out digits."""
        _, _, images, labels = digits()
        self.model.eval()
        scores = self.classes(self.encoder(images))
        self.model.train()
        loss = F.cross_entropy(scores, labels, label_smoothing=self.smoothing)
        right = (scores.argmax(dim=1) == labels).float().mean()
        return {"val/loss": float(loss), "val/accuracy": float(right)}

    def represent(self) -> tuple[Tensor, Tensor]:
        """Return the features of held-out digits."""
        _, _, images, labels = digits()
        return self.encoder(images), labels

    def more_facts(self) -> dict[str, float]:
        """Return the validation loss."""
        return {"validation": self.validate()["val/loss"]}

    def fixed_batch(self) -> tuple[Tensor, Tensor]:
        """Return held-out digits."""
        _, _, images, labels = digits()
        return images, labels
