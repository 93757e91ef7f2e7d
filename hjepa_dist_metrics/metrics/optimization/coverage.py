"""Which parameters the optimizers hold: those that they miss, and a teacher's that they should not hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.parallel.sharding.fully_sharded import stored_parameters
from hjepa_dist_metrics.parallel.sharding.parameter_shards import clean_name, has_flat_parameters
from hjepa_dist_metrics.states import Max
from hjepa_dist_metrics.states.named import NamedSums
from hjepa_dist_metrics.values import Text

_NAMED = 3


class OptimizerCoverage(DistributedMetric):
    """Count parameters that the optimizers should hold and do not, and the other way round.

    `parameters/unoptimized`, the number of tensors that no optimizer holds although they are trained, and the
    text `parameters/unoptimized_name`, which names some of them; `parameters/teacher_optimized`, the number
    of the teacher's tensors that an optimizer holds. Of the ranks' numbers the largest is reported.

    >>> coverage = OptimizerCoverage()
    >>> coverage.update(unoptimized=["head.bias"])
    >>> coverage.compute()
    {'parameters/unoptimized': 1.0, 'parameters/unoptimized_name': Text(markdown='`head.bias`')}
    """

    def __init__(self) -> None:
        self.add_state("unoptimized", Max())
        self.add_state("teacher_optimized", Max())
        self.add_state("names", NamedSums())

    def update(self, unoptimized: Sequence[str], teacher_optimized: int | None = None) -> None:
        """Report names of this rank's parameters, and a number; None where there is no teacher."""
        self.unoptimized.update(float(len(unoptimized)))
        if teacher_optimized is not None:
            self.teacher_optimized.update(float(teacher_optimized))
        for name in unoptimized[:_NAMED]:
            self.names.update(name, 1.0)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        counts = {name: states[name].value for name in ("unoptimized", "teacher_optimized")}
        tags: dict[str, Any] = {f"parameters/{name}": n for name, n in counts.items() if n >= 0}
        names = list(states["names"].means)[:_NAMED]
        if names:
            others = int(counts["unoptimized"]) - len(names)
            more = f" and {others} more" if others > 0 else ""
            tags["parameters/unoptimized_name"] = Text(", ".join(f"`{name}`" for name in names) + more)
        return tags


def held_parameters(optimizers: Sequence[Optimizer]) -> set[int]:
    """Return the identities of the parameters that optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def identifiable_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters by name, as an optimizer holds them; [] where FSDP1 made others of them."""
    if has_flat_parameters(model):
        return []
    return [(clean_name(name), parameter) for name, parameter in stored_parameters(model)]


def unoptimized(
    parameters: Sequence[tuple[str, Tensor]], held: Collection[int], with_gradient: Collection[int]
) -> list[str] | None:
    """Return the names of trained parameters that are not among those `held` by an optimizer.

    Where a backward has run, what has no gradient is not trained: a teacher, or a part that is not used. None
    where nothing is held: the optimizers hold copies, of another precision for instance.
    """
    trained = [item for item in parameters if item[1].requires_grad]
    if not any(id(parameter) in held for _, parameter in trained):
        return None
    missed = [(name, id(parameter)) for name, parameter in trained if id(parameter) not in held]
    return [name for name, identity in missed if not with_gradient or identity in with_gradient]


ENTRIES = (
    Entry(
        "parameters/unoptimized",
        "parameters of no optimizer",
        "Number of tensors that require gradients, have some where a backward ran, and are held by no "
        "optimizer. Those of a moving average do not count. Left out under FSDP1, which makes "
        "other parameters of them.",
        healthy="0; others never move",
    ),
    Entry(
        "parameters/unoptimized_name",
        "names of parameters of no optimizer",
        "The first of the parameters behind parameters/unoptimized.",
        kind="text",
    ),
    Entry(
        "parameters/teacher_optimized",
        "teacher's parameters in an optimizer",
        "Number of the target encoder's tensors that an optimizer holds, without those that it shares with "
        "the context encoder. Reported where the loop hands over `encoders` or `momentum`.",
        healthy="0; the target encoder moves by its average alone",
    ),
)
