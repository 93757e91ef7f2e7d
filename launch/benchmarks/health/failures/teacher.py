"""Failures of the teacher: it stands still, is the student, learns by itself, or its momentum does."""

from __future__ import annotations

import dataclasses

from benchmarks.health.failures.registry import failure
from benchmarks.health.job import Job
from benchmarks.health.recipes.byol import BYOL
from benchmarks.health.recipes.dino import DINO
from benchmarks.health.recipes.reference import HJEPA


def let_teacher_move(job: Job, moves: bool) -> None:
    """Switch the teacher's update on or off."""
    recipe = job.recipe
    if isinstance(recipe, HJEPA):
        net = recipe.workload.model
        ema = dataclasses.replace(net.config.ema, frozen=not moves)
        net.config = dataclasses.replace(net.config, ema=ema)
    else:
        assert isinstance(recipe, (BYOL, DINO))
        recipe.teacher_moves = moves


def stop_teacher(job: Job, every: float) -> None:
    """Let the teacher move at every so many steps, between two logs; 0: never."""
    let_teacher_move(job, False)
    if every:
        job.on("data", lambda: let_teacher_move(job, job.step % int(every) == int(every) // 2 - 2))


@failure("frozen_teacher", "byol", "dino", "hjepa", strengths=(0, 50))
def forgotten_update(job: Job, strength: float) -> None:
    """Forget the teacher's update, while its momentum is reported."""
    stop_teacher(job, strength)


@failure("frozen_teacher", "byol", "dino", strengths=(0, 50), from_start=True)
def silent_teacher(job: Job, strength: float) -> None:
    """Forget the teacher's update in a loop that reports no momentum."""
    recipe = job.recipe
    assert isinstance(recipe, (BYOL, DINO))
    recipe.reports_momentum = False
    stop_teacher(job, strength)


@failure("teacher_is_student", "byol", "dino", strengths=(0, 1))
def copied_teacher(job: Job, strength: float) -> None:
    """Copy the student at each step: by a momentum of 0 that is reported, or instead of the one reported."""
    recipe = job.recipe
    assert isinstance(recipe, (BYOL, DINO))
    if not strength:
        recipe.momentum = lambda step: 0.0  # type: ignore[method-assign]
        return
    student, teacher = recipe.student, recipe.teacher
    job.on("step", lambda: teacher.load_state_dict(student.state_dict()))


@failure("teacher_gets_gradients", "byol", strengths=(1.0, 0.3), from_start=True)
def learning_teacher(job: Job, strength: float) -> None:
    """Give the teacher's parameters to the optimizer, and no stop to the gradient."""
    recipe = job.recipe
    assert isinstance(recipe, BYOL)
    recipe.teacher_learns = True
    recipe.teacher.requires_grad_(True)
    group = {"params": list(recipe.teacher.parameters()), "factor": strength}
    recipe.optimizer.add_param_group(group)
