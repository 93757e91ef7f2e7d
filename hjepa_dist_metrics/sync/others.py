"""States that do not merge by rows alone: what adds up over ranks, what needs that first, and bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.first_gather import Gathered
from hjepa_dist_metrics.sync.plan import Floats, Plan, cut
from hjepa_dist_metrics.sync.rest import Blobs, Rest
from hjepa_dist_metrics.sync.sharing import share, worth_sharing

_NOTHING = torch.zeros(0, dtype=torch.float64, device="cpu")


def travels_as_bytes(state: State) -> bool:
    """Return whether a state offers neither rows nor sums."""
    kind = type(state)
    return kind.rows is State.rows and kind.summed is State.summed


def merge_others(
    channel: Channel, plan: Plan, states: Sequence[State], shapes: Sequence[Sequence[int]], gathered: Gathered
) -> tuple[Floats, dict[str, State]]:
    """Return all ranks' rows, [W, n], and the states that do not merge by rows alone.

    `shapes` are those of these states' own rows, which come first.
    """
    rows, rest, blobs = gathered.rows, gathered.rest, Blobs()
    if not states and not rest:
        return rows, {}
    leading = shapes[: plan.leading]
    shared = worth_sharing(plan, channel.world_size) and _room_for(leading, rows) and rest.fits_sum
    along = rest if shared and rest else None
    if rest and not shared:
        rows, blobs = _completed(rows, rest.gather(channel))
    led = _in_turn(states[: plan.leading], cut(rows, leading))
    led += [_NOTHING] * (len(states) - len(led))
    summed = [s.summed(channel.rank, g) for s, g in zip(states, led, strict=True)]
    totals, slots = _add_up(channel, summed, along)
    if along is not None:
        rows, blobs = _completed(rows, along.read(slots))
    own = _in_turn(states, cut(rows, shapes))
    centred, _ = _add_up(
        channel, [s.centred(channel.rank, g, t) for s, g, t in zip(states, own, totals, strict=True)]
    )
    merged = {
        name: _merge_bytes(state, [tensors[name] for tensors in blobs])
        if travels_as_bytes(state)
        else state.assemble(r, t, c)
        for name, state, r, t, c in zip(plan.others, states, own, totals, centred, strict=True)
    }
    if shared:
        share(channel, list(merged.values()))
    return rows, merged


def _room_for(shapes: Sequence[Sequence[int]], rows: Floats) -> bool:
    """Return whether rows of these shapes are among those that the frame brought."""
    return sum(fields * columns for fields, columns in shapes) <= int(rows.shape[1])


def _completed(rows: Floats, rest: tuple[Floats, Blobs]) -> tuple[Floats, Blobs]:
    more, blobs = rest
    return np.concatenate([rows, more], axis=1), blobs


def _in_turn(states: Sequence[State], rows: Sequence[Floats]) -> list[Tensor]:
    """Return each state's rows, of those that offer any."""
    queue = map(torch.from_numpy, rows)
    return [_NOTHING if state.rows() is None else next(queue) for state in states]


def _add_up(
    channel: Channel, vectors: Sequence[Tensor | None], along: Rest | None = None
) -> tuple[list[Tensor], Tensor]:
    """Sum vectors over ranks in one collective, and what goes along; none where there is nothing to add."""
    present = [v for v in vectors if v is not None]
    added = present if along is None else [*present, along.slots(channel.rank)]
    if not added:
        return [_NOTHING] * len(vectors), _NOTHING
    total = channel.all_reduce_sum(torch.cat(added))
    slots = _NOTHING
    if along is not None:  # apart, for the states keep the memory that their parts lie in
        size = sum(v.numel() for v in present)
        total, slots = total[:size].clone(), total[size:]
    parts = iter(total.split_with_sizes([v.numel() for v in present]))
    return [_NOTHING if v is None else next(parts) for v in vectors], slots


def _merge_bytes(state: State, packed: Sequence[dict[str, Tensor]]) -> State:
    merged = state.empty()
    for tensors in packed:
        merged = merged.merge(state.unpack(tensors))
    return merged
