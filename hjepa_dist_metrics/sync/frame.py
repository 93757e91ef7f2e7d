"""The layout of the first exchange: a frame of fixed size, with a header and numbers.

The size is a constant of the layout, never agreed on: whatever the ranks disagree about, and wherever one of
them was interrupted, their frames match. Frames are read and written as NumPy arrays: after a wait the first
call of a torch operation takes some ten microseconds, of a NumPy one two.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hjepa_dist_metrics.sync.joining import Part
from hjepa_dist_metrics.sync.plan import Floats
from hjepa_dist_metrics.sync.schema import Schema, name_word

_MAGIC = 0x686A657061_03  # "hjepa", layout 3
_HEADER_WORDS = 10
_HEADER = struct.Struct(f"={_HEADER_WORDS}q")
_AGREED = 6  # words of the header that must be the same on every rank
_FAILED, SIZE, WAIT, PART = 2, 6, 7, 8  # places of other words
# 1,016 numbers: a gather of 8 KiB over gloo takes 5 us longer than one of 4 KiB, one of 16 KiB 20 us longer.
_MOST_FRAME_BYTES = 8192
_LEAST_FRAME_BYTES = 512
_FRAME_BUDGET = 1 << 20

Words: TypeAlias = npt.NDArray[np.int64]


class Ticket(NamedTuple):
    """Carry what a sync says besides the states: number, local failures, seconds of the last wait.

    `collection` is the name of what is synced, where it has one.
    """

    number: int
    failures: Mapping[str, str]
    last_wait: float = 0.0
    part: Part | None = None
    collection: str = ""


def frame_bytes(world_size: int) -> int:
    """Return the size of the first frame: 8 KiB, less in worlds so large that a gather of it would weigh."""
    fair = _FRAME_BUDGET // world_size
    return max(_LEAST_FRAME_BYTES, min(_MOST_FRAME_BYTES, fair - fair % 8))


class Frame:
    """Hold the memory of this rank's frame: `numbers` are what rows have room in, float64."""

    __slots__ = ("_words", "numbers", "tensor")

    def __init__(self, world_size: int) -> None:
        self._words = np.zeros(frame_bytes(world_size) // 8, dtype=np.int64)
        self.tensor = torch.from_numpy(self._words)
        self.numbers = self._words[_HEADER_WORDS:].view(np.float64)

    def sign(self, schema: Schema, ticket: Ticket, blob_size: int = 0) -> None:
        """Write what the ranks must agree on, and the sizes and times of this one."""
        words = (0, 0) if ticket.part is None else ticket.part.words()
        wait, failed = int(ticket.last_wait * 1e9), 1 if ticket.failures else 0
        name = name_word(ticket.collection)
        agreed = (_MAGIC, ticket.number, failed, *schema.digest, name)
        _HEADER.pack_into(self._words.data, 0, *agreed, blob_size, wait, *words)


def split_frames(frames: Tensor) -> tuple[Words, Floats]:
    """Return views of the headers and of the numbers of all ranks' frames."""
    words = frames.numpy()
    return words[:, :_HEADER_WORDS], words[:, _HEADER_WORDS:].view(np.float64)


def waits_of(headers: Sequence[Sequence[int]]) -> list[int]:
    """Return how long each rank waited in its last sync, in ns."""
    return [header[WAIT] for header in headers]


def agree(headers: Sequence[Sequence[int]]) -> bool:
    """Return whether all ranks are at the same sync of the same states, and none has failed."""
    first = headers[0][:_AGREED]  # magic, number, no failure, schema, collection
    return not first[_FAILED] and all(header[:_AGREED] == first for header in headers)
