"""A model's parameters by the names their owner gave them, inside any wrapper.

Wrappers change names (`module.`, `_orig_mod.`) and FSDP1 changes the parameters themselves: it stores those
of a unit end to end in one flat tensor, padded, and shards that. A slot is one original parameter's place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.sharding.fully_sharded import stored_parameters
from hjepa_dist_metrics.parallel.sharding.placement import Layout, LayoutReader, flat_layout, local_piece

# What DDP, torch.compile, FSDP1 and the activation-checkpoint wrapper put into names.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True, eq=False)
class ParameterShard:
    """Name one parameter and where its values lie: all of `parameter`, or `span` of a flat one.

    `layout` is the layout of the values.
    """

    name: str
    parameter: Tensor
    layout: Layout
    span: tuple[int, int] | None = None
    reader: LayoutReader | None = None

    def values(self) -> Tensor:
        """Return this rank's piece of the parameter's values."""
        return self._cut(local_piece(self.parameter))

    def companion(self, tensor: Tensor) -> Tensor:
        """Return this rank's piece of a tensor that lies as the parameter does: an optimizer's moment."""
        return self._cut(local_piece(tensor))

    def stored_gradient(self) -> Tensor | None:
        """Return this rank's piece of the gradient as it is stored, to be changed in place; None without one.

        The stored values of a sparse gradient stand for it, added up by index first.
        """
        gradient = self.parameter.grad
        if gradient is None:
            return None
        if type(gradient) is Tensor and gradient.layout is torch.strided:  # nearly always, and at every step
            return gradient if self.span is None else self._cut(gradient)
        if gradient.is_sparse and not gradient.is_coalesced():
            self.parameter.grad = gradient = gradient.coalesce()
        return self._cut(local_piece(gradient))

    def gradient(self) -> tuple[Tensor, Layout] | None:
        """Return this rank's piece of the gradient and its layout, which lies as the parameter does.

        It may be made of addends (`Layout.partial`). A gradient that lies otherwise than its parameter is
        brought there, which is a collective call.
        """
        piece = self.stored_gradient()
        gradient = self.parameter.grad
        if piece is None or gradient is None:
            return None
        if self.reader is None or type(gradient) is Tensor:  # a plain gradient is all of a plain parameter
            return piece, self.layout
        layout = self.reader(gradient)
        if layout.shards != self.layout.shards:
            moved = gradient.redistribute(placements=self.parameter.placements)  # type: ignore[attr-defined]
            return local_piece(moved), self.layout
        return piece, layout

    def _cut(self, piece: Tensor) -> Tensor:
        return piece if self.span is None else piece.view(-1)[self.span[0] : self.span[1]]


def clean_name(name: str) -> str:
    """Return a parameter's name without what wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def model_shards(model: nn.Module) -> list[ParameterShard]:
    """Return a slot for each parameter of a model, in the model's order, those without gradient included."""
    reader = LayoutReader()
    flat = dict(_flat_units(model))
    slots: list[ParameterShard] = []
    for name, parameter in stored_parameters(model):
        if id(parameter) in flat:
            slots += flat[id(parameter)](name)
        else:
            slots.append(_slot(clean_name(name), parameter, reader))
    return slots


def parameter_shards(
    parameters: Sequence[Tensor], names: Sequence[str] | None = None
) -> list[ParameterShard]:
    """Return slots of bare parameters, by their names, or named by their place: "0", "1", ..."""
    reader = LayoutReader()
    called = [str(i) for i in range(len(parameters))] if names is None else [clean_name(n) for n in names]
    return [_slot(name, parameter, reader) for name, parameter in zip(called, parameters, strict=True)]


def _slot(name: str, parameter: Tensor, reader: LayoutReader) -> ParameterShard:
    if not isinstance(parameter, Tensor):
        raise ConfigError(f"expected parameters, got {type(parameter).__name__} as number {name}")
    if getattr(parameter, "_fsdp_flattened", False):
        raise ConfigError(
            "a parameter belongs to FullyShardedDataParallel, and what it holds of the whole cannot be told "
            "from the parameter alone: pass the model instead of its parameters"
        )
    return ParameterShard(name, parameter, reader(parameter), None, reader)


SlotMaker = Callable[[str], list[ParameterShard]]


def has_flat_parameters(model: nn.Module) -> bool:
    """Return whether FSDP1 manages any of the model's parameters."""
    return next(_flat_units(model), None) is not None


def _flat_units(model: nn.Module) -> Iterator[tuple[int, SlotMaker]]:
    """Yield, for each parameter that FSDP1 manages, its id and a maker of slots from its full name."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if not isinstance(module, fsdp.FullyShardedDataParallel):
            continue
        handle = module._handle
        if handle is None:
            continue
        layout = flat_layout(handle.process_group) if handle.uses_sharded_strategy else Layout()
        flat = handle.flat_param
        yield id(flat), _flat_slots(flat, layout)
        for parameter in flat._params or ():
            yield id(parameter), _original_slot(parameter, layout)


def _original_slot(parameter: Tensor, layout: Layout) -> SlotMaker:
    return lambda name: [ParameterShard(clean_name(name), parameter, layout)]


def _flat_slots(flat: Any, layout: Layout) -> SlotMaker:
    """Return a maker of one slot for each original parameter, cut out of this rank's shard."""

    def make(name: str) -> list[ParameterShard]:
        prefix = clean_name(name.rpartition(".")[0])
        names = [clean_name(f"{prefix}.{fqn}" if prefix else fqn) for fqn in flat._fqns]
        spans = _shard_spans(flat) if layout.shards else _whole_spans(flat)
        return [ParameterShard(name, flat, layout, span) for name, span in zip(names, spans, strict=True)]

    return make


def _shard_spans(flat: Any) -> Iterator[tuple[int, int]]:
    for info in flat._shard_param_infos:
        start = info.offset_in_shard if info.in_shard else 0
        yield start, start + (info.numel_in_shard if info.in_shard else 0)


def _whole_spans(flat: Any) -> Iterator[tuple[int, int]]:
    start = 0
    for size in flat._numels:
        yield start, start + size
        start += size
