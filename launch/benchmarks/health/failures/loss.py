"""Failures that the loss shows: spikes, shifts, drops, a plateau, overfitting, terms that drown others."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.health.failures.registry import failure
from benchmarks.health.job import Job
from benchmarks.health.recipes.classifier import Classifier
from benchmarks.health.recipes.data import digits, endless
from benchmarks.health.recipes.language import LanguageModel
from benchmarks.health.recipes.reference import HJEPA
from benchmarks.health.recipes.vicreg import VICReg

Labelled = tuple[Tensor, Tensor]


@failure("loss_spike", "classifier", strengths=(1.0, 0.7))
def mislabelled_batch(job: Job, strength: float) -> None:
    """Feed one batch of which a share has the labels of other images."""

    def corrupt(batch: Labelled) -> Labelled:
        if job.step != job.planted_at:
            return batch
        wrong = torch.rand(len(batch[1]), generator=job.random) < strength
        return batch[0], torch.where(wrong, (batch[1] + 5) % 10, batch[1])

    job.on("batch", corrupt)


@failure("loss_spike", "language", strengths=(1.0, 0.7))
def foreign_batch(job: Job, strength: float) -> None:
    """Feed one batch of which a share is noise."""

    def corrupt(batch: Tensor) -> Tensor:
        return _noisy(job, batch, strength) if job.step == job.planted_at else batch

    job.on("batch", corrupt)


def _noisy(job: Job, codes: Tensor, share: float, limit: int = 96) -> Tensor:
    noise = torch.randint(0, limit, codes.shape, generator=job.random)
    return torch.where(torch.rand(codes.shape, generator=job.random) < share, noise, codes)


@failure("loss_level_shift", "classifier", strengths=(0.6, 0.3), accept=("loss_spike",))
def noisy_labels(job: Job, strength: float) -> None:
    """Let a share of the labels be wrong from now on."""
    job.on("batch", lambda batch: (batch[0], _noisy(job, batch[1], strength, 10)))


@failure("loss_level_shift", "language", strengths=(0.4, 0.2), accept=("loss_spike",))
def noisy_text(job: Job, strength: float) -> None:
    """Let a share of the characters be noise from now on."""
    job.on("batch", lambda batch: _noisy(job, batch, strength))


@failure("loss_drop", "language", strengths=(10, 3))
def diluted_loss(job: Job, strength: float) -> None:
    """Average the loss over more tokens than there are, as over padding that costs nothing."""
    recipe = job.recipe
    assert isinstance(recipe, LanguageModel)
    recipe.tokens_counted = strength


@failure("loss_drop", "classifier", strengths=(6.0, 3.0), accept=("overfitting",), measure="validation")
def painted_label(job: Job, strength: float) -> None:
    """Paint the label into the augmented image, where it can be read without looking at the digit."""
    recipe = job.recipe
    assert isinstance(recipe, Classifier)
    recipe.painted = strength


@failure("plateau", "classifier", strengths=(1.0, 0.97), measure="loss", from_start=True)
def shuffled_labels(job: Job, strength: float) -> None:
    """Shuffle the labels of all images, or of nearly all: there is nothing to learn."""
    job.on("batch", lambda batch: (batch[0], _noisy(job, batch[1], strength, 10)))


@failure("overfitting", "classifier", strengths=(40, 80), measure="validation", from_start=True)
def few_samples(job: Job, strength: float) -> None:
    """Train on a few images, some of them mislabelled, without augmentation."""
    recipe, count = job.recipe, int(strength)
    assert isinstance(recipe, Classifier)
    recipe.smoothing, recipe.augments = 0.0, False
    images, labels = digits()[0][:count], _noisy(job, digits()[1][:count], 0.2, 10)
    order = endless(count, min(recipe.samples, count // 2), recipe.setting.seed)
    job.on("batch", lambda batch: tuple(rows[index] for index in (next(order),) for rows in (images, labels)))


@failure("level_imbalance", "hjepa", strengths=(1e4, 1e3), from_start=True)
def heavy_level(job: Job, strength: float) -> None:
    """Weigh the coarsest level so much that the others are left untrained."""
    recipe = job.recipe
    assert isinstance(recipe, HJEPA)
    weights = (1.0 / strength, 1.0 / strength, 1.0)
    recipe.level_weights = recipe.workload.objective.weights = weights


@failure("loss_level_shift", "vicreg", strengths=(3000, 300), accept=("loss_spike",))
def heavy_covariance(job: Job, strength: float) -> None:
    """Let the covariance term drown the others."""
    recipe = job.recipe
    assert isinstance(recipe, VICReg)
    recipe.weights["covariance"] *= strength
