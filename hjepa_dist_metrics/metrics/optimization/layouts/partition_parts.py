"""The parts into which a partition divides parameters, and this rank's role in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.parallel.sharding.ownership import ParameterOwnership
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard
from hjepa_dist_metrics.states.ranks.sharded import NON_OWNER, REPLICATED, SHARD


class Label(NamedTuple):
    """Name a parameter's module, its layer where it is trained, and the parameter where it stands alone."""

    module: str
    layer: str | None
    parameter: str | None
    trained: bool


class Segment(NamedTuple):
    """Name what parameters of one segment share: their label, and their place over ranks."""

    label: Label
    place: Any = None

    @property
    def module(self) -> str:
        """Return the module's name."""
        return self.label.module


@dataclass(frozen=True)
class Parts:
    """Hold segments and parameters of the job, and this rank's role in them.

    `segment_of[i]` is the segment of this rank's slot i, `len(segments)` where another rank counts for its
    piece; `place[i]` is the slot's place in `names`. `roles` [segments], `slot_roles` [names] are those of
    sums over pieces, `norm_roles` [names] those of the norms of whole parameters; `beyond` and `slot_beyond`
    are the groups over which numbers are reduced before a sync, which does not reach them.
    """

    names: list[str]
    place: list[int]
    segments: list[Segment]
    segment_of: list[int]
    roles: Tensor
    slot_roles: Tensor
    norm_roles: Tensor
    beyond: list[tuple[Any, ...]]
    slot_beyond: list[tuple[Any, ...]]


def undeclared(
    slots: Sequence[ParameterShard], labels: Sequence[Label], context: ProcessContext | None
) -> Parts:
    """Return parts by what placements say of themselves; what says nothing is a copy on every rank."""
    ranks, rank = _sync_ranks(context)
    places = [_role(slot, ranks, rank) for slot in slots]
    keys = [Segment(label, (s.layout.shards, *p)) for label, s, p in zip(labels, slots, places, strict=True)]
    segments = list(dict.fromkeys(keys))
    index = {key: i for i, key in enumerate(segments)}
    return Parts(
        [slot.name for slot in slots],
        list(range(len(slots))),
        segments,
        [index[key] for key in keys],
        _roles([segment.place[1] for segment in segments]),
        _roles([role for role, _ in places]),
        _roles([REPLICATED] * len(slots)),
        [segment.place[2] for segment in segments],
        [beyond for _, beyond in places],
    )


def declared(
    slots: Sequence[ParameterShard],
    labels: Sequence[Label],
    context: ProcessContext | None,
    layout: ParallelLayout,
) -> Parts:
    """Return parts of all pipeline stages by the layout. A collective call where there are stages."""
    ownership = ParameterOwnership(slots, layout, labels)
    everywhere = [Label(*label) for label in ownership.labels]  # type: ignore[arg-type]
    segments = [Segment(label) for label in dict.fromkeys(everywhere)]
    index = {segment.label: i for i, segment in enumerate(segments)}
    owned = zip(ownership.owned, ownership.index, strict=True)
    segment_of = [index[everywhere[place]] if mine else len(segments) for mine, place in owned]
    ranks, _ = _sync_ranks(context)
    alone = set(layout.grid.ranks.tolist()) <= set(ranks)  # the sync reaches all ranks of the layout
    owner, other = (SHARD, NON_OWNER) if alone else (REPLICATED, REPLICATED)
    roles, slot_roles = [other] * len(segments), [other] * len(ownership.names)
    norm_roles = [NON_OWNER] * len(ownership.names)
    for i, place in enumerate(ownership.index):
        part = SHARD if ownership.owned[i] or not alone else NON_OWNER
        norm_roles[place] = part if ownership.differs[i] else REPLICATED
        if ownership.owned[i]:
            roles[segment_of[i]], slot_roles[place] = owner, owner
    beyond: tuple[Any, ...] = () if alone else (layout.group,)
    return Parts(
        ownership.names,
        ownership.index,
        segments,
        segment_of,
        _roles(roles),
        _roles(slot_roles),
        _roles(norm_roles),
        [beyond] * len(segments),
        [beyond] * len(ownership.names),
    )


def _roles(roles: Sequence[int]) -> Tensor:
    return torch.tensor(roles, dtype=torch.int64, device="cpu")


def _sync_ranks(context: ProcessContext | None) -> tuple[tuple[int, ...], int]:
    """Return the global ranks among which numbers are merged, and this one's."""
    if not (dist.is_available() and dist.is_initialized()):
        return (0,), 0
    here = context or ProcessContext.current()
    return tuple(dist.get_process_group_ranks(here.group or dist.group.WORLD)), dist.get_rank()


def _role(slot: ParameterShard, ranks: Sequence[int], rank: int) -> tuple[int, tuple[Any, ...]]:
    """Return this rank's role in a slot, and the groups beyond the sync that share it."""
    beyond = slot.layout.beyond(ranks)
    if len(beyond) == len(slot.layout.shards):
        return REPLICATED, beyond
    return (SHARD if slot.layout.speaks(ranks[0], rank) else NON_OWNER), beyond
