"""Failures of the optimisation: rates, gradients, decay, clipping, and parameters that nobody trains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.health.failures.registry import failure
from benchmarks.health.job import Job


@failure(
    "learning_rate_too_high",
    "language",
    "vicreg",
    "classifier",
    strengths=(300, 100),
    measure="loss",
    accept=("nonfinite", "gradient_explosion"),
    from_start=True,
)
def huge_rate(job: Job, strength: float) -> None:
    """Multiply the learning rate from the start."""
    job.recipe.base_rate *= strength


@failure(
    "learning_rate_too_high",
    "classifier",
    strengths=(100, 30),
    measure="loss",
    accept=("nonfinite", "loss_spike", "loss_level_shift", "gradient_explosion"),
)
def rate_jump(job: Job, strength: float) -> None:
    """Multiply the learning rate in the middle of the run, as a broken schedule does."""
    job.recipe.base_rate *= strength


@failure(
    "learning_rate_too_low",
    "language",
    "vicreg",
    strengths=(1e-5, 1e-4),
    measure="loss",
    accept=("plateau",),
    from_start=True,
)
def tiny_rate(job: Job, strength: float) -> None:
    """Divide the learning rate until updates are lost in rounding."""
    job.recipe.base_rate *= strength


@failure(
    "learning_rate_too_low",
    "language",
    "classifier",
    strengths=(1e6, 1e5),
    measure="loss",
    accept=("plateau",),
    from_start=True,
)
def endless_warmup(job: Job, strength: float) -> None:
    """Warm up over many times the length of the run."""
    job.recipe.factor = lambda step: (step + 1) / strength  # type: ignore[method-assign]


def scale_loss(job: Job, factor: float, growth: float = 1.0) -> None:
    """Multiply the loss that is differentiated, not the one reported; `growth` is that of each log."""
    every = job.recipe.log_every
    job.on("loss", lambda loss: loss * (factor * growth ** (job.since / every)))


@failure("gradient_explosion", "vicreg", "language", strengths=(1e4, 1e7), measure="gradient")
def scaled_gradients(job: Job, strength: float) -> None:
    """Forget to divide by the scale of the loss."""
    scale_loss(job, strength)


@failure("gradient_explosion", "vicreg", "classifier", strengths=(1.5, 1.25), measure="gradient")
def creeping_gradients(job: Job, strength: float) -> None:
    """Let the gradients grow by a factor from log to log."""
    scale_loss(job, 1.0, strength)


@failure("gradient_vanishing", "vicreg", "language", strengths=(1e-7, 1e-5), measure="gradient")
def lost_gradients(job: Job, strength: float) -> None:
    """Let the gradients all but vanish at once."""
    scale_loss(job, strength)


@failure("gradient_vanishing", "vicreg", "classifier", strengths=(0.5, 0.7), measure="gradient")
def fading_gradients(job: Job, strength: float) -> None:
    """Let the gradients shrink by a factor from log to log."""
    scale_loss(job, 1.0, strength)


@failure("nonfinite", "language", strengths=(1, 10))
def nan_loss(job: Job, strength: float) -> None:
    """Let the loss be NaN, at every step or at every tenth."""
    job.on("loss", lambda loss: loss * (math.nan if job.since % strength == 0 else 1.0))


@failure("nonfinite", "vicreg", "classifier", strengths=(1, 10))
def inf_gradient(job: Job, strength: float) -> None:
    """Let one element of one gradient overflow, at every step or at every tenth."""
    parameters = list(job.recipe.model.parameters())

    def overflow() -> None:
        gradient = parameters[len(parameters) // 2].grad
        if gradient is not None and job.since % strength == 0:
            gradient.view(-1)[0] = math.inf

    job.on("gradients", overflow)


@failure("skipped_steps", "language", strengths=(1.0, 0.9), accept=("nonfinite",))
def skipping_scaler(job: Job, strength: float) -> None:
    """Overflow at nearly every step, and skip it as a loss scaler does."""

    def overflow() -> None:
        skips = float(torch.rand((), generator=job.random)) < strength
        job.optimizer_steps = not skips
        if skips:
            for parameter in job.recipe.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(math.inf)

    job.on("gradients", overflow)


@failure(
    "weights_vanishing",
    "vicreg",
    "classifier",
    strengths=(0.03, 0.01),
    measure="weights",
    accept=("norm_vanishing",),
)
def eating_decay(job: Job, strength: float) -> None:
    """Take a share of every weight at each step."""

    def decay() -> None:
        with torch.no_grad():
            for parameter in job.recipe.model.parameters():
                parameter.mul_(1.0 - strength)

    job.on("step", decay)


@failure("clipping_every_step", "classifier", strengths=(1e-3, 1e-2))
def tight_clipping(job: Job, strength: float) -> None:
    """Clip every gradient to far below its usual norm."""
    job.recipe.clip = strength


@failure("clipped_unseen", "vicreg", strengths=(0.1, 0.01), from_start=True)
def foreign_clipping(job: Job, strength: float) -> None:
    """Clip with torch's own function before the monitor looks at the gradients."""
    parameters = list(job.recipe.model.parameters())
    job.on("gradients", lambda: torch.nn.utils.clip_grad_norm_(parameters, strength))


@failure("unoptimized_parameters", "language", "vicreg", strengths=(1, 2), from_start=True)
def forgotten_parameters(job: Job, strength: float) -> None:
    """Leave every so many-th layer with weights out of the optimizer: half of them, or the last one."""
    group = job.recipe.optimizer.param_groups[0]
    parameters: list[Tensor] = list(group["params"])
    weights = [p for p in parameters if p.ndim > 1]
    left_out = weights[::2] if strength == 1 else weights[-1:]
    group["params"] = [p for p in parameters if all(p is not other for other in left_out)]
