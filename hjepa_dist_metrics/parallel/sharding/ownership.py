"""How many ranks hold a copy of a piece of a parameter under a declared layout, and which counts for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from hjepa_dist_metrics.parallel.collectives import gather_json
from hjepa_dist_metrics.parallel.layout import ParallelLayout
from hjepa_dist_metrics.parallel.sharding.parameter_shards import ParameterShard

Label = tuple[str | bool | None, ...]
Key = tuple[int | None, str]  # pipeline stage, None of what stages share, and name
Entries = list[tuple[Key, Label]]


class ParameterOwnership:
    """Hold the parameters of the whole job, those of all pipeline stages, and this rank's part in them.

    `labels` describe this rank's slots by tuples of texts and numbers, which the other ranks get too. Making
    the object is a collective call where there are pipeline stages or experts.

    `names` and `labels` are those of the job's parameters, in the order of the stages; `index[i]` is the
    place of this rank's slot i among them. `copies[i]` ranks hold the same piece of it as this one; on one of
    them `owned[i]` is true. `differs[i]` says that ranks of one stage hold other parameters of that name.
    """

    def __init__(
        self, slots: Sequence[ParameterShard], layout: ParallelLayout, labels: Sequence[Label]
    ) -> None:
        self.layout = layout
        keys = [_key(slot.name, layout) for slot in slots]
        stages = _gather([*zip(keys, labels, strict=True)], layout)
        self._holders: dict[Key, list[int]] = {}
        found: dict[Key, Label] = {}
        for stage, entries in enumerate(stages):
            for key, label in entries:
                self._holders.setdefault(key, []).append(stage)
                found.setdefault(key, label)
        self.names = [name for _, name in found]
        self.labels = list(found.values())
        place = {key: index for index, key in enumerate(found)}
        self.index = [place[key] for key in keys]
        pairs = [self._copies(slot, key) for slot, key in zip(slots, keys, strict=True)]
        self.copies = [copies for copies, _ in pairs]
        self.owned = [owned for _, owned in pairs]
        self.differs = [bool(layout.differs_along(slot.name)) for slot in slots]

    def _copies(self, slot: ParameterShard, key: Key) -> tuple[float, bool]:
        layout, grid, rank = self.layout, self.layout.grid, dist.get_rank()
        distinct = set(layout.differs_along(slot.name))
        if layout.pipeline and key[0] is not None:
            distinct.add(layout.pipeline)
        peers = grid.peers(distinct)
        if layout.pipeline and key[0] is None:
            peers = peers[np.isin(grid.coordinates(peers, layout.pipeline), self._holders[key])]
        pieces = 1
        for group in slot.layout.shards:
            ranks = dist.get_process_group_ranks(group)
            if np.isin(ranks, peers).all():  # along other directions the declaration tells pieces apart
                pieces *= len(ranks)
        return len(peers) / pieces, slot.layout.speaks(int(peers[0]), rank)


def _key(name: str, layout: ParallelLayout) -> Key:
    original = layout.original(name)
    return (layout.stage, name) if original is None else (None, original)


def _gather(own: Entries, layout: ParallelLayout) -> list[Entries]:
    """Return the parameters of each pipeline stage, in their order, those of all its experts."""
    stages = [own]
    if layout.pipeline is not None:
        stages = [_entries(given) for given in gather_json(own, layout.grid.groups[layout.pipeline])]
    for dim in layout.expert_dims:
        everybody = gather_json(stages, layout.grid.groups[dim])
        stages = [_joined([_entries(given[i]) for given in everybody]) for i in range(len(stages))]
    return stages


def _joined(lists: Sequence[Entries]) -> Entries:
    return list(dict.fromkeys(entry for entries in lists for entry in entries))


def _entries(given: Iterable[Any]) -> Entries:
    """Return entries from plain data, which has no tuples."""
    return [((key[0], key[1]), tuple(label)) for key, label in given]
