"""Host copies of states: one copy a device and dtype, however many states there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa_dist_metrics.states import State


@dataclass(frozen=True)
class Snapshot:
    """Hold host copies of states that are still on their way from a device."""

    states: dict[str, State]
    copies: tuple[torch.cuda.Event, ...] = ()

    def wait(self) -> dict[str, State]:
        """Return the states once their copies have arrived."""
        for copied in self.copies:
            copied.synchronize()
        return self.states


def snapshot(states: Mapping[str, State]) -> Snapshot:
    """Copy the states to the host; later updates of the originals do not show in the copies.

    On CUDA the copy is queued on the current stream, into pinned memory, and not waited for.
    """
    batches: dict[tuple[torch.device, torch.dtype], list[tuple[str, str, Tensor]]] = {}
    for owner, state in states.items():
        for name, tensor in state.pack().items():
            batches.setdefault((tensor.device, tensor.dtype), []).append((owner, name, tensor))
    tensors: dict[str, dict[str, Tensor]] = {owner: {} for owner in states}
    events = []
    for (device, _), entries in batches.items():
        flat = torch.cat([tensor.reshape(-1) for _, _, tensor in entries])
        if device.type == "cuda":
            flat, event = _copy_from_cuda(flat)
            events.append(event)
        parts = flat.cpu().split_with_sizes([tensor.numel() for _, _, tensor in entries])
        for (owner, name, tensor), part in zip(entries, parts, strict=True):
            tensors[owner][name] = part.view(tensor.shape)
    return Snapshot({owner: states[owner].adopt(named) for owner, named in tensors.items()}, tuple(events))


def _copy_from_cuda(flat: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(flat.device))
    return host, event
