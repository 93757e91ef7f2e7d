"""How a model's parameters fall into modules and layers, and which rank counts for which of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.optimization.layouts.partition_parts import Label, declared, undeclared
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import Groups, TrackedParameters
from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.parallel.reduction import resolve_partial
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard

OTHER = "other"


class ParameterPartition:
    """Divide a model's parameters.

    A parameter's module is the first `depth` parts of its name, or the first of `patterns` (module name to
    regular expression) that is found in its name, "other" where none is. Its layer is the name up to its
    first number: `encoder.blocks.3`. With `groups`, named lists of parameters, those are the modules, and
    "other" the rest. `context` tells over which ranks the numbers will be merged. With a `layout` modules and
    names are those of all pipeline stages, and making the object is a collective call where there are any.
    """

    def __init__(
        self,
        model: nn.Module,
        depth: int = 1,
        patterns: Mapping[str, str] | None = None,
        per_parameter: bool = False,
        context: ProcessContext | None = None,
        groups: Groups | None = None,
        layout: ParallelLayout | None = None,
    ) -> None:
        if depth < 1:
            raise ConfigError(f"modules are named by at least one part of a name, got depth={depth}")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"expected the model, a torch.nn.Module, got {type(model).__name__}")
        self.watched = TrackedParameters(model)
        self.slots: Sequence[ParameterShard] = self.watched.slots
        naming = _naming(depth, patterns) if groups is None else _by_group(groups)
        labels = [
            Label(
                naming(slot),
                layer_of(slot.name) if slot.parameter.requires_grad else None,
                slot.name if per_parameter else None,
                slot.parameter.requires_grad,
            )
            for slot in self.slots
        ]
        self.parts = (
            undeclared(self.slots, labels, context)
            if layout is None
            else declared(self.slots, labels, context, layout)
        )
        self.segments = self.parts.segments
        self.modules = list(dict.fromkeys(segment.module for segment in self.segments))
        self.layers = _in_order(s.label.layer for s in self.segments if s.label.layer is not None)
        if not self.layers:
            trained = {segment.module for segment in self.segments if segment.label.trained}
            self.layers = [module for module in self.modules if module in trained]
        self.device = one_device(self.slots)

    def columns(self, name: str) -> list[int]:
        """Return the segments of a module or a layer."""
        return [i for i, s in enumerate(self.segments) if name in (s.module, s.label.layer)]

    def parameter_columns(self) -> dict[str, list[int]]:
        """Return the segments of each parameter that stands alone, by its name."""
        found: dict[str, list[int]] = {}
        for index, segment in enumerate(self.segments):
            if segment.label.parameter is not None:
                found.setdefault(segment.label.parameter, []).append(index)
        return found

    def gradients(self) -> tuple[list[Tensor], list[int]]:
        """Return this rank's pieces of all gradients, whole values where they were addends, and their slots.

        A collective call where gradients are addends, under sequence parallelism for instance.
        """
        self.watched.require_unchanged()
        held = [(index, slot.gradient()) for index, slot in enumerate(self.slots)]
        present = [(index, pair) for index, pair in held if pair is not None]
        return resolve_partial([pair for _, pair in present]), [index for index, _ in present]

    def values(self) -> tuple[list[Tensor], list[int]]:
        """Return this rank's pieces of all parameters, and their slots."""
        self.watched.require_unchanged()
        return [slot.values() for slot in self.slots], list(range(len(self.slots)))


def one_device(slots: Sequence[ParameterShard]) -> torch.device:
    """Return the device of all parameters; ConfigError where they lie on several."""
    devices: dict[torch.device, str] = {}
    for slot in slots:
        devices.setdefault(slot.parameter.device, slot.name)
    if len(devices) > 1:
        listed = ", ".join(f"{name!r} is on {device}" for device, name in devices.items())
        raise ConfigError(f"a rank's parameters must lie on one device to be described, got {listed}")
    return next(iter(devices))


def layer_of(name: str) -> str | None:
    """Return the name of a parameter's layer, up to the first number in it; None where there is none."""
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if place is None else ".".join(parts[: place + 1])


def _in_order(layers: Iterable[str]) -> list[str]:
    """Return layers once each, by stack and number: wrappers may give a stack's layers in another order."""
    names = list(dict.fromkeys(layers))
    stacks = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return sorted(names, key=lambda n: (stacks.index(n.rpartition(".")[0]), int(n.rpartition(".")[2])))


def _naming(depth: int, patterns: Mapping[str, str] | None) -> Callable[[ParameterShard], str]:
    if patterns is None:
        return lambda slot: _prefix(slot.name, depth)
    compiled = {module: re.compile(pattern) for module, pattern in patterns.items()}
    return lambda slot: next((m for m, pattern in compiled.items() if pattern.search(slot.name)), OTHER)


def _by_group(groups: Groups) -> Callable[[ParameterShard], str]:
    names = {id(parameter): name for name, parameters in groups.items() for parameter in parameters}
    return lambda slot: names.get(id(slot.parameter), OTHER)


def _prefix(name: str, depth: int) -> str:
    parts = name.split(".")
    return ".".join(parts[: max(1, min(depth, len(parts) - 1))])
