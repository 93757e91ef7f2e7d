"""The first exchange: a frame of fixed size with header and rows, checked before anything else is sent.

The size is a constant of the layout, never agreed on: whatever the ranks disagree about, and wherever one of
them was interrupted, their frames match. Frames are read and written as NumPy arrays: after a wait the first
call of a torch operation takes some ten microseconds, of a NumPy one two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.sync.blobs import decode_blob
from hjepa_dist_metrics.sync.plan import Floats
from hjepa_dist_metrics.sync.schema import Report, Schema, disagreement, exchange_reports

_MAGIC = 0x686A657061_01  # "hjepa", layout 1
_HEADER_WORDS = 8
_AGREED = 5  # words of the header that must be the same on every rank
# 1,016 numbers: a gather of 8 KiB over gloo takes 5 us longer than one of 4 KiB, one of 16 KiB 20 us longer.
_MOST_FRAME_BYTES = 8192
_LEAST_FRAME_BYTES = 512
_FRAME_BUDGET = 1 << 20


@dataclass(frozen=True)
class Ticket:
    """Carry what a sync says besides the states: number, local failures, seconds of the last wait."""

    number: int
    failures: Mapping[str, str]
    last_wait: float = 0.0


@dataclass(frozen=True)
class Gathered:
    """Hold what all ranks sent: rows [W, n], each rank's tensors by state, each rank's last wait in ns."""

    rows: Floats
    blobs: list[dict[str, dict[str, Tensor]]]
    waits: Sequence[int]


def frame_bytes(world_size: int) -> int:
    """Return the size of the first frame: 8 KiB, less in worlds so large that a gather of it would weigh."""
    fair = _FRAME_BUDGET // world_size
    return max(_LEAST_FRAME_BYTES, min(_MOST_FRAME_BYTES, fair - fair % 8))


def gather_states(
    channel: Channel, schema: Schema, ticket: Ticket, rows: Floats, blob: Tensor | None
) -> Gathered:
    """Gather rows [n] and bytes from all ranks in one collective, in two where they do not fit the frame."""
    frame = np.zeros(frame_bytes(channel.world_size) // 8, dtype=np.int64)
    inline = rows[: len(frame) - _HEADER_WORDS]
    end = _HEADER_WORDS + len(inline)
    size = 0 if blob is None else blob.numel()
    wait, failed = int(ticket.last_wait * 1e9), int(bool(ticket.failures))
    frame[:_HEADER_WORDS] = (_MAGIC, ticket.number, failed, *schema.digest, size, wait, 0)
    frame[_HEADER_WORDS:end] = inline.view(np.int64)
    frames = channel.all_gather(torch.from_numpy(frame)).numpy()
    headers = frames[:, :_HEADER_WORDS].tolist()
    _check(channel, schema, ticket, headers)
    received = frames[:, _HEADER_WORDS:end].view(np.float64)
    *_, sizes, waits, _ = zip(*headers, strict=True)
    if len(rows) == len(inline) and not any(sizes):
        return Gathered(received, [], waits)
    overflow, blobs = _gather_rest(channel, rows[len(inline) :], blob, sizes)
    return Gathered(np.concatenate([received, overflow], axis=1), blobs, waits)


def _gather_rest(
    channel: Channel, rows: Floats, blob: Tensor | None, sizes: Sequence[int]
) -> tuple[Floats, list[dict[str, dict[str, Tensor]]]]:
    message = np.zeros(rows.nbytes + max(sizes), dtype=np.uint8)
    message[: rows.nbytes] = rows.view(np.uint8)
    if blob is not None:
        message[rows.nbytes : rows.nbytes + blob.numel()] = blob.numpy()
    messages = channel.all_gather(torch.from_numpy(message))
    overflow = messages[:, : rows.nbytes].numpy().copy().view(np.float64)
    tails = messages[:, rows.nbytes :]
    return overflow, [decode_blob(tail[:size]) for tail, size in zip(tails, sizes, strict=True)]


def _check(channel: Channel, schema: Schema, ticket: Ticket, headers: list[list[int]]) -> None:
    """Raise on every rank unless all agree and none has failed."""
    first = headers[0][:_AGREED]  # magic, number, no failure, schema
    if not first[2] and all(header[:_AGREED] == first for header in headers):
        return
    mine = Report(ticket.number, dict(ticket.failures), lines=list(schema.lines))
    raise disagreement(exchange_reports(channel, mine))
