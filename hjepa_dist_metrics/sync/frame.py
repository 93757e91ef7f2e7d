"""The first exchange: a frame of fixed size with header and rows, checked before anything else is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.sync.blobs import decode_blob
from hjepa_dist_metrics.sync.schema import Report, Schema, disagreement, exchange_reports

_MAGIC = 0x686A657061_01  # "hjepa", layout 1
_HEADER_WORDS = 8
_MOST_FRAME_BYTES = 16384
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

    rows: Tensor
    blobs: list[dict[str, dict[str, Tensor]]]
    waits: list[int]


def frame_bytes(world_size: int) -> int:
    """Return the size of the first frame: 16 KiB, less in worlds so large that a gather of it would weigh."""
    fair = _FRAME_BUDGET // world_size
    return max(_LEAST_FRAME_BYTES, min(_MOST_FRAME_BYTES, fair - fair % 8))


def gather_states(channel: Channel, schema: Schema, ticket: Ticket, rows: Tensor, blob: Tensor) -> Gathered:
    """Gather rows [n] and bytes from all ranks in one collective, in two where they do not fit the frame."""
    frame = torch.zeros(frame_bytes(channel.world_size) // 8, dtype=torch.int64, device="cpu")
    inline = rows[: frame.numel() - _HEADER_WORDS]
    end = _HEADER_WORDS + inline.numel()
    wait = int(ticket.last_wait * 1e9)
    words = [_MAGIC, ticket.number, int(bool(ticket.failures)), *schema.digest, blob.numel(), wait, 0]
    frame[:_HEADER_WORDS] = torch.tensor(words, dtype=torch.int64, device="cpu")
    frame[_HEADER_WORDS:end] = inline.view(torch.int64)
    frames = channel.all_gather(frame)
    headers = frames[:, :_HEADER_WORDS].tolist()
    _check(channel, schema, ticket, headers)
    received = frames[:, _HEADER_WORDS:end].contiguous().view(torch.float64)
    sizes, waits = [header[5] for header in headers], [header[6] for header in headers]
    if rows.numel() == inline.numel() and not any(sizes):
        return Gathered(received, [], waits)
    overflow, blobs = _gather_rest(channel, rows[inline.numel() :], blob, sizes)
    return Gathered(torch.cat([received, overflow], dim=1), blobs, waits)


def _gather_rest(
    channel: Channel, rows: Tensor, blob: Tensor, sizes: list[int]
) -> tuple[Tensor, list[dict[str, dict[str, Tensor]]]]:
    rest = rows.contiguous().view(torch.uint8)
    message = torch.zeros(rest.numel() + max(sizes), dtype=torch.uint8, device="cpu")
    message[: rest.numel()] = rest
    message[rest.numel() : rest.numel() + blob.numel()] = blob
    messages = channel.all_gather(message)
    overflow = messages[:, : rest.numel()].contiguous().view(torch.float64)
    tails = messages[:, rest.numel() :]
    return overflow, [decode_blob(tail[:size]) for tail, size in zip(tails, sizes, strict=True)]


def _check(channel: Channel, schema: Schema, ticket: Ticket, headers: list[list[int]]) -> None:
    """Raise on every rank unless all agree and none has failed."""
    agreed = {(magic, number, *digest) for magic, number, _, *digest, _, _, _ in headers}
    if len(agreed) == 1 and not any(header[2] for header in headers):
        return
    mine = Report(ticket.number, dict(ticket.failures), lines=list(schema.lines))
    raise disagreement(exchange_reports(channel, mine))
