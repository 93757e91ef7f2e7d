"""Norms of the gradients of named groups of parameters, whatever ranks hold them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hjepa_dist_metrics.metrics.kernels.norms import joint_norm
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters
from hjepa_dist_metrics.parallel.reduction import resolve_partial, sum_over_shards
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard
from hjepa_dist_metrics.parallel.sharding.square_ranges import root, square_ranges


class Column(NamedTuple):
    """Hold slots whose squares add up together: of one parameter group, shared by the same ranks."""

    group: int
    shards: tuple[Any, ...]
    slots: list[ParameterShard]


def columns_of(watched: TrackedParameters) -> list[Column]:
    """Group the slots by parameter group and by the ranks that share them.

    All parameters take part, with a gradient or without, so that every rank has the same columns.
    """
    found: dict[tuple[int, tuple[Any, ...]], list[ParameterShard]] = {}
    for slot, group in zip(watched.slots, watched.group_of, strict=True):
        found.setdefault((group, slot.layout.shards), []).append(slot)
    return [Column(group, shards, slots) for (group, shards), slots in found.items()]


def group_norms(watched: TrackedParameters, columns: Sequence[Column]) -> Tensor:
    """Return the gradients' norm of each group, then of the slots in none, float64 [groups + 1].

    Where parameters are sharded this is a collective call.
    """
    device = watched.slots[0].parameter.device
    held = [[slot.gradient() for slot in column.slots] for column in columns]
    present = [[pair for pair in column if pair is not None] for column in held]
    whole = iter(resolve_partial([pair for column in present for pair in column]))
    local = [joint_norm([next(whole) for _ in column], device) for column in present]
    if len(local) == 1 and not watched.groups and not columns[0].shards:
        return local[0][None]
    merged = sum_over_shards(square_ranges(torch.stack(local)), [column.shards for column in columns])
    totals = [torch.zeros(3, dtype=torch.float64, device=device)] * (len(watched.groups) + 1)
    for column, value in zip(columns, merged.unbind(-1), strict=True):
        totals[column.group] = totals[column.group] + value
    return root(torch.stack(totals, dim=-1))
