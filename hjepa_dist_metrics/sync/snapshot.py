"""Host copies of states: few copies, however many states there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.manifest import Group, Manifest
from hjepa_dist_metrics.sync.payload import Floats, Payload

# Host memory of some columns of a group's block, and which these are; None: all of them.
_Piece = tuple[Group, Tensor, np.ndarray[tuple[int], np.dtype[np.int64]] | None]


@dataclass
class Snapshot:
    """Hold what states were at one moment, perhaps still on its way from a device."""

    manifest: Manifest
    pieces: list[_Piece] = field(default_factory=list)
    others: dict[str, State] = field(default_factory=dict)
    copies: list[torch.cuda.Event] = field(default_factory=list)

    def payload(self) -> Payload:
        """Wait for the copies and return them."""
        for copied in self.copies:
            copied.synchronize()
        numbers: Floats = np.empty(self.manifest.numbers)
        for group, data, columns in self.pieces:
            block = group.block(numbers)
            block[:, slice(None) if columns is None else columns] = data.numpy()
        return Payload(numbers, {name: self.others[name] for name in self.manifest.others})


def snapshot(states: Mapping[str, State], manifest: Manifest) -> Snapshot:
    """Take the states to the host; later updates of the originals do not show in the copies.

    On CUDA the copies are queued on the current stream, into pinned memory, and not waited for.
    """
    taken = Snapshot(manifest)
    for group in manifest.groups:
        _take_rows(taken, states, group)
    if manifest.others:
        _take_others(taken, {name: states[name] for name in manifest.others})
    return taken


def _take_rows(taken: Snapshot, states: Mapping[str, State], group: Group) -> None:
    data: list[Tensor] = [states[name].data for name in group.names]  # type: ignore[attr-defined]
    joined = _joined(data)
    if joined is not None:
        taken.pieces.append((group, _to_host(taken, joined), None))
        return
    widths = np.diff([*group.starts, group.columns])
    owners = np.repeat(np.arange(len(data)), widths)
    for device in dict.fromkeys(tensor.device for tensor in data):
        here = [i for i, tensor in enumerate(data) if tensor.device == device]
        columns = np.flatnonzero(np.isin(owners, here))
        taken.pieces.append((group, _to_host(taken, torch.cat([data[i] for i in here], dim=1)), columns))


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
    tensors: dict[str, dict[str, Tensor]] = {}
    for owner, state in states.items():
        tensors[owner] = state.pack()
        for name, tensor in tensors[owner].items():
            batches.setdefault((tensor.device, tensor.dtype), []).append((owner, name, tensor))
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
