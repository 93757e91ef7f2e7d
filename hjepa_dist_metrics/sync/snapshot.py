"""Host copies of states: few copies, however many states there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.states import LiveBlock, State
from hjepa_dist_metrics.sync.plan import Plan, RowGroup


@dataclass
class Snapshot:
    """Hold what the states of a plan were at one moment, perhaps still on its way from a device.

    `originals` are the states that were taken, `blocks` the rows of each group, [fields, columns], as pieces
    with their columns (None: all of them), and `others` the copies of the remaining states.
    """

    plan: Plan
    originals: Mapping[str, State]
    blocks: list[list[tuple[Tensor, Tensor | None]]] = field(default_factory=list)
    others: dict[str, State] = field(default_factory=dict)
    copies: list[torch.cuda.Event] = field(default_factory=list)

    def rows(self) -> list[Tensor]:
        """Wait for the copies and return the block of each group."""
        for copied in self.copies:
            copied.synchronize()
        return [_join(group, pieces) for group, pieces in zip(self.plan.groups, self.blocks, strict=True)]

    def states(self) -> dict[str, State]:
        """Return the states as they were taken, by name."""
        rows: Mapping[str, Any] = self.originals
        blocks, found = self.rows(), dict(self.others)
        for name, (group, column) in self.plan.places.items():
            found[name] = rows[name].holding(blocks[group][:, column : column + rows[name].size])
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
            rows = block.rows.copy() if copy else block.rows
            taken.blocks.append([(torch.from_numpy(rows), None)])
        else:
            taken.blocks.append(_take_rows(taken, states, group))
    if not plan.others:
        return taken
    if copy or any(t.device.type != "cpu" for name in plan.others for t in states[name].pack().values()):
        _take_others(taken, {name: states[name] for name in plan.others})
    else:
        taken.others = {name: states[name] for name in plan.others}
    return taken


def _take_rows(
    taken: Snapshot, states: Mapping[str, State], group: RowGroup
) -> list[tuple[Tensor, Tensor | None]]:
    rows: Mapping[str, Any] = states
    data: list[Tensor] = [rows[name].data for name in group.names]
    if (joined := _joined(data)) is not None:
        return [(_to_host(taken, joined), None)]
    devices = dict.fromkeys(tensor.device for tensor in data)
    owners = torch.repeat_interleave(torch.tensor(group.widths, device="cpu"))
    pieces: list[tuple[Tensor, Tensor | None]] = []
    for device in devices:
        here = [i for i, tensor in enumerate(data) if tensor.device == device]
        columns = torch.isin(owners, torch.tensor(here, device="cpu")).nonzero()[:, 0]
        pieces.append((_to_host(taken, torch.cat([data[i] for i in here], dim=1)), columns))
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


def _join(group: RowGroup, pieces: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    first, columns = pieces[0]
    if columns is None:
        return first
    block = first.new_empty(group.shape)
    for piece, where in pieces:
        assert where is not None
        block[:, where] = piece
    return block
