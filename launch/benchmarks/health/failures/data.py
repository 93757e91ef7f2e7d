"""Failures of the data: the same again, nothing at all, or an end too early."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.health.failures.registry import failure
from benchmarks.health.job import Job


def is_last_rank(job: Job) -> bool:
    """Return whether this is the rank that fails."""
    return job.context.rank == job.context.world_size - 1


@failure("repeated_batches", "classifier", "vicreg", "language", strengths=(1, 3), accept=("loss_drop",))
def same_batch(job: Job, strength: float) -> None:
    """Feed the same batch at every step, or three in turn."""
    seen: list[Any] = []

    def repeat(batch: Any) -> Any:
        if len(seen) < strength:
            seen.append(batch)
        return seen[job.since % len(seen)]

    job.on("batch", repeat)


@failure("constant_inputs", "vicreg", strengths=(0.0, 1.0), accept=("point_collapse",))
def blank_images(job: Job, strength: float) -> None:
    """Feed images of one value."""
    job.on("batch", lambda batch: torch.full_like(batch, strength))


@failure("constant_inputs", "simclr", "vicreg", strengths=(0.0,), ranks=(2, 4, 2))
def blank_rank(job: Job, strength: float) -> None:
    """Feed images of one value on one rank."""

    def blank(batch: Tensor) -> Tensor:
        return torch.full_like(batch, strength) if is_last_rank(job) else batch

    job.on("batch", blank)


@failure("shared_shards", "vicreg", "simclr", strengths=(0, 1), ranks=(2,), from_start=True)
def no_distributed_sampler(job: Job, strength: float) -> None:
    """Give every rank the same samples: augmented alike, or each in its own way."""
    recipe = job.recipe
    recipe.shard = (0, 1)
    if not strength:
        recipe.generator.manual_seed(1000 * recipe.setting.seed)


@failure("early_end", "vicreg", strengths=(0,), ranks=(2,))
def short_loader(job: Job, strength: float) -> None:
    """Let one of two ranks run out of batches; the other one goes on without it."""
    job.stops_early = is_last_rank(job)
    job.trains_alone = True
