"""Failures of the job as a whole: replicas that part, slow ranks, rates that decay, memory that grows."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.health.failures.data import is_last_rank
from benchmarks.health.failures.registry import failure
from benchmarks.health.job import Job


@failure("replica_drift", "vicreg", "simclr", strengths=(1e-2, 1e-4), ranks=(2, 4, 2))
def other_weights(job: Job, strength: float) -> None:
    """Let one rank's weights differ a little, as after a checkpoint that it has loaded by itself."""
    if is_last_rank(job):
        with torch.no_grad():
            for parameter in job.recipe.model.parameters():
                noise = torch.randn(parameter.shape, generator=job.random)
                parameter.mul_(1.0 + strength * noise)


@failure("straggler", "vicreg", "classifier", strengths=(0.03, 0.015), ranks=(2, 4, 2))
def slow_compute(job: Job, strength: float) -> None:
    """Let one rank compute slowly."""
    if is_last_rank(job):
        job.on("forward", lambda: time.sleep(strength))


@failure("straggler", "vicreg", strengths=(0.03, 0.015), ranks=(2,))
def slow_data(job: Job, strength: float) -> None:
    """Let one rank wait for its data."""
    if is_last_rank(job):
        job.on("data", lambda: time.sleep(strength))


@failure("throughput_decay", "vicreg", "classifier", strengths=(5e-4, 2e-4), measure="step")
def growing_wait(job: Job, strength: float) -> None:
    """Take a little longer at each step."""
    job.on("forward", lambda: time.sleep(strength * job.since))


@failure("memory_growth", "vicreg", "classifier", strengths=(4.0, 2.5), measure="memory")
def kept_tensors(job: Job, strength: float) -> None:
    """Keep a tensor of so many MiB from each step, as a list of losses with their graphs does."""
    kept: list[Tensor] = []
    job.on("step", lambda: kept.append(torch.ones(int(strength * 2**18))))
