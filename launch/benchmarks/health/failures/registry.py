"""What a failure is: how it is planted, in which recipes, and the finding that is expected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.health.job import Job

Plant = Callable[[Job, float], None]


@dataclass(frozen=True)
class Failure:
    """Describe a failure.

    `plant(job, strength)` is called at the step at which it begins: the run's first where `from_start`.
    `measure` is the fact (see `Facts`) that shows it; None: it is there from that step on. `accept` are
    findings that are right as well, since they name the same thing by another of its effects.
    """

    name: str
    finding: str
    recipes: tuple[str, ...]
    strengths: tuple[float, ...]
    plant: Plant
    measure: str | None = None
    accept: tuple[str, ...] = ()
    from_start: bool = False
    ranks: tuple[int, ...] = (1,)


FAILURES: dict[str, Failure] = {}


def failure(
    finding: str,
    *recipes: str,
    strengths: tuple[float, ...],
    measure: str | None = None,
    accept: tuple[str, ...] = (),
    from_start: bool = False,
    ranks: tuple[int, ...] = (1,),
) -> Callable[[Plant], Plant]:
    """Register a planting function under its name."""

    def register(plant: Plant) -> Plant:
        name = plant.__name__
        FAILURES[name] = Failure(name, finding, recipes, strengths, plant, measure, accept, from_start, ranks)
        return plant

    return register
