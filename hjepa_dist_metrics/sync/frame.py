"""The first exchange: a frame of fixed size with header and rows, checked before anything else is sent.

The size is a constant of the layout, never agreed on: whatever the ranks disagree about, and wherever one of
them was interrupted, their frames match. Frames are read and written as NumPy arrays: after a wait the first
call of a torch operation takes some ten microseconds, of a NumPy one two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.sync.joining import Announcement, Part, UnevenError, can_join
from hjepa_dist_metrics.sync.plan import Floats
from hjepa_dist_metrics.sync.rest import Rest
from hjepa_dist_metrics.sync.schema import Report, Schema, disagreement, exchange_reports, name_word

_MAGIC = 0x686A657061_03  # "hjepa", layout 3
_HEADER_WORDS = 10
_AGREED = 6  # words of the header that must be the same on every rank
# 1,016 numbers: a gather of 8 KiB over gloo takes 5 us longer than one of 4 KiB, one of 16 KiB 20 us longer.
_MOST_FRAME_BYTES = 8192
_LEAST_FRAME_BYTES = 512
_FRAME_BUDGET = 1 << 20


class Ticket(NamedTuple):
    """Carry what a sync says besides the states: number, local failures, seconds of the last wait.

    `collection` is the name of what is synced, where it has one.
    """

    number: int
    failures: Mapping[str, str]
    last_wait: float = 0.0
    part: Part | None = None
    collection: str = ""


class Gathered(NamedTuple):
    """Hold what all ranks sent: the rows that had room, [W, n], each rank's last wait in ns, its part.

    `rest` is what had no room.
    """

    rows: Floats
    rest: Rest
    waits: Sequence[int]
    parts: Sequence[Part]


def frame_bytes(world_size: int) -> int:
    """Return the size of the first frame: 8 KiB, less in worlds so large that a gather of it would weigh."""
    fair = _FRAME_BUDGET // world_size
    return max(_LEAST_FRAME_BYTES, min(_MOST_FRAME_BYTES, fair - fair % 8))


def gather_frame(
    channel: Channel,
    schema: Schema,
    ticket: Ticket,
    rows: Floats,
    blob: Tensor | None,
    announce: Callable[[Part], Announcement],
) -> Gathered:
    """Gather from all ranks what they agree on, their sizes, and as many of the rows [n] as have room.

    Raises `DesyncError` where the ranks disagree; `UnevenError` where they only hold different states, and
    each has a part that allows for it: `announce` then tells the others of this rank's.
    """
    frame = np.zeros(frame_bytes(channel.world_size) // 8, dtype=np.int64)
    inline = rows[: len(frame) - _HEADER_WORDS]
    end = _HEADER_WORDS + len(inline)
    size = 0 if blob is None else blob.numel()
    words = (0, 0) if ticket.part is None else ticket.part.words()
    wait, failed = int(ticket.last_wait * 1e9), int(bool(ticket.failures))
    agreed = (_MAGIC, ticket.number, failed, *schema.digest, name_word(ticket.collection))
    frame[:_HEADER_WORDS] = (*agreed, size, wait, *words)
    frame[_HEADER_WORDS:end] = inline.view(np.int64)
    frames = channel.all_gather(torch.from_numpy(frame)).numpy()
    headers = frames[:, :_HEADER_WORDS].tolist()
    _check(channel, schema, ticket, headers, announce)
    received = frames[:, _HEADER_WORDS:end].copy().view(np.float64)
    *_, sizes, waits, _, _ = zip(*headers, strict=True)
    parts = () if ticket.part is None else [Part.read(*header[8:]) for header in headers]
    return Gathered(received, Rest(rows[len(inline) :], blob, sizes), waits, parts)


def _check(
    channel: Channel,
    schema: Schema,
    ticket: Ticket,
    headers: list[list[int]],
    announce: Callable[[Part], Announcement],
) -> None:
    """Raise on every rank unless all agree and none has failed."""
    first = headers[0][:_AGREED]  # magic, number, no failure, schema, collection
    if not first[2] and all(header[:_AGREED] == first for header in headers):
        return
    lines = list(schema.lines)
    mine = Report(ticket.number, dict(ticket.failures), lines=lines, collection=ticket.collection)
    if ticket.part is not None:
        _announce(mine, ticket.part, announce)
    reports = exchange_reports(channel, mine)
    if can_join(reports):
        raise UnevenError([Announcement.decode(report.announcement) for report in reports])
    raise disagreement(reports)


def _announce(report: Report, part: Part, announce: Callable[[Part], Announcement]) -> None:
    """Add this rank's announcement; a failure goes to all ranks, like any other."""
    try:
        report.announcement = announce(part).encode()
    except Exception as error:
        report.failures["announcement"] = f"{type(error).__name__}: {error}"
