"""The connection between two ranks: a gloo group of two, whose failures concern nobody else."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.parallel import compat
from hjepa_dist_metrics.parallel.transport.channel import MOST_FRAME, Bytes

_LEAST = 0.001  # seconds; a wait of zero would be one without a limit
_MOST_TAG = (1 << 31) - 1
_NOTHING = np.zeros(0, dtype=np.uint8)


class Edge:
    """Carry messages to and from one peer.

    A message's tag is its size, so that none can come to memory of another size, which would end the process.
    """

    def __init__(self, store: Any, first: bool, timeout: float) -> None:
        place = 0 if first else 1
        self._group = compat.pair_group(store, place, timeout)
        self._peer = 1 - place
        self._rooms: dict[int, tuple[Bytes, Tensor]] = {}
        self._sent: tuple[Bytes, Tensor] | None = None
        # What the last messages used: gloo's thread drops it a moment later, and must not be the last to.
        self._kept: list[Any] = []

    def exchange(self, sent: Bytes | None, size: int, deadline: float) -> Bytes:
        """Send and receive; RuntimeError where the peer is gone or does not come in time."""
        data, room = self._room(size)
        works = []
        if size:
            works.append(self._group.recv([room], self._peer, size & _MOST_TAG))
        if sent is not None:
            if self._sent is None or self._sent[0] is not sent:
                self._sent = sent, torch.from_numpy(sent)
            works.append(self._group.send([self._sent[1]], self._peer, len(sent) & _MOST_TAG))
        self._kept = [room, self._sent, works]
        for work in works:
            work.wait(timedelta(seconds=max(deadline - time.monotonic(), _LEAST)))
        return data

    def _room(self, size: int) -> tuple[Bytes, Any]:
        """Return memory for a message; that of small ones is used again."""
        if size in self._rooms:
            return self._rooms[size]
        if not size:
            return _NOTHING, None
        data = np.empty(size, dtype=np.uint8)
        room = data, torch.from_numpy(data)
        if size <= MOST_FRAME:
            self._rooms[size] = room
        return room

    def close(self) -> None:
        """Let go of the connection: whoever still holds this object, for a traceback, keeps none open."""
        self._group = self._sent = None
        self._kept = []
