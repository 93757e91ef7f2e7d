"""BYOL (arXiv 2006.07733) on digits: a predictor meets the features of a teacher that follows slowly."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.health.recipe import Recipe, Step
from benchmarks.health.recipes.data import augment, digits, endless
from benchmarks.health.recipes.nets import FlatEncoder, mlp


class BYOL(Recipe):
    """The teacher's momentum rises from 0.95 to 1 along a half cosine."""

    rate = 5e-4
    momentum_start = 0.95

    def build(self) -> None:
        """Make student, teacher, predictor and Adam."""
        self.student = nn.Sequential(FlatEncoder(64), mlp(64, 96, 48))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = mlp(48, 96, 48)
        modules = {"student": self.student, "teacher": self.teacher, "predictor": self.predictor}
        self.model = nn.ModuleDict(modules)
        trained = [*self.student.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.Adam(trained, lr=self.base_rate)
        self.encoders = (self.student, self.teacher)
        self.uses_predictor = self.stops_gradient = self.teacher_moves = self.reports_momentum = True
        self.momentum_rises, self.teacher_learns = True, False
        self.still: set[str] = set()

    def batches(self) -> Iterator[Tensor]:
        """Yield images."""
        images = digits()[0]
        order = endless(len(images), self.samples, self.setting.seed, *self.shard)
        yield from (images[index] for index in order)

    def forward(self, batch: Tensor) -> Step:
        """Predict the teacher's view of one crop from the student's of the other."""
        features = self.student[0](augment(batch, self.generator))
        projected = self.student[1](features)
        predicted = self.predictor(projected) if self.uses_predictor else projected
        other = augment(batch, self.generator)
        if self.stops_gradient:
            with torch.set_grad_enabled(self.teacher_learns):
                target = self.teacher(other)
        else:
            target = self.student(other)
        loss = 2 - 2 * F.cosine_similarity(predicted, target, dim=1).mean()
        observed = {
            "features": features,
            "predictions": predicted[:, None],
            "targets": target.detach()[:, None],
        }
        return Step(loss, {"loss": loss.detach()}, len(batch), observed)

    def momentum(self, step: int) -> float:
        """Return the teacher's momentum."""
        return self._scheduled(step if self.momentum_rises else 0)

    def _scheduled(self, step: int) -> float:
        progress = step / self.steps
        return 1 - (1 - self.momentum_start) * 0.5 * (1 + math.cos(math.pi * progress))

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, Any]:
        """Move the teacher; return its momentum."""
        momentum = self.momentum(step)
        self.gap = momentum - self._scheduled(step)
        if self.teacher_moves:
            live = dict(self.student.named_parameters())
            for name, slow in self.teacher.named_parameters():
                if name not in self.still:
                    slow.lerp_(live[name], 1 - momentum)
            buffers = dict(self.student.named_buffers())
            for name, buffer in self.teacher.named_buffers():
                buffer.copy_(buffers[name])
        return {"momentum": momentum, "momentum_target": 1.0} if self.reports_momentum else {}

    def represent(self) -> tuple[Tensor, Tensor]:
        """Return the student's features of held-out digits."""
        _, _, images, labels = digits()
        return self.student[0](images), labels

    def fixed_batch(self) -> Tensor:
        """Return held-out digits."""
        return digits()[2][:128]

    def more_facts(self) -> dict[str, float]:
        """Return how far predictions lie apart over their size, and the momentum's distance to schedule."""
        predicted = self.predictor(self.student(digits()[2]))
        apart = float(predicted.std(dim=0).norm() / predicted.norm(dim=1).mean())
        return {"predicted": apart, "momentum_gap": 1.0 + abs(self.gap)}

    def embed(self) -> Tensor:
        """Return the projections of held-out digits."""
        projected: Tensor = self.student(digits()[2])
        return projected
