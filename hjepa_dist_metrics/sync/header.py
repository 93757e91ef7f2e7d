"""The header of every frame: what two blocks of ranks must agree on, and what else they exchange."""

from __future__ import annotations

import functools
import hashlib
import struct
from typing import NamedTuple

MAGIC = 0x686A657061_04  # "hjepa", layout 4
_FORMAT = struct.Struct("=18q")
SIZE = _FORMAT.size


class Participation(NamedTuple):
    """Say how a rank takes part in a sync whose ranks need not hold the same metrics.

    `phase` is 0 for a rank that has something to sync and more for one that waits for the others: the higher,
    the nearer to the run's end. `steps_done` counts the rank's steps, `next_step` is the number of the coming
    one, `pending` is 1 where it has more to sync later. `request_step` and `request_flags` say what the sync
    is for; -1 and 0 where a rank asks for nothing.
    """

    phase: int = 0
    steps_done: int = 0
    next_step: int = 0
    pending: int = 0
    request_step: int = -1
    request_flags: int = 0

    def merge(self, other: Participation) -> Participation:
        """Return what holds for both blocks: the earliest phase, the most steps, every request."""
        return Participation(
            min(self.phase, other.phase),
            max(self.steps_done, other.steps_done),
            max(self.next_step, other.next_step),
            self.pending | other.pending,
            max(self.request_step, other.request_step),
            self.request_flags | other.request_flags,
        )


class Header(NamedTuple):
    """Describe one block's frame; the first five fields must be the same in all blocks.

    `manifest` is the digest of the states, which must be the same too unless the sync is `uneven`. A block
    has `failed` where its ranks disagree or one of them has an error: a report takes the payload's place.
    `wait` is the shortest time, in ns, for which a rank waited in the last sync, `slowest` that rank.
    """

    magic: int
    collection: int
    number: int
    uneven: int
    results: int
    manifest: tuple[int, int]
    failed: int
    payload_bytes: int
    most_bytes: int
    wait: int
    slowest: int
    participation: Participation

    def write(self, frame: bytearray | memoryview) -> None:
        """Write the header to the beginning of a frame."""
        _FORMAT.pack_into(frame, 0, *self[:5], *self.manifest, *self[6:11], *self.participation)

    @classmethod
    def read(cls, frame: bytes | memoryview) -> Header:
        """Read the header from the beginning of a frame."""
        words = _FORMAT.unpack_from(frame, 0)
        manifest, participation = words[5:7], Participation(*words[12:])
        return cls._make((*words[:5], manifest, *words[7:12], participation))

    def agrees(self, other: Header) -> bool:
        """Return whether two blocks are at the same sync and neither has failed."""
        same = self[:5] == other[:5] and not self.failed and not other.failed
        return same and (self.manifest == other.manifest or bool(self.uneven))

    def merge(self, other: Header) -> Header:
        """Return the header of both blocks together, where they agree; sizes are the caller's to set."""
        quick = self if self.wait <= other.wait else other
        return self._replace(
            most_bytes=max(self.most_bytes, other.most_bytes),
            wait=quick.wait,
            slowest=quick.slowest,
            participation=self.participation.merge(other.participation),
        )


@functools.lru_cache(maxsize=256)
def word_of(text: str) -> int:
    """Return the fingerprint of a text as a signed word, 0 for none."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True) if text else 0
