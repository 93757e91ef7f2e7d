"""Failures of the masks: they repeat, let the targets through, or leave nothing to do."""

from __future__ import annotations

from benchmarks.health.failures.registry import failure
from benchmarks.health.job import Job
from benchmarks.health.recipes.mae import MAE
from benchmarks.health.recipes.reference import HJEPA


@failure("repeated_masks", "mae", strengths=(1, 2))
def repeated_masks(job: Job, strength: float) -> None:
    """Draw the same masks for every batch, or one mask for every image."""
    recipe = job.recipe
    assert isinstance(recipe, MAE)
    recipe.repeats = int(strength)


@failure("repeated_masks", "hjepa", strengths=(1,))
def repeated_blocks(job: Job, strength: float) -> None:
    """Draw the same blocks for every batch."""
    recipe = job.recipe
    assert isinstance(recipe, HJEPA)
    recipe.workload.repeats_masks = True


@failure("mask_leak", "mae", strengths=(10, 4), accept=("loss_drop",))
def leaking_masks(job: Job, strength: float) -> None:
    """Show the encoder some of the patches that it is asked for."""
    recipe = job.recipe
    assert isinstance(recipe, MAE)
    recipe.leaks = int(strength)


@failure("degenerate_masks", "mae", strengths=(0, 16), accept=("loss_drop",))
def degenerate_masks(job: Job, strength: float) -> None:
    """Mask nothing, or everything."""
    recipe = job.recipe
    assert isinstance(recipe, MAE)
    recipe.masked = int(strength)
