"""What a sync brings back: merged states by metric and name, each made when somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.manifest import Manifest
from hjepa_dist_metrics.sync.payload import Floats, Payload


class Merged(Mapping[str, Mapping[str, State]]):
    """Hold merged states by metric and name; metrics without states are left out.

    Row states stay in their group's block until they are asked for: to make hundreds of them costs more than
    to merge them.
    """

    def __init__(self, manifest: Manifest, payload: Payload) -> None:
        self.manifest, self._payload = manifest, payload
        self._made: dict[str, State] = payload.expanded()

    def __getitem__(self, metric: str) -> dict[str, State]:
        return {name: self._state(full) for name, full in self.manifest.members[metric].items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.members)

    def __len__(self) -> int:
        return len(self.manifest.members)

    def columns(self, metrics: Sequence[str], state: str) -> Floats | None:
        """Return the block [fields, n] of a single number `state` of n metrics, without making states.

        None unless all of them have it, of one class.
        """
        found = self.manifest.columns(tuple(metrics), state)
        return None if found is None else found[0].block(self._payload.numbers)[:, found[1]]

    def conflicts(self) -> list[str]:
        """Return how ranks contradict each other, a line for each state."""
        found = []
        for group in self.manifest.groups:
            block = group.block(self._payload.numbers)
            bad = group.kind.conflicts(block)
            if bad is None or not bad.any():
                continue
            ends = [*group.starts[1:], group.columns]
            for name, start, end in zip(group.names, group.starts, ends, strict=True):
                if bad[start:end].any():
                    column = start + int(bad[start:end].argmax())
                    found.append(_unlike(name, group.kind.contradiction(block[:, column])))
        told = ((name, state.conflict()) for name, state in self._payload.others.items())
        return found + [_unlike(name, text) for name, text in told if text is not None]

    def _state(self, name: str) -> State:
        state = self._made.get(name)
        if state is None:
            original: Any = self.manifest.states[name]
            group, start = self.manifest.places[name]
            columns = group.block(self._payload.numbers)[:, start : start + original.size]
            state = self._made[name] = original.holding(torch.from_numpy(columns))
        return state


def _unlike(name: str, text: str) -> str:
    return f"{name!r} must be the same on every rank, got {text}"
