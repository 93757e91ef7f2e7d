"""Norms of the gradients of named groups of parameters, on any layout over ranks.

One formula for every layout: squares add up over ranks, and each rank divides those of a piece by the number
of its copies. Where the layout is not declared, what DTensors and FSDP1 say tells which ranks hold the other
pieces, and everything else is a copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.kernels.norms import joint_norm
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters
from hjepa_dist_metrics.parallel import ParallelLayout
from hjepa_dist_metrics.parallel.reduction import resolve_partial, sum_over_shards
from hjepa_dist_metrics.parallel.sharding.ownership import ParameterOwnership
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard
from hjepa_dist_metrics.parallel.sharding.square_ranges import root, square_ranges


class Column(NamedTuple):
    """Hold slots whose squares add up together: of one parameter group, shared by the same ranks.

    `copies` is how many ranks add the same squares to those of the `shards`.
    """

    group: int
    shards: tuple[Any, ...]
    slots: list[ParameterShard]
    copies: float = 1.0


class GroupNorms:
    """Compute the norms of the gradients of the groups of `watched`, all of them in `names`.

    With a `layout` these are the groups of all pipeline stages, and making the object is a collective call
    where there are any.
    """

    def __init__(self, watched: TrackedParameters, layout: ParallelLayout | None = None) -> None:
        self.watched, self.layout = watched, layout
        self.names: list[str] = list(watched.groups)
        self.columns = columns_of(watched) if layout is None else self._declared(layout)

    def _declared(self, layout: ParallelLayout) -> list[Column]:
        watched = self.watched
        if not watched.named and (layout.expert or layout.shared):
            raise ConfigError(
                "the layout tells parameters apart by name, which bare parameters have not: pass the model, "
                "or model.named_parameters()"
            )
        own = [(*watched.groups, None)[group] for group in watched.group_of]
        ownership = ParameterOwnership(watched.slots, layout, [(name,) for name in own])
        self.names = list(dict.fromkeys(str(name) for (name,) in ownership.labels if name is not None))
        found: dict[tuple[int, float], list[ParameterShard]] = {}
        for slot, name, copies in zip(watched.slots, own, ownership.copies, strict=True):
            group = len(self.names) if name is None else self.names.index(str(name))
            found.setdefault((group, copies), []).append(slot)
        return [Column(group, (layout.group,), slots, copies) for (group, copies), slots in found.items()]

    def __call__(self) -> Tensor:
        """Return the norm of each group, then of the slots in none, float64 [groups + 1].

        Where parameters are sharded, or a layout is declared, this is a collective call.
        """
        local = self._local()
        columns = self.columns
        if self.layout is not None:  # the stages' columns differ: what is reduced must not
            totals = self._by_group(square_ranges(local))
            everywhere = sum_over_shards(totals, [(self.layout.group,)] * totals.shape[-1])
            return root(everywhere)
        if len(columns) == 1 and not self.names and not columns[0].shards:
            return local
        return root(self._by_group(sum_over_shards(square_ranges(local), [c.shards for c in columns])))

    def _local(self) -> Tensor:
        """Return the norm of what this rank holds of each column, float64 [columns]."""
        device = self.watched.slots[0].parameter.device
        held = [[slot.gradient() for slot in column.slots] for column in self.columns]
        present = [[pair for pair in column if pair is not None] for column in held]
        whole = iter(resolve_partial([pair for column in present for pair in column]))
        return torch.stack([joint_norm([next(whole) for _ in column], device) for column in present])

    def _by_group(self, ranges: Tensor) -> Tensor:
        totals = [ranges.new_zeros(3)] * (len(self.names) + 1)
        for column, value in zip(self.columns, ranges.unbind(-1), strict=True):
            totals[column.group] = totals[column.group] + value / column.copies
        return torch.stack(totals, dim=-1)


def columns_of(watched: TrackedParameters) -> list[Column]:
    """Group the slots by parameter group and by the ranks that share them.

    All parameters take part, with a gradient or without, so that every rank has the same columns.
    """
    found: dict[tuple[int, tuple[Any, ...]], list[ParameterShard]] = {}
    for slot, group in zip(watched.slots, watched.group_of, strict=True):
        found.setdefault((group, slot.layout.shards), []).append(slot)
    return [Column(group, shards, slots) for (group, shards), slots in found.items()]
