"""The header of every frame: what two blocks of ranks must agree on, and what else they exchange."""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAGIC = 0x686A657061_05  # "hjepa", layout 5
WORDS = 19
_WORDS, _CHECK = struct.Struct(f"={WORDS}q"), struct.Struct("=q")
SIZE = _WORDS.size + _CHECK.size
NO_WAIT = (1 << 63) - 1


class DamagedHeaderError(Exception):
    """A frame's header is not what was sent."""


class Participation(NamedTuple):
    """Say how a rank takes part in a sync whose ranks need not hold the same metrics.

    `phase` is 0 for a rank that has something to sync and more for one that waits for the others: the higher,
    the nearer to the run's end. `steps_done` counts the rank's steps, `next_step` is the number of the coming
    one, `pending` is 1 where it has more to sync later. `request_step` and `request_flags` say what the sync
    is for; -1 and 0 where a rank asks for nothing. `least_steps` are a rank's steps too, of which the fewest
    of any rank are known afterwards.
    """

    phase: int = 0
    steps_done: int = 0
    next_step: int = 0
    pending: int = 0
    request_step: int = -1
    request_flags: int = 0
    least_steps: int = 0

    def merge(self, other: Participation) -> Participation:
        """Return what holds for both blocks: the earliest phase, most and fewest steps, every request."""
        return Participation(
            min(self.phase, other.phase),
            max(self.steps_done, other.steps_done),
            max(self.next_step, other.next_step),
            self.pending | other.pending,
            max(self.request_step, other.request_step),
            self.request_flags | other.request_flags,
            min(self.least_steps, other.least_steps),
        )


_STRICT = Participation()


class Header:
    """Describe one block's frame in 19 words, of which the first five must be the same in all blocks.

    In a frame their checksum follows.

    `manifest` is the digest of the states, which must be the same too unless the sync is `uneven`. A block
    has `failed` where its ranks disagree or one of them has an error: a report takes the payload's place.
    `most_bytes` is the largest payload of any block so far, `wait` the shortest time, in ns, for which a rank
    waited in the last sync, and `slowest` that rank.
    """

    __slots__ = ("words",)

    def __init__(self, words: Sequence[int]) -> None:
        self.words = words

    @classmethod
    def of(
        cls,
        collection: int,
        number: int,
        results: int,
        manifest: tuple[int, int],
        wait: int,
        rank: int,
        participation: Participation | None,
    ) -> Header:
        """Return the header of one rank: uneven where it has a participation."""
        uneven, part = (0, _STRICT) if participation is None else (1, participation)
        return cls((MAGIC, collection, number, uneven, results, *manifest, 0, 0, 0, wait, rank, *part))

    @property
    def uneven(self) -> bool:
        """Return whether the ranks need not hold the same states."""
        return bool(self.words[3])

    @property
    def manifest(self) -> tuple[int, int]:
        """Return the digest of the states."""
        return self.words[5], self.words[6]

    @property
    def failed(self) -> bool:
        """Return whether a report takes the payload's place."""
        return bool(self.words[7])

    @property
    def payload_bytes(self) -> int:
        """Return the size of the block's payload."""
        return self.words[8]

    @property
    def most_bytes(self) -> int:
        """Return the size of the largest payload so far."""
        return self.words[9]

    @property
    def slowest(self) -> int | None:
        """Return the rank that waited least in the last sync; None where none has waited."""
        return self.words[11] if self.words[10] < NO_WAIT else None

    @property
    def participation(self) -> Participation:
        """Return how the block's ranks take part."""
        return Participation(*self.words[12:])

    def agrees(self, other: Header) -> bool:
        """Return whether two blocks are at the same sync and neither has failed."""
        mine, theirs = self.words, other.words
        if mine[:5] != theirs[:5] or mine[7] or theirs[7]:
            return False
        return bool(mine[3]) or mine[5:7] == theirs[5:7]

    def merge(self, other: Header, manifest: tuple[int, int]) -> Header:
        """Return the header of both blocks together, where they agree."""
        mine, theirs = self.words, other.words
        quick = mine if mine[10] <= theirs[10] else theirs
        part = self.participation.merge(other.participation) if mine[3] else _STRICT
        sizes = 0, 0, max(mine[9], theirs[9])
        return Header((*mine[:5], *manifest, *sizes, quick[10], quick[11], *part))

    def failing(self) -> Header:
        """Return the header of a block that has failed."""
        return Header((*self.words[:7], 1, 0, *self.words[9:]))

    def sized(self, payload_bytes: int, most_bytes: int = 0) -> Header:
        """Return the header with the size of the payload that goes with it."""
        words = self.words
        return Header((*words[:8], payload_bytes, max(words[9], most_bytes), *words[10:]))

    def write(self, frame: memoryview) -> None:
        """Write the header to the beginning of a frame."""
        _WORDS.pack_into(frame, 0, *self.words)
        _CHECK.pack_into(frame, _WORDS.size, zlib.crc32(frame[: _WORDS.size]))

    @classmethod
    def read(cls, frame: memoryview) -> Header:
        """Read the header at the beginning of a frame; raises DamagedHeaderError for one with a wrong bit."""
        words = _WORDS.unpack_from(frame, 0)
        (check,) = _CHECK.unpack_from(frame, _WORDS.size)
        if check != zlib.crc32(frame[: _WORDS.size]):
            raise DamagedHeaderError(f"header {frame[:SIZE].hex()} does not have its checksum")
        return cls(words)


@functools.lru_cache(maxsize=256)
def word_of(text: str) -> int:
    """Return the fingerprint of a text as a signed word, 0 for none."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True) if text else 0
