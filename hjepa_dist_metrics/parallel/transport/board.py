"""Who waits for whom, kept in the job's key-value store: how a failure gets the ranks' numbers.

A gloo error names no rank beyond the connection's own peer, and that one may itself be waiting. So a rank
that waits for long posts for whom; a rank that gives up follows the waits to their end, and the first to come
to a verdict posts it for all. Nothing is written while all goes well.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

from hjepa_dist_metrics.errors import RankFailureError, SyncTimeoutError

T = TypeVar("T")
Verdict = RankFailureError | SyncTimeoutError

_GRACE = 0.5  # seconds for another rank's verdict to come
_PAUSE = 0.02
_LEAST_PATIENCE = 5.0  # seconds for the store to answer
_TIMED_OUT = ("timed out", "wait timeout")
_KINDS: dict[str, type[Verdict]] = {
    "RankFailureError": RankFailureError,
    "SyncTimeoutError": SyncTimeoutError,
}


@dataclass
class WaitBoard:
    """Post waits and verdicts, and tell from them why a connection broke.

    `ranks` are global numbers, `rank` is this process's place among them. `host` is the global number of the
    rank whose process serves the store, None where it is not known to be a rank's.
    """

    store: Any
    prefix: str
    ranks: tuple[int, ...]
    rank: int
    timeout: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    host: int | None = None
    hosting: bool = False
    _silent: bool = False

    def _ask(self, question: Callable[[], T]) -> T:
        """Put a question to the store; RuntimeError where it does not answer, for its host may be stopped."""
        if self._silent:
            raise RuntimeError("it did not answer before")
        answer: Future[T] = Future()
        threading.Thread(target=_answer, args=(answer, question), daemon=True).start()
        try:
            return answer.result(max(self.timeout, _LEAST_PATIENCE))
        except FutureTimeoutError:
            self._silent = True
            raise RuntimeError(f"no answer within {max(self.timeout, _LEAST_PATIENCE):g} s") from None

    def post_wait(self, sync: int, peer: int) -> None:
        """Say that this rank waits for `peer` in a sync."""
        self.store.set(self._key("wait", self.rank), f"{sync} {peer}")

    def clear_wait(self) -> None:
        """Take back what `post_wait` has said."""
        self.store.set(self._key("wait", self.rank), "")

    def conclude(self, blamed: int) -> None:
        """Say that this rank knows the verdict; the store's host gives the others a moment to read it too."""
        with contextlib.suppress(RuntimeError):  # the store is gone: there is nobody to wait for
            self._ask(lambda: self._conclude(blamed))

    def _conclude(self, blamed: int) -> None:
        key = f"{self.prefix}/concluded"
        known, deadline = self.store.add(key, 1), self.clock() + _GRACE
        while self.hosting and known < len(self.ranks) - blamed and self.clock() < deadline:
            self.sleep(_PAUSE)
            known = self.store.add(key, 0)

    def verdict(self) -> Verdict | None:
        """Return the verdict that some rank has come to, None where none has."""
        key = f"{self.prefix}/verdict"
        if not self.store.check([key]):
            return None
        kind, text, ranks = json.loads(self.store.get(key))
        return _KINDS[kind](text, tuple(ranks))

    def explain(self, sync: int, peer: int, cause: str) -> Verdict:
        """Return who is at fault where the connection to `peer` broke; the same on all ranks."""
        try:
            return self._ask(lambda: self._settle(self._explain(sync, peer, cause)))
        except RuntimeError as store_error:
            host = "the launcher's agent or rank 0" if self.host is None else f"rank {self.host}"
            return RankFailureError(
                f"metrics sync {sync} failed and the job's key-value store does not answer either: the "
                f"process that hosts it, {host}, is gone or stopped ({cause}; {first_line(store_error)})",
                () if self.host is None else (self.host,),
            )

    def _explain(self, sync: int, peer: int, cause: str) -> Verdict:
        timed_out = any(sign in cause.lower() for sign in _TIMED_OUT)
        # A closed connection may be that of a rank that has just given up, and is about to say so.
        deadline = self.clock() + (0.0 if timed_out else _GRACE)
        while (known := self.verdict()) is None and self.clock() < deadline:
            self.sleep(_PAUSE)
        if known is not None:
            return known
        if timed_out:
            return self._timeout_error(*self.missing(sync, peer))
        return RankFailureError(
            f"rank {self.ranks[peer]} ended before metrics sync {sync} was complete: killed, crashed or "
            f"finished early. Metrics of {_name(self.ranks)} cannot be merged any more ({cause})",
            (self.ranks[peer],),
        )

    def missing(self, sync: int, peer: int) -> tuple[int, tuple[int, ...]]:
        """Return the ranks that are waited for and wait for nobody, and the earliest such sync."""
        waits = {self.rank: (sync, peer), **self._waits()}
        ends = [(number, waited) for number, waited in waits.values() if waited not in waits]
        earliest = min(ends, default=(sync, peer))[0]
        return earliest, tuple(sorted({rank for number, rank in ends if number == earliest})) or (peer,)

    def _waits(self) -> dict[int, tuple[int, int]]:
        """Return in which sync, and for whom, each of the other ranks waits that has posted it."""
        found = {}
        for rank in range(len(self.ranks)):
            if rank != self.rank and self.store.check([key := self._key("wait", rank)]):
                words = self.store.get(key).split()
                if words:
                    found[rank] = int(words[0]), int(words[1])
        return found

    def _timeout_error(self, sync: int, places: tuple[int, ...]) -> SyncTimeoutError:
        ranks = tuple(self.ranks[place] for place in places)
        return SyncTimeoutError(
            f"{_name(ranks)} did not arrive at metrics sync {sync} within {self.timeout:g} s. Every rank "
            "must sync the same collections the same number of times; raise sync_timeout if the rank is only "
            "slow",
            ranks,
        )

    def _settle(self, verdict: Verdict) -> Verdict:
        """Post a verdict, and return the one that was posted first."""
        text = json.dumps([type(verdict).__name__, str(verdict), verdict.ranks])
        self.store.compare_set(f"{self.prefix}/verdict", "", text)
        return self.verdict() or verdict

    def _key(self, what: str, place: int) -> str:
        return f"{self.prefix}/{what}/{place}"


def _answer(answer: Future[T], question: Callable[[], T]) -> None:
    try:
        answer.set_result(question())
    except BaseException as error:  # it is raised where the answer is waited for
        answer.set_exception(error)


def first_line(error: BaseException) -> str:
    """Return the first line of what started a chain of errors: torch's report of a failure can hide it."""
    while error.__context__ is not None:
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _name(ranks: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {shown}"
