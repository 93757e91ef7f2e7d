"""Failures of the representation: it loses dimensions, images, features, or its scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.health.failures.registry import failure
from benchmarks.health.job import Job
from benchmarks.health.recipes.byol import BYOL
from benchmarks.health.recipes.nets import FlatEncoder
from benchmarks.health.recipes.simclr import SimCLR
from benchmarks.health.recipes.vicreg import VICReg


def output_layer(job: Job) -> nn.Linear:
    """Return the linear layer whose outputs become the encoder's features."""
    encoder = getattr(job.recipe, "encoder", None)
    if encoder is None:
        encoder = job.recipe.student[0]  # type: ignore[attr-defined]
    layer = encoder.output if hasattr(encoder, "output") else encoder.blocks[-1].mlp[2]
    assert isinstance(layer, nn.Linear), f"expected a linear layer, got {layer}"
    return layer


def wrap_features(job: Job, change: nn.Module) -> None:
    """Let a module follow the encoder's last one."""
    encoder = getattr(job.recipe, "encoder", None)
    if encoder is None:
        encoder = job.recipe.student[0]  # type: ignore[attr-defined]
    assert isinstance(encoder, FlatEncoder), f"expected a FlatEncoder, got {type(encoder).__name__}"
    encoder.last = nn.Sequential(encoder.last, change)


@failure("point_collapse", "byol", strengths=(2.0, 1.0), measure="embedded")
def no_stop_gradient(job: Job, strength: float) -> None:
    """Compare the student with itself, with gradient and without predictor: all images agree on one point."""
    recipe = job.recipe
    assert isinstance(recipe, BYOL)
    recipe.stops_gradient = recipe.uses_predictor = False
    recipe.base_rate *= strength


@failure("point_collapse", "simclr", strengths=(0.0, 0.02), measure="embedded")
def no_negatives(job: Job, strength: float) -> None:
    """Attract the views of an image, and repel others no more, or by a trace."""
    recipe = job.recipe
    assert isinstance(recipe, SimCLR)
    recipe.repulsion = strength


@failure(
    "point_collapse", "vicreg", strengths=(0.0, 0.002), measure="embedded", accept=("dimensional_collapse",)
)
def no_variance_term(job: Job, strength: float) -> None:
    """Drop the terms that hold the features apart."""
    recipe = job.recipe
    assert isinstance(recipe, VICReg)
    recipe.weights["variance"] *= strength
    recipe.weights["covariance"] *= strength


@failure("dimensional_collapse", "vicreg", strengths=(0.0, 0.01), measure="rank", from_start=True)
def no_covariance_term(job: Job, strength: float) -> None:
    """Let the features be alike: nothing decorrelates them."""
    recipe = job.recipe
    assert isinstance(recipe, VICReg)
    recipe.weights["covariance"] *= strength


class Bottleneck(nn.Module):
    """Keep a share of the directions; the others are multiplied by `rest`."""

    def __init__(self, width: int, kept: int, generator: torch.Generator) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        self.keep = basis[:, :kept] @ basis[:, :kept].T
        self.rest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Project."""
        inside = x @ self.keep
        projected: Tensor = inside + self.rest * (x - inside)
        return projected


@failure("dimensional_collapse", "byol", "dino", strengths=(0.25, 0.0625), measure="rank")
def narrow_bottleneck(job: Job, strength: float) -> None:
    """Lose all but a share of the directions at once, as by a layer that is too narrow."""
    width = output_layer(job).out_features
    wrap_features(job, Bottleneck(width, max(int(width * strength), 2), job.random))


@failure("dimensional_collapse", "byol", "dino", strengths=(0.25, 0.0625), measure="rank")
def narrowing_bottleneck(job: Job, strength: float) -> None:
    """Lose all but a share of the directions slowly."""
    width = output_layer(job).out_features
    change = Bottleneck(width, max(int(width * strength), 2), job.random)
    change.rest = 1.0
    wrap_features(job, change)

    def narrow() -> None:
        change.rest *= 0.96

    job.on("step", narrow)


@failure("image_collapse", "mae", strengths=(0.8, 0.9), measure="between", accept=("point_collapse",))
def blind_patches(job: Job, strength: float) -> None:
    """Let weight decay eat the patch embedding, and it alone: tokens tell their place, not their image."""
    encoder = getattr(job.recipe, "encoder", None) or job.recipe.student[0]  # type: ignore[attr-defined]

    def decay() -> None:
        with torch.no_grad():
            encoder.embed.weight.mul_(strength)

    job.on("step", decay)


class Codebook(nn.Module):
    """Replace each row by the nearest of a few codes, which follow the rows; gradients pass through."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.codes: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantise rows [N, D]."""
        rows = x.detach()
        if self.codes is None:
            self.codes = rows[: self.count].clone()
        nearest = torch.cdist(rows, self.codes).argmin(dim=1)
        if self.training:
            for code in range(self.count):
                if (nearest == code).any():
                    self.codes[code].lerp_(rows[nearest == code].mean(dim=0), 0.1)
        quantised: Tensor = x + (self.codes[nearest] - rows)
        return quantised


@failure(
    "cluster_collapse", "dino", "byol", strengths=(10, 4), measure="rank", accept=("dimensional_collapse",)
)
def few_codes(job: Job, strength: float) -> None:
    """Quantise the features to a few codes: a codebook of which most is dead."""
    wrap_features(job, Codebook(int(strength)))


@failure("dead_features", "vicreg", "simclr", strengths=(0.5, 0.8))
def dying_relu(job: Job, strength: float) -> None:
    """Push the biases of some ReLU features so low, as one large step does, that they never fire."""
    layer = output_layer(job)
    count = int(layer.out_features * strength)
    dead = torch.randperm(layer.out_features, generator=job.random)[:count]
    with torch.no_grad():
        layer.bias[dead] -= 100.0


def scale_output(job: Job, factor: float) -> None:
    """Multiply the output layer at each step."""
    layer = output_layer(job)

    def scale() -> None:
        with torch.no_grad():
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)

    job.on("step", scale)


@failure("norm_explosion", "simclr", "byol", strengths=(1.05, 1.15), measure="norm")
def growing_features(job: Job, strength: float) -> None:
    """Let the features grow without end, where the loss does not see their scale."""
    scale_output(job, strength)


@failure(
    "norm_vanishing", "simclr", "byol", strengths=(0.94, 0.85), measure="norm", accept=("point_collapse",)
)
def shrinking_features(job: Job, strength: float) -> None:
    """Let the features shrink to nothing."""
    scale_output(job, strength)


@failure(
    "partial_collapse", "vicreg", strengths=(0.05, 0.03), measure="rank", accept=("dimensional_collapse",)
)
def weaker_regularisation(job: Job, strength: float) -> None:
    """Weaken what holds the features apart: the loss drops and part of the rank with it."""
    recipe = job.recipe
    assert isinstance(recipe, VICReg)
    recipe.weights["variance"] *= strength
    recipe.weights["covariance"] *= strength


@failure("ignored_input", "byol", strengths=(1.0, 0.0), measure="predicted")
def constant_predictor(job: Job, strength: float) -> None:
    """Let the predictor answer the same to every question: its first layer stays at zero, or its last."""
    recipe = job.recipe
    assert isinstance(recipe, BYOL)
    layer = recipe.predictor[0] if strength else recipe.predictor[-1]
    assert isinstance(layer, nn.Linear), f"expected a linear layer, got {layer}"
    layer.weight.requires_grad_(False).zero_()
