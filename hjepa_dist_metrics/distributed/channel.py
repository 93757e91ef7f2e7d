"""The transport of a sync: what it may ask for, and how a failure is told apart from a late rank."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hjepa_dist_metrics.errors import MetricsError, RankFailureError, SyncTimeoutError

_POLL_SECONDS = 0.005


class Channel(Protocol):
    """Exchange host tensors between the ranks of a group, in the same order on every rank."""

    rank: int
    world_size: int

    def begin(self) -> None:
        """Announce that this rank has arrived at its next sync."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return [world_size, n] from every rank's one-dimensional tensor of n elements."""

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks; `tensor` may be overwritten."""


class LocalChannel:
    """Serve a world of one: the same path, and no collective."""

    rank = 0
    world_size = 1

    def begin(self) -> None:
        """Do nothing: nobody waits."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor as the only row."""
        return tensor.unsqueeze(0)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor


class CounterStore(Protocol):
    """The one store operation that is needed: add to a named counter and read it."""

    def add(self, key: str, amount: int) -> int:
        """Add `amount` to the counter and return its new value."""


@dataclass
class ArrivalBoard:
    """Count, in the job's key-value store, how many syncs each rank has reached.

    A gloo error names no rank. The board does: a rank that has not posted the sync at which the others
    wait is the missing one, and every survivor reads the same.
    """

    store: CounterStore
    prefix: str
    ranks: tuple[int, ...]
    rank: int
    timeout: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    arrived: int = 0

    def arrive(self) -> None:
        """Post this rank's next sync."""
        self.arrived = self.store.add(self._key(self.rank), 1)

    def missing(self) -> tuple[int, ...]:
        """Return the global ranks that have not reached the sync at which this rank is."""
        late = [r for r in range(len(self.ranks)) if self.store.add(self._key(r), 0) < self.arrived]
        return tuple(self.ranks[r] for r in late)

    def wait(self, deadline: float) -> tuple[int, ...]:
        """Wait until nobody is missing or the deadline passes; return who still is."""
        pause = _POLL_SECONDS
        while True:
            missing = self.missing()
            left = deadline - self.clock()
            if not missing or left <= 0:
                return missing
            self.sleep(min(pause, left))
            pause = min(pause * 1.5, 0.1)

    def _key(self, rank: int) -> str:
        return f"{self.prefix}/{rank}"

    def explain(self, error: Exception, started: float) -> MetricsError:
        """Return the error that says which ranks a broken exchange was waiting for.

        Live ranks that are merely slower get the rest of the timeout to show up: accusing whoever is not
        there at the moment of the failure would name them along with the dead one.
        """
        try:
            missing = self.wait(started + self.timeout)
        except Exception as store_error:
            return RankFailureError(
                "a metrics sync failed and the job's key-value store does not answer either: the process "
                f"that hosts it, usually global rank 0, is gone ({store_error})"
            )
        elapsed = self.clock() - started
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not missing:
            return RankFailureError(
                f"a rank failed in the middle of metrics sync {self.arrived}, after all of ranks "
                f"{list(self.ranks)} had arrived ({cause})"
            )
        if _closed_by_peer(cause):
            return RankFailureError(
                f"{_ranks(missing)} died before metrics sync {self.arrived}; the other ranks waited "
                f"{elapsed:.1f} s ({cause})",
                missing,
            )
        return timeout_error(missing, self.arrived, self.timeout)


def timeout_error(missing: tuple[int, ...], number: int, timeout: float) -> SyncTimeoutError:
    """Return the error for ranks that did not come to sync `number` within `timeout` seconds."""
    return SyncTimeoutError(
        f"{_ranks(missing)} did not arrive at metrics sync {number} within {timeout:g} s. Every rank must "
        "sync the same collections the same number of times; raise sync_timeout if the rank is only slow",
        missing,
    )


def board_prefix(ranks: tuple[int, ...], timeout: float, generation: int) -> str:
    """Return the store prefix that the ranks of one channel agree on without talking."""
    digest = hashlib.sha256(repr((ranks, timeout, generation)).encode()).hexdigest()[:16]
    return f"hjepa_dist_metrics/{digest}"


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"


def _closed_by_peer(cause: str) -> bool:
    lowered = cause.lower()
    return any(
        sign in lowered for sign in ("closed by peer", "reset by peer", "broken pipe", "connection refused")
    )
