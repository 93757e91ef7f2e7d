"""DINO (arXiv 2104.14294) on digits: a student meets the centred, sharpened prototypes of its teacher."""

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


class DINO(Recipe):
    """AdamW with warm-up, a cosine and clipped gradients; the teacher's momentum rises from 0.95 to 1."""

    rate = 2e-3
    batch_size = 128
    warmup = 20
    cosine = True
    clip = 3.0
    probe_every = 5
    momentum_start = 0.95
    student_temperature = 0.1

    def build(self) -> None:
        """Make student, teacher, centre and AdamW."""
        self.student = nn.ModuleList([FlatEncoder(64), mlp(64, 64, 32), nn.Linear(32, 64)])
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.model = nn.ModuleDict({"student": self.student, "teacher": self.teacher})
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=self.base_rate, weight_decay=0.04)
        self.encoders = (self.student, self.teacher)
        self.centre = torch.zeros(64)
        self.teacher_temperature, self.centres = 0.05, True
        self.teacher_moves = self.reports_momentum = True
        self.still: set[str] = set()

    def batches(self) -> Iterator[Tensor]:
        """Yield images."""
        images = digits()[0]
        order = endless(len(images), self.samples, self.setting.seed, *self.shard)
        yield from (images[index] for index in order)

    @staticmethod
    def _prototypes(encoder: nn.ModuleList, images: Tensor) -> tuple[Tensor, Tensor]:
        features = encoder[0](images)
        embedded = F.normalize(encoder[1](features), dim=1)
        prototypes = F.normalize(next(encoder[2].parameters()), dim=1)
        return features, embedded @ prototypes.T

    def forward(self, batch: Tensor) -> Step:
        """Let the student's prototypes of one view predict the teacher's of the other."""
        views = [augment(batch, self.generator) for _ in range(2)]
        features, scores = self._prototypes(self.student, torch.cat(views))
        with torch.no_grad():
            raw = self._prototypes(self.teacher, torch.cat(views[::-1]))[1]
            target = F.softmax((raw - self.centre) / self.teacher_temperature, dim=1)
            if self.centres:
                self.centre = 0.9 * self.centre + 0.1 * raw.mean(dim=0)
        loss = F.cross_entropy(scores / self.student_temperature, target)
        observed = {"features": features[: len(batch)]}
        return Step(loss, {"loss": loss.detach()}, len(batch), observed)

    def momentum(self, step: int) -> float:
        """Return the teacher's momentum, from its start to 1 along a half cosine."""
        return 1 - (1 - self.momentum_start) * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    @torch.no_grad()
    def after_step(self, step: int) -> dict[str, Any]:
        """Move the teacher; return its momentum."""
        momentum = self.momentum(step)
        if self.teacher_moves:
            live = dict(self.student.named_parameters())
            for name, slow in self.teacher.named_parameters():
                if name not in self.still:
                    slow.lerp_(live[name], 1 - momentum)
        return {"momentum": momentum, "momentum_target": 1.0} if self.reports_momentum else {}

    def represent(self) -> tuple[Tensor, Tensor]:
        """Return the student's features of held-out digits."""
        _, _, images, labels = digits()
        return self.student[0](images), labels

    def fixed_batch(self) -> Tensor:
        """Return held-out digits."""
        return digits()[2][:128]

    def embed(self) -> Tensor:
        """Return the projections of held-out digits."""
        projected: Tensor = self.student[1](self.student[0](digits()[2]))
        return projected
