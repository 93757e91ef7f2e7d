"""What a sync asks of its transport, and the channel of a world of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.errors import ConfigError, RankFailureError, SyncTimeoutError

Bytes: TypeAlias = npt.NDArray[np.uint8]

# The first message of a round: what has no room in it goes in a second one. It grows to what was needed.
LEAST_FRAME, MOST_FRAME = 8192, 1 << 16


class LinkError(Exception):
    """A message did not come, or could not be sent; `error` says which ranks are at fault."""

    def __init__(self, error: RankFailureError | SyncTimeoutError) -> None:
        super().__init__(str(error))
        self.error = error


class Channel(Protocol):
    """Carry messages between a rank and its peers; for one sync at a time.

    `frame` is the memory of the first message of each round: of the same size on every rank.
    """

    rank: int
    world_size: int
    frame: Bytes

    def begin(self, peers: Iterable[int], patience: str = "") -> None:
        """Begin a sync with these peers; the first one connects.

        `patience` says where a rank is that waits for as long as the others live; "" for any other.
        """

    def exchange(self, peer: int, sent: Bytes | None, size: int) -> Bytes:
        """Send `sent`, unless it is None, and return `size` bytes from the same peer.

        They are the caller's until the next message of this size from this peer. Raises `LinkError`.
        """

    def end(self, most_bytes: int) -> None:
        """End a sync in which a rank had as many bytes to send, header included: the same on every rank."""

    def close(self, error: RankFailureError | SyncTimeoutError) -> None:
        """Raise `error` at every further sync, for a connection broke."""


def new_frame(size: int = LEAST_FRAME) -> Bytes:
    """Return the memory of a first message."""
    return np.zeros(size, dtype=np.uint8)


def grown(frame: Bytes, most_bytes: int) -> Bytes:
    """Return a frame that holds `most_bytes`, as far as frames may grow."""
    if len(frame) >= most_bytes or most_bytes > MOST_FRAME:
        return frame
    return new_frame(1 << (most_bytes - 1).bit_length())


class LocalChannel:
    """Serve a world of one: the same path, and no message."""

    rank = 0
    world_size = 1

    def __init__(self) -> None:
        self.frame = new_frame(0)

    def begin(self, peers: Iterable[int], patience: str = "") -> None:
        """Do nothing: there is nobody to wait for."""

    def exchange(self, peer: int, sent: Bytes | None, size: int) -> Bytes:
        """Raise ConfigError: there is no peer."""
        raise ConfigError(f"a world of one has no rank {peer}")

    def end(self, most_bytes: int) -> None:
        """Do nothing."""

    def close(self, error: RankFailureError | SyncTimeoutError) -> None:
        """Do nothing: no connection can break."""
