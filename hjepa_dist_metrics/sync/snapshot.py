"""Host copies of states: few copies, however many states there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.states import LiveBlock, State
from hjepa_dist_metrics.sync.plan import Floats, Plan, RowGroup

# Rows, and which columns of their group's block they are; None: all of them.
Piece = tuple[Floats, np.ndarray[Any, np.dtype[np.int64]] | None]


@dataclass
class Snapshot:
    """Hold what the states of a plan were at one moment, perhaps still on its way from a device.

    `originals` are the states that were taken, `blocks` the rows of each group, [fields, columns], in pieces,
    and `others` the copies of the remaining states.
    """

    plan: Plan
    originals: Mapping[str, State]
    blocks: list[list[Piece]] = field(default_factory=list)
    others: dict[str, State] = field(default_factory=dict)
    copies: list[torch.cuda.Event] = field(default_factory=list)

    def rows(self) -> list[Floats]:
        """Wait for the copies and return the block of each group."""
        for copied in self.copies:
            copied.synchronize()
        return [
            pieces[0][0] if pieces[0][1] is None else _join(group, pieces)
            for group, pieces in zip(self.plan.groups, self.blocks, strict=True)
        ]

    def states(self) -> dict[str, State]:
        """Return the states as they were taken, by name."""
        rows: Mapping[str, Any] = self.originals
        blocks, found = self.rows(), dict(self.others)
        for name, (group, column) in self.plan.places.items():
            own = blocks[group][:, column : column + rows[name].size]
            found[name] = rows[name].holding(torch.from_numpy(own))
        return found


def snapshot(
    states: Mapping[str, State], plan: Plan, copy: bool = True, live: Mapping[int, LiveBlock] | None = None
) -> Snapshot:
    """Take the states to the host; later updates of the originals do not show in the copies.

    With `copy=False`, for a sync that ends before anything is updated, what lies on the host is not copied.
    `live` are the blocks in which the numbers of a group lie already, by the group's place in the plan. On
    CUDA the copies are queued on the current stream, into pinned memory, and not waited for.
    """
    taken = Snapshot(plan, states)
    for index, group in enumerate(plan.groups):
        block = live.get(index) if live else None
        if block is not None and block.whole:
            taken.blocks.append([(block.rows.copy() if copy else block.rows, None)])
        else:
            taken.blocks.append(_take_rows(taken, states, group))
    if not plan.others:
        return taken
    if copy or any(t.device.type != "cpu" for name in plan.others for t in states[name].pack().values()):
        _take_others(taken, {name: states[name] for name in plan.others})
    else:
        taken.others = {name: states[name] for name in plan.others}
    return taken


def _take_rows(taken: Snapshot, states: Mapping[str, State], group: RowGroup) -> list[Piece]:
    rows: Mapping[str, Any] = states
    data: list[Tensor] = [rows[name].data for name in group.names]
    if (joined := _joined(data)) is not None:
        return [(_to_host(taken, joined).numpy(), None)]
    devices = dict.fromkeys(tensor.device for tensor in data)
    owners = np.repeat(np.arange(len(data)), group.widths)
    pieces: list[Piece] = []
    for device in devices:
        here = [i for i, tensor in enumerate(data) if tensor.device == device]
        columns = np.flatnonzero(np.isin(owners, here))
        pieces.append((_to_host(taken, torch.cat([data[i] for i in here], dim=1)).numpy(), columns))
    return pieces


def _joined(data: list[Tensor]) -> Tensor | None:
    """Return the blocks side by side, None where they lie on several devices.

    Tried and not looked up: to ask hundreds of tensors for their devices takes as long as to join them.
    """
    try:
        return torch.cat(data, dim=1)
    except RuntimeError:
        if len({tensor.device for tensor in data}) == 1:
            raise
        return None


def _take_others(taken: Snapshot, states: Mapping[str, State]) -> None:
    batches: dict[tuple[torch.device, torch.dtype], list[tuple[str, str, Tensor]]] = {}
    for owner, state in states.items():
        for name, tensor in state.pack().items():
            batches.setdefault((tensor.device, tensor.dtype), []).append((owner, name, tensor))
    tensors: dict[str, dict[str, Tensor]] = {owner: {} for owner in states}
    for entries in batches.values():
        flat = _to_host(taken, torch.cat([tensor.reshape(-1) for _, _, tensor in entries]))
        parts = flat.split_with_sizes([tensor.numel() for _, _, tensor in entries])
        for (owner, name, tensor), part in zip(entries, parts, strict=True):
            tensors[owner][name] = part.view(tensor.shape)
    taken.others = {owner: states[owner].adopt(named) for owner, named in tensors.items()}


def _to_host(taken: Snapshot, flat: Tensor) -> Tensor:
    if not flat.is_cuda:
        return flat if flat.is_cpu else flat.cpu()
    host = torch.empty(flat.shape, dtype=flat.dtype, device="cpu", pin_memory=True)
    host.copy_(flat, non_blocking=True)
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(flat.device))
    taken.copies.append(event)
    return host


def _join(group: RowGroup, pieces: list[Piece]) -> Floats:
    block: Floats = np.empty(group.shape)
    for piece, where in pieces:
        assert where is not None
        block[:, where] = piece
    return block
