"""Who has arrived at which sync, kept in the job's key-value store: how a failure gets the ranks' numbers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hjepa_dist_metrics.errors import RankFailureError, SyncTimeoutError

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_GRACE = 0.5
_DEAD_SIGNS = ("closed by peer", "reset by peer", "broken pipe", "connection refused")


class CounterStore(Protocol):
    """The two store operations that are needed: set a named counter, and add to it and read it."""

    def set(self, key: str, value: str, /) -> None:
        """Set the counter, without waiting for the store."""

    def add(self, key: str, amount: int, /) -> int:
        """Add `amount` to the counter and return its new value."""


@dataclass
class ArrivalBoard:
    """Count how many syncs each rank has reached, and tell from the counts why an exchange broke.

    A gloo error names no rank. The board does: a rank that has not posted the sync at which the others
    wait is the missing one. `ranks` are global numbers, `rank` is this process's place among them. `host` is
    the global number of the rank whose process serves the store, None where it is not known to be a rank's.
    """

    store: CounterStore
    prefix: str
    ranks: tuple[int, ...]
    rank: int
    timeout: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    arrived: int = 0
    posted: int = 0
    host: int | None = None

    def arrive(self) -> None:
        """Count this rank's next sync, still to be posted."""
        self.arrived += 1

    def post(self) -> None:
        """Post at which sync this rank is, once; done at every sync, and so without waiting for the store."""
        if self.posted < self.arrived:
            self.posted = self.arrived
            self.store.set(self._key("arrived", self.rank), str(self.arrived))

    def missing(self) -> tuple[int, ...]:
        """Return the places of the ranks that have not reached the sync at which this rank is.

        Those that an earlier sync has failed on never will, and live.
        """
        behind = [r for r in range(len(self.ranks)) if self._add("arrived", r) < self.arrived]
        return tuple(r for r in behind if not self._add("failed", r) and not self._add("concluded", r))

    def accused(self) -> tuple[int, ...]:
        """Return the places of the ranks that others have given up waiting for."""
        return tuple(r for r in range(len(self.ranks)) if self._add("accused", r) > 0)

    def given_up(self) -> SyncTimeoutError | None:
        """Return the error of the rank that gave up first, the same on every rank; None where nobody did."""
        accused = self.accused()
        return self._timeout_error(accused) if accused else None

    def explain(self, cause: str, started: float) -> RankFailureError | SyncTimeoutError:
        """Return the error that says which ranks a broken exchange was waiting for.

        `cause` is the transport's own message, `started` the clock when this rank came to the sync.
        """
        try:
            error = self._explain(cause, started)
        except Exception as store_error:
            host = "the launcher's agent or rank 0" if self.host is None else f"rank {self.host}"
            return RankFailureError(
                f"metrics sync {self.arrived} failed and the job's key-value store does not answer either: "
                f"the process that hosts it, {host}, is gone ({cause}; {first_line(store_error)})",
                () if self.host is None else (self.host,),
            )
        self._settle(error.ranks)
        return error

    def _explain(self, cause: str, started: float) -> RankFailureError | SyncTimeoutError:
        self.post()  # where the operation did not even start
        # Live ranks that are merely slower get the rest of the timeout to show up: accusing whoever is not
        # there at the moment of the failure would name them along with the dead one.
        # A closed connection may also be that of a rank that has just given up, and is about to say so.
        closed = any(sign in cause.lower() for sign in _DEAD_SIGNS)
        deadline = max(started + self.timeout, self.clock() + _GRACE if closed else 0.0)
        missing = self._wait(self.missing, deadline)
        if (given_up := self.given_up()) is not None:
            return given_up
        if missing and closed:
            return self._failure(missing, f"ended before metrics sync {self.arrived}", cause)
        if missing:
            for place in missing:
                self._add("accused", place, 1)
            return self._timeout_error(missing)
        self._add("failed", self.rank, 1)
        silent = self._wait(self._silent, max(deadline, self.clock()) + _GRACE)
        return self._failure(silent, f"went away in the middle of metrics sync {self.arrived}", cause)

    def _settle(self, blamed: tuple[int, ...]) -> None:
        """Give the others a moment to come to their conclusion too: this process may host the store."""
        with contextlib.suppress(Exception):  # the store is gone, so that somebody else has moved on
            self._add("concluded", self.rank, 1)
            others = [r for r, rank in enumerate(self.ranks) if rank not in blamed]
            self._wait(
                lambda: tuple(r for r in others if self._add("concluded", r) == 0),
                self.clock() + _GRACE,
                heed_accusers=False,
            )

    def _silent(self) -> tuple[int, ...]:
        """Return who neither saw this sync fail nor went on to another one: the dead."""
        return tuple(
            r
            for r in range(len(self.ranks))
            if self._add("failed", r) == 0 and self._add("arrived", r) <= self.arrived
        )

    def _wait(
        self, who: Callable[[], tuple[int, ...]], deadline: float, heed_accusers: bool = True
    ) -> tuple[int, ...]:
        """Wait until `who` names nobody, somebody gave up or the deadline passes; return whom it names."""
        pause = _FIRST_PAUSE
        while True:
            named = who()
            left = deadline - self.clock()
            if not named or left <= 0 or (heed_accusers and self.accused()):
                return named
            self.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _failure(self, places: tuple[int, ...], what: str, cause: str) -> RankFailureError:
        ranks = tuple(self.ranks[place] for place in places)
        if not ranks:
            return RankFailureError(f"metrics sync {self.arrived} broke on all its ranks ({cause})")
        return RankFailureError(
            f"{_name(ranks)} {what}: killed, crashed or finished early. Metrics of ranks {list(self.ranks)} "
            f"cannot be merged any more ({cause})",
            ranks,
        )

    def _timeout_error(self, places: tuple[int, ...]) -> SyncTimeoutError:
        ranks = tuple(self.ranks[place] for place in places)
        return SyncTimeoutError(
            f"{_name(ranks)} did not arrive at metrics sync {self.arrived} within {self.timeout:g} s. Every "
            "rank must sync the same collections the same number of times; raise sync_timeout if the rank is "
            "only slow",
            ranks,
        )

    def _add(self, what: str, place: int, amount: int = 0) -> int:
        return self.store.add(self._key(what, place), amount)

    def _key(self, what: str, place: int) -> str:
        return f"{self.prefix}/{what}/{place}"


def first_line(error: BaseException) -> str:
    """Return the first line of what started a chain of errors: torch's report of a failure can hide it."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _name(ranks: tuple[int, ...]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
