"""How ranks at different points of a run share a sync: who waits, how far each is, who lacks what.

A rank that has nothing to sync, because it ran out of batches or waits for the others at the end of an epoch,
follows the ranks that have: it joins in whatever they sync, with its own states where it has them and with
empty ones, which are sent to it, where it has not. What all ranks have alike is then told by those that took
the most steps.
"""

from __future__ import annotations

import base64
import pickle
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hjepa_dist_metrics.states import State
from hjepa_dist_metrics.sync.schema import Report

_PENDING, _LACKS, _LEVEL, _BITS = 2, 4, 8, 8


@dataclass(frozen=True)
class Part:
    """Say how a rank takes part in a sync whose ranks need not hold the same states.

    `level` is 0 for a rank that has something to sync and more for one that follows the others: the higher,
    the nearer to the run's end. `taken` counts the rank's steps and `step` is the number of the coming one.
    `pending` tells that it has more to sync later, `lacks` that it misses a metric of the others.
    `purpose` says what the sync is for, to those that follow.
    """

    level: int = 0
    taken: int = 0
    step: int = 0
    pending: bool = False
    lacks: bool = False
    purpose: tuple[Any, ...] = field(default=(), compare=False)

    def words(self) -> tuple[int, int]:
        """Return the part as two words of a frame's header; never zero."""
        flags = 1 | _PENDING * self.pending | _LACKS * self.lacks | _LEVEL * self.level
        return flags | self.step << _BITS, self.taken

    @classmethod
    def read(cls, first: int, taken: int) -> Part:
        """Read a part back, all but its purpose."""
        flags = first & ((1 << _BITS) - 1)
        level = flags // _LEVEL
        return cls(level, taken, first >> _BITS, bool(flags & _PENDING), bool(flags & _LACKS))


@dataclass(frozen=True)
class Announcement:
    """Tell the others of the states that a rank is about to sync, each as an empty one, and what for."""

    states: dict[str, State]
    purpose: tuple[Any, ...]

    @classmethod
    def of(cls, states: Mapping[str, State], part: Part) -> Announcement:
        """Announce `states`."""
        return cls({name: state.empty() for name, state in states.items()}, part.purpose)

    def encode(self) -> str:
        """Return the announcement as text."""
        return base64.b64encode(zlib.compress(pickle.dumps((self.states, self.purpose)), 1)).decode()

    @classmethod
    def decode(cls, text: str) -> Announcement:
        """Read an announcement back."""
        return cls(*pickle.loads(zlib.decompress(base64.b64decode(text))))


class UnevenError(Exception):
    """Tell, inside of a sync, that the ranks hold different states, of which no two contradict each other."""

    def __init__(self, announcements: Sequence[Announcement]) -> None:
        super().__init__("the ranks hold different states")
        self.announcements = announcements


def _one(reports: Sequence[Report]) -> bool:
    """Return whether the ranks sync one collection, at one number, by one version of the package."""
    return len({(report.collection, report.number, report.version) for report in reports}) == 1


def can_join(reports: Sequence[Report]) -> bool:
    """Return whether ranks that hold different states can sync them all the same.

    All of them have to be ready for it, at the same sync and without a failure; a state that several hold
    has to be the same one.
    """
    known: dict[str, str] = {}
    alike = all(known.setdefault(name, line) == line for report in reports for name, line in report.lines)
    ready = all(report.announcement and not report.failures for report in reports)
    return alike and ready and _one(reports)
