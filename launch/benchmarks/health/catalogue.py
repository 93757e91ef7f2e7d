"""The catalogue: every run that is recorded, healthy or with a failure, and which are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from benchmarks.health.failures.registry import FAILURES, Failure
from benchmarks.health.recipe import Recipe, Setting

RECIPES = {
    "vicreg": "vicreg:VICReg",
    "simclr": "simclr:SimCLR",
    "byol": "byol:BYOL",
    "dino": "dino:DINO",
    "mae": "mae:MAE",
    "classifier": "classifier:Classifier",
    "language": "language:LanguageModel",
    "hjepa": "reference:HJEPA",
    "dual_head": "reference:DualHead",
    "multimodal": "reference:Multimodal",
}
FAILURE_MODULES = ("representation", "teacher", "masks", "optimisation", "loss", "data", "distribution")
SEEDS = (0, 1, 2)
# Factors of the learning rate and of the batch size; jobs that take longer leave out the last one.
VARIANTS = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5))
# Healthy runs on several ranks.
ON_RANKS = {"vicreg": (2, 4), "classifier": (2,)}
# At which part of its run a failure begins, by seed.
_PLANTED = (0.3, 0.4, 0.35)
# A run with a failure ends after this part of its recipe's steps; its schedules keep their length.
_FOLLOWED = 0.9
# A run on several ranks has this part of them.
_ON_RANKS = 0.6


def is_held_out(seed: int) -> bool:
    """Return whether runs of a seed are held out: never used to choose a rule or a constant."""
    return seed == 2


def recipe_class(name: str) -> type[Recipe]:
    """Return the recipe of a name."""
    module, kind = RECIPES[name].split(":")
    found: type[Recipe] = getattr(import_module(f"benchmarks.health.recipes.{module}"), kind)
    return found


@dataclass(frozen=True)
class RunSpec:
    """One run to record."""

    recipe: str
    setting: Setting
    failure: Failure | None = None
    strength: float | None = None
    ranks: int = 1

    @property
    def name(self) -> str:
        """Return the name of its trace."""
        parts = ["healthy" if self.failure is None else self.failure.name, self.recipe]
        if self.failure is None:
            parts += [f"lr{self.setting.rate_factor:g}", f"bs{self.setting.batch_factor:g}"]
        else:
            parts.append(f"x{self.strength:g}")
        if self.ranks > 1:
            parts.append(f"r{self.ranks}")
        return "-".join([*parts, f"s{self.setting.seed}"])

    @property
    def steps(self) -> int:
        """Return the steps to train."""
        steps = recipe_class(self.recipe).steps
        if self.ranks > 1:
            return int(steps * _ON_RANKS)
        return steps if self.failure is None else int(steps * _FOLLOWED)

    @property
    def planted_at(self) -> int | None:
        """Return the step at which the failure begins."""
        if self.failure is None:
            return None
        steps = recipe_class(self.recipe).steps if self.ranks == 1 else self.steps
        return 0 if self.failure.from_start else int(steps * _PLANTED[self.setting.seed])


def all_runs() -> list[RunSpec]:
    """Return every run of the catalogue."""
    for module in FAILURE_MODULES:
        import_module(f"benchmarks.health.failures.{module}")
    return [*healthy_runs(), *failing_runs()]


def healthy_runs() -> Iterator[RunSpec]:
    """Yield the healthy runs: every recipe with all seeds, two learning rates and two batch sizes."""
    for recipe in RECIPES:
        for seed in SEEDS:
            for rate, batch in VARIANTS[: recipe_class(recipe).variants]:
                yield RunSpec(recipe, Setting(seed, rate, batch))
            for ranks in ON_RANKS.get(recipe, ()):
                yield RunSpec(recipe, Setting(seed), ranks=ranks)


def failing_runs() -> Iterator[RunSpec]:
    """Yield the runs with failures: each with all seeds and strengths, in its recipes and ranks by turns."""
    for failure in FAILURES.values():
        for turn, strength in enumerate(failure.strengths):
            for seed in SEEDS:
                recipe = failure.recipes[(turn + seed) % len(failure.recipes)]
                ranks = failure.ranks[(turn + seed) % len(failure.ranks)]
                yield RunSpec(recipe, Setting(seed), failure, strength, ranks)
