"""Small gathers as messages between all pairs of ranks: they come in one step, not in the W - 1 of a ring.

Gloo's own gather goes through a thread of the group and through torch's operations for copies, all of which
is met with cold caches where training ran in between. A message is written by the thread that sends it.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from torch import Tensor

_LEAST = 0.001  # seconds; a wait of zero would be one without a limit
_call = operator.methodcaller("__call__")


class Messages:
    """Gather tensors over the connections of a gloo group that nobody else sends messages over.

    Their tag is their size, so that none can come to memory of another size, which would end the process. A
    collective's messages have other tags, with its kind in their highest bits.
    """

    def __init__(self, group: Any, rank: int, world_size: int) -> None:
        self._group, self._rank = group, rank
        # Every rank begins with another one, lest all of them write to the same first.
        self._others = [(rank + step) % world_size for step in range(1, world_size)]
        self._sent: Tensor | None = None
        self._out: Tensor | None = None
        self._posts: list[Callable[[], Any]] = []
        self._works: list[Any] = []

    def gather(self, sent: Tensor, out: Tensor, seconds: float, meanwhile: Callable[[], None]) -> None:
        """Bring every rank's `sent`, [n] on the host, to `out`, [W, n].

        `meanwhile` is called while they are under way. Raises the transport's RuntimeError where a rank is
        gone or does not come within `seconds`.
        """
        if sent is not self._sent or out is not self._out:
            self._address(sent, out)
        # In one call, in which no signal's handler runs: all is under way, or nothing.
        self._works.extend(map(_call, self._posts))
        meanwhile()
        self._own[:] = self._given
        self.finish(seconds)

    @property
    def under_way(self) -> bool:
        """Return whether an interrupt has left a gather behind."""
        return bool(self._works)

    def finish(self, seconds: float) -> None:
        """Wait for what is under way: also what a gather has left that was interrupted."""
        deadline = time.monotonic() + seconds
        for work in self._works:
            if not work.is_completed():
                work.wait(timedelta(seconds=max(deadline - time.monotonic(), _LEAST)))
        self._works.clear()

    def close(self) -> None:
        """Let go of the connections: whoever still holds this object, for its traceback, keeps none open."""
        self._works.clear()
        self._posts.clear()
        self._group = self._sent = self._out = None

    def _address(self, sent: Tensor, out: Tensor) -> None:
        """Prepare the messages, for as long as the same memory is used."""
        self._sent = None  # until all of it is done: an interrupt may come between any two lines
        rows, group, tag = out.unbind(0), self._group, sent.nbytes
        posts: list[Callable[[], Any]] = [
            partial(group.recv, [rows[rank]], rank, tag) for rank in reversed(self._others)
        ]
        posts += [partial(group.send, [sent], rank, tag) for rank in self._others]
        self._given, self._own, self._posts = sent.numpy(), rows[self._rank].numpy(), posts
        self._out, self._sent = out, sent
