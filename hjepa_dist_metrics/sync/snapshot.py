"""Host copies of states: few copies, however many states there are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
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
        if len(self.pieces) == 1 and self.pieces[0][2] is None:
            return Payload(self.pieces[0][1].numpy().reshape(-1), self.others)
        numbers: Floats = np.empty(self.manifest.numbers)
        for group, data, columns in self.pieces:
            block = group.block(numbers)
            block[:, slice(None) if columns is None else columns] = data.numpy()
        return Payload(numbers, self.others)


class StateIndex:
    """Keep the states of metrics in the order of their payload, while the metrics hold the same ones."""

    def __init__(
        self,
        names: tuple[str, ...],
        held: Sequence[Mapping[str, State]],
        states: Mapping[str, State],
        manifest: Manifest,
    ) -> None:
        self.names, self.held, self.manifest = names, held, manifest
        self._rows = [(group, [states[name] for name in group.names]) for group in manifest.groups]
        self._others = {name: states[name] for name in manifest.others}

    def holds(self, names: tuple[str, ...], held: Sequence[Mapping[str, State]]) -> bool:
        """Return whether metrics of these names hold the same states as before."""
        return names == self.names and held == self.held

    def snapshot(self) -> Snapshot:
        """Take the states to the host; later updates of the originals do not show in the copies.

        On CUDA the copies are queued on the current stream, into pinned memory, and not waited for.
        """
        taken = Snapshot(self.manifest)
        for group, states in self._rows:
            _take_rows(taken, group, [*map(_data, states)])
        if self._others:
            _take_others(taken, self._others)
        return taken


def snapshot(states: Mapping[str, State], manifest: Manifest) -> Snapshot:
    """Take states by full name to the host."""
    return StateIndex((), [], states, manifest).snapshot()


_data: Callable[[State], Tensor] = operator.attrgetter("data")


def _take_rows(taken: Snapshot, group: Group, data: list[Tensor]) -> None:
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
