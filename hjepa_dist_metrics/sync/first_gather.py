"""The first exchange: every rank's frame, checked before anything else is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.sync.frame import PART, SIZE, Frame, Ticket, agree, split_frames, waits_of
from hjepa_dist_metrics.sync.joining import Announcement, Part, UnevenError, can_join
from hjepa_dist_metrics.sync.plan import Floats
from hjepa_dist_metrics.sync.rest import Rest
from hjepa_dist_metrics.sync.schema import Report, Schema, disagreement, exchange_reports


class Gathered(NamedTuple):
    """Hold what all ranks sent: the rows that had room, [W, n], each rank's last wait in ns, its part.

    `rest` is what had no room.
    """

    rows: Floats
    rest: Rest
    waits: Sequence[int]
    parts: Sequence[Part]


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
    frame = Frame(channel.world_size)
    inline = rows[: len(frame.numbers)]
    frame.numbers[: len(inline)] = inline
    frame.sign(schema, ticket, 0 if blob is None else blob.numel())
    words, numbers = split_frames(channel.all_gather(frame.tensor))
    headers = words.tolist()
    if not agree(headers):
        raise_difference(channel, schema, ticket, announce)
    sizes = [header[SIZE] for header in headers]
    parts = () if ticket.part is None else [Part.read(*header[PART:]) for header in headers]
    received = numbers[:, : len(inline)].copy()
    return Gathered(received, Rest(rows[len(inline) :], blob, sizes), waits_of(headers), parts)


def raise_difference(
    channel: Channel,
    schema: Schema,
    ticket: Ticket,
    announce: Callable[[Part], Announcement] | None = None,
) -> NoReturn:
    """Tell the others what this rank was about to sync, and raise on every rank what differs or failed."""
    lines = list(schema.lines)
    mine = Report(ticket.number, dict(ticket.failures), lines=lines, collection=ticket.collection)
    if ticket.part is not None and announce is not None:
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
