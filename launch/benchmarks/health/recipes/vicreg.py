"""VICReg (arXiv 2105.04906) on digits: two views near each other, every feature with variance, none alike."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.health.recipe import Recipe, Step
from benchmarks.health.recipes.data import augment, digits, endless
from benchmarks.health.recipes.nets import FlatEncoder, mlp


class VICReg(Recipe):
    """The encoder's features and the projector's outputs are both handed to the monitor."""

    rate = 2e-3

    def build(self) -> None:
        """Make encoder, projector and AdamW."""
        self.encoder = FlatEncoder(64, last=nn.ReLU())
        self.projector = mlp(64, 128, 96)
        self.model = nn.ModuleDict({"encoder": self.encoder, "projector": self.projector})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.base_rate, weight_decay=1e-4)
        self.weights = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}

    def batches(self) -> Iterator[Tensor]:
        """Yield images."""
        images = digits()[0]
        order = endless(len(images), self.samples, self.setting.seed, *self.shard)
        yield from (images[index] for index in order)

    def forward(self, batch: Tensor) -> Step:
        """Compare two views."""
        features = self.encoder(augment(batch, self.generator))
        other = self.encoder(augment(batch, self.generator))
        first, second = self.projector(features), self.projector(other)
        zero = torch.zeros(())
        terms = {"invariance": F.mse_loss(first, second), "variance": zero, "covariance": zero}
        for rows in (first, second):
            centred = rows - rows.mean(dim=0)
            cov = centred.T @ centred / (len(rows) - 1)
            std = (cov.diagonal() + 1e-4).sqrt()
            off = cov.square().sum() - cov.diagonal().square().sum()
            terms["variance"] = terms["variance"] + 0.5 * F.relu(1 - std).mean()
            terms["covariance"] = terms["covariance"] + off / rows.shape[1]
        weighted = {name: self.weights[name] * term for name, term in terms.items()}
        loss = torch.stack(list(weighted.values())).sum()
        losses = {f"loss_{name}": term.detach() for name, term in weighted.items()}
        streams = {"encoder": features, "projector": first}
        return Step(loss, {"loss": loss.detach(), **losses}, len(batch), {"features": streams})

    def represent(self) -> tuple[Tensor, Tensor]:
        """Return the encoder's features of held-out digits."""
        _, _, images, labels = digits()
        return self.encoder(images), labels

    def fixed_batch(self) -> Tensor:
        """Return held-out digits."""
        return digits()[2][:128]

    def embed(self) -> Tensor:
        """Return the projections of held-out digits."""
        projected: Tensor = self.projector(self.encoder(digits()[2]))
        return projected
