"""Find the ranks that hold the others up, from what each did by itself and how long it waited.

Steps take equally long on every rank, since the fast ranks wait for the slow one: the one that waits least is
slow. A cause is named only where it explains the others' waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
PARTS = ("data", "forward", "backward", "optimizer", "between")
# How the waits of a step are known: measured, by the shortest backward of any rank, or not at all.
MEASURED, IN_BACKWARD, UNKNOWN = 0.0, 1.0, 2.0
SLOW = 0.75  # a rank is reported where the others could do a step in less than this share of its time
EXPLAINS = 0.8  # share of the others' waiting that a cause must make up
_LEAST_STEPS, _MOST_STEPS = 5, 0.7
_NEWEST = 10  # steps that are looked at by themselves
_LEAST_UNEXPLAINED = 10  # steps before a rank is named without a cause
# Slow at times: so many steps that lose so much of a step's usual time, and so much of all time.
_LEAST_SLOW_STEPS, _LONG, _SHARE_LOST = 4, 0.5, 0.15
_DATA = [PARTS.index("data")]


@dataclass(frozen=True)
class Straggler:
    """Name a slow rank, the seconds that the job loses in a slow step, the cause if known, and how often."""

    rank: int
    lost: float
    cause: str | None
    own: float
    others: float
    share: float


@dataclass(frozen=True)
class Times:
    """Hold seconds of W ranks in S steps: own parts [W, S, 5], and waits [W, S]; `known` where these are."""

    own: Floats
    wait: Floats
    known: bool

    @classmethod
    def of(cls, table: Floats) -> Times:
        """Return times from [W, S, 7]: the parts, minus the wait, and how it is known."""
        own, wait, modes = table[:, :, :5].copy(), -table[:, :, 5], table[:, :, 6]
        known = bool((modes < UNKNOWN).all())
        backward = PARTS.index("backward")
        if known and (modes == IN_BACKWARD).any():
            work = own[:, :, backward].min(axis=0)
            wait = own[:, :, backward] - work
            own[:, :, backward] = work
        return cls(own, wait if known else np.zeros_like(wait), known)

    def newest(self, count: int) -> Times:
        """Return the times of the newest steps."""
        return Times(self.own[:, -count:], self.wait[:, -count:], self.known)

    @property
    def steps(self) -> Floats:
        """Return the whole time of each step, [W, S]."""
        total: Floats = self.own.sum(axis=2) + self.wait
        return total

    def beyond(self, rank: int) -> tuple[Floats, Floats]:
        """Return a rank's parts beyond the others' medians [S, 5], and what the others wait beyond it [S].

        Waits that no clock sees lie in some part of the others' steps, but never in that of the data, which
        holds no collective: there a longer one is what they wait for, as far as they take longer elsewhere.
        """
        surplus = self.own[rank] - np.median(np.delete(self.own, rank, axis=0), axis=0)
        waited = np.median(np.delete(self.wait, rank, axis=0), axis=0) - self.wait[rank]
        elsewhere = waited - np.delete(surplus, _DATA, axis=1).sum(axis=1)
        return surplus, np.maximum(waited, np.minimum(elsewhere, surplus[:, _DATA[0]]))


def score(times: Times) -> tuple[float, int]:
    """Return the share of its step that the slowest rank needs without holding up others, and the rank."""
    lost = np.array([np.median(times.beyond(rank)[1]) for rank in range(len(times.own))])
    slowest = int(lost.argmax())
    length = float(np.median(times.steps[slowest]))
    share = max(0.0, float(lost[slowest])) / length if length > 0 else 0.0
    return 1.0 - min(share, 1.0), slowest


def search(times: Times, ranks: Sequence[int]) -> tuple[Times, list[Straggler]]:
    """Return the slow ranks and the steps in which they are: all, or the newest where it began lately."""
    for part in (times, times.newest(_NEWEST)):
        if found := stragglers(part, ranks):
            return part, found
    return times, []


def stragglers(times: Times, ranks: Sequence[int]) -> list[Straggler]:
    """Return the slow ranks, the slowest first; [] where none is, or where nothing can be told."""
    found = [_judge(times, index, rank) for index, rank in enumerate(ranks)]
    return sorted((s for s in found if s is not None), key=lambda s: -s.lost * s.share)


def _judge(times: Times, index: int, rank: int) -> Straggler | None:
    surplus, lost = times.beyond(index)
    length = float(np.median(times.steps[index]))
    slow = _slow_steps(lost, length)
    if slow is None:
        return None
    held_up = float(np.median(lost[slow]))
    allowed = list(range(len(PARTS))) if times.known else _DATA
    medians = np.median(surplus[slow], axis=0)
    part = max(allowed, key=lambda p: medians[p])
    explained = medians[part] >= EXPLAINS * held_up
    # Slow steps now and then are any machine's: they are a rank's where one part of its own makes them.
    by_itself = slow.all() or (surplus[slow][:, part] >= EXPLAINS * lost[slow]).mean() >= _MOST_STEPS
    unexplained = times.known and bool(slow.all()) and len(lost) >= _LEAST_UNEXPLAINED
    if not by_itself or not (explained or unexplained):
        return None
    own = float(np.median(times.own[index][slow][:, part]))
    others = own - float(medians[part])
    cause = PARTS[part] if explained else None
    return Straggler(rank, held_up, cause, own, others, float(slow.mean()))


def _slow_steps(lost: Floats, length: float) -> npt.NDArray[np.bool_] | None:
    """Return the steps that count, [S]: all where the rank is always slow, or those where it is at times."""
    steps, limit = len(lost), (1 - SLOW) * length
    if steps < _LEAST_STEPS or length <= 0:
        return None
    if np.median(lost) >= limit and (lost > limit / 2).mean() >= _MOST_STEPS:
        return np.ones(steps, dtype=bool)
    slow = lost >= _LONG * length
    often = slow.sum() >= _LEAST_SLOW_STEPS and lost[slow].sum() >= _SHARE_LOST * length * steps
    # What others lose elsewhere in the same window is the machine's noise, and no rank's.
    return slow if often and np.median(np.abs(lost[~slow])) < limit / 4 else None
