"""The channel of a process group: a connection of its own for each edge of the tree."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Iterable
from typing import NamedTuple

import torch.distributed as dist

from hjepa_dist_metrics.errors import ConfigError, RankFailureError
from hjepa_dist_metrics.parallel import compat
from hjepa_dist_metrics.parallel.transport.board import Verdict, WaitBoard, first_line
from hjepa_dist_metrics.parallel.transport.channel import (
    Bytes,
    Channel,
    LinkError,
    LocalChannel,
    grown,
    new_frame,
)
from hjepa_dist_metrics.parallel.transport.edge import Edge
from hjepa_dist_metrics.parallel.transport.watch import watch

logger = logging.getLogger("hjepa_dist_metrics")

_ENDLESS = 365 * 86400.0
_LONGEST_POST_DELAY = 1.0
_LEAST_TO_CONNECT = 5.0  # seconds for two ranks that are both there
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_channels: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[float, Channel]] = weakref.WeakKeyDictionary()


class _Wait(NamedTuple):
    peer: int
    since: float


class TreeChannel:
    """Carry messages between the ranks of a group, over private connections.

    The first sync connects. After a rank has failed or been given up, every further sync raises an error of
    the same kind: the connections are gone, and only a new process group brings new ones.

    What the ranks tell each other through the job's store lies where torch's own addresses of the job's group
    lie. So a store that outlives a restart serves metrics where it serves torch: under a new prefix for each
    attempt, as torchrun does it.
    """

    def __init__(self, parent: dist.ProcessGroup, timeout: float) -> None:
        ranks = tuple(dist.get_process_group_ranks(parent))
        self.rank, self.world_size = dist.get_rank(parent), len(ranks)
        self.frame, self._timeout = new_frame(), timeout
        store = compat.own_connection(compat.job_store(), max(timeout, _LEAST_TO_CONNECT))
        prefix = f"hjepa_dist_metrics/{parent.group_name}"
        # The store outlives groups: one made anew under the same name must not meet old keys.
        life = store.add(f"{prefix}/opened/{self.rank}", 1)
        self.board = WaitBoard(store, f"{prefix}/{life}", ranks, self.rank, timeout)
        self.board.hosting = compat.hosts_store(compat.job_store())
        if self.board.hosting:
            store.set(f"{self.board.prefix}/host", str(dist.get_rank()))
        self._edges: dict[int, Edge] = {}
        self._broken: Verdict | None = None
        self._process, self._number = os.getpid(), 0
        self._started, self._patience = time.monotonic(), ""
        self._wait: _Wait | None = None
        self._posted: tuple[int, int] | None = None
        self._told = False
        watch(self)

    def connect(self, peers: Iterable[int]) -> None:
        """Connect to the peers, where that is not done yet: every rank has to be here."""
        self._require_usable()
        self._started = time.monotonic()
        self._connect(peers)

    def begin(self, peers: Iterable[int], patience: str = "") -> None:
        """Come to the next sync, and connect at the first; see `Channel`."""
        self._require_usable()
        self._started, self._patience = time.monotonic(), patience
        self._number, self._told = self._number + 1, False
        if not self._edges:
            self._connect(peers)

    def exchange(self, peer: int, sent: Bytes | None, size: int) -> Bytes:
        """Exchange messages with a peer; see `Channel`."""
        edge = self._edges.get(peer)
        if edge is None:
            assert self._broken is not None
            raise LinkError(self._broken)
        self._wait = _Wait(peer, time.monotonic())
        try:
            received = edge.exchange(sent, size, self._deadline)
        except RuntimeError as error:
            cause = first_line(error)
        else:
            self._end_wait()
            return received
        raise LinkError(self._give_up(peer, cause))

    def end(self, most_bytes: int) -> None:
        """Let the frame grow to what was needed; see `Channel`."""
        self.frame = grown(self.frame, most_bytes)

    def close(self, error: Verdict) -> None:
        """Let go of all connections, and keep what further syncs raise."""
        for edge in self._edges.values():
            edge.close()
        self._edges, self._wait = {}, None
        self.board.conclude(len(error.ranks))
        self._broken = type(error)(
            f"metrics of ranks {list(self.board.ranks)} cannot sync any more, since an earlier sync failed: "
            f"{error}. A new process group brings them back: torch.distributed.new_group() on all ranks that "
            "are left, given to the metrics as their context, or a restart of the job",
            error.ranks,
        )

    def look(self, now: float) -> None:
        """Post for whom this rank waits, once it has waited for long; see `Waiting`."""
        wait, number = self._wait, self._number
        if wait is None:
            return
        waited = now - wait.since
        if waited > min(_LONGEST_POST_DELAY, self._timeout / 4) and self._posted != (number, wait.peer):
            self.board.post_wait(number, wait.peer)
            self._posted = (number, wait.peer)
        if self._patience and waited > self._timeout and not self._told:
            self._told = True
            own, other = self.board.ranks[self.rank], self.board.ranks[wait.peer]
            logger.warning("rank %d has waited %.0f s for rank %d %s", own, waited, other, self._patience)

    def _end_wait(self) -> None:
        """Note that the peer has come; the wait for one that has not stays posted, for others to follow."""
        self._wait = None
        if self._posted is not None:
            self._posted = None
            with contextlib.suppress(RuntimeError):  # the store is gone: nobody reads it any more
                self.board.clear_wait()

    @property
    def _deadline(self) -> float:
        return self._started + (_ENDLESS if self._patience else self._timeout)

    def _connect(self, peers: Iterable[int]) -> None:
        """Connect to one peer after the other; all ranks go through the tree's rounds in the same order."""
        edges: dict[int, Edge] = {}
        try:
            for peer in dict.fromkeys(peers):
                self._wait = _Wait(peer, time.monotonic())
                edges[peer] = self._edge(peer)
            key = f"{self.board.prefix}/host"
            self.board.host = int(self.board.store.get(key)) if self.board.store.check([key]) else None
            self._edges = edges
            self._end_wait()
        except LinkError as broken:
            self._edges = edges
            self.close(broken.error)
            raise broken.error from None

    def _edge(self, peer: int) -> Edge:
        """Meet a peer at the store, and connect; without it torch would print a warning for a late peer."""
        lower, upper = sorted((self.rank, peer))
        prefix, store = f"{self.board.prefix}/edge/{lower}-{upper}", self.board.store
        try:
            store.set(f"{prefix}/{self.rank}", "1")
            if not self._meet(f"{prefix}/{peer}"):
                raise LinkError(self._give_up(peer, "timed out"))
            left = max(self._deadline - time.monotonic(), _LEAST_TO_CONNECT)
            # Over the job's own connection, for the group keeps it, and a peer that is there answers at once.
            meeting = compat.prefixed(prefix, compat.job_store())
            return Edge(meeting, self.rank < peer, left)
        except RuntimeError as error:
            raise LinkError(self._give_up(peer, first_line(error))) from None

    def _meet(self, key: str) -> bool:
        """Wait until a key is there; return False where that took too long, or others have given up."""
        pause = _FIRST_PAUSE
        while not self.board.store.check([key]):
            if time.monotonic() > self._deadline or (pause == _LONGEST_PAUSE and self.board.verdict()):
                return False
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _give_up(self, peer: int, cause: str) -> Verdict:
        if self._broken is None:
            self._broken = self.board.explain(self._number or 1, peer, cause)
        edge = self._edges.pop(peer, None)
        if edge is not None:
            edge.close()
        return self._broken

    def _require_usable(self) -> None:
        if os.getpid() != self._process:
            raise ConfigError("a forked process is not a rank: sync metrics in the process that trains")
        if self._broken is not None:
            raise self._broken.with_traceback(None)


def group_channel(group: dist.ProcessGroup | None, timeout: float) -> Channel:
    """Return this process's channel for a group and a timeout, made at the first call."""
    parent = group if group is not None else dist.group.WORLD
    if parent is None:
        raise ConfigError("the process group is gone: compute metrics before destroy_process_group()")
    opened = _channels.get(parent)
    if opened is None:
        opened = _channels[parent] = {}
    if timeout not in opened:
        try:
            fake = dist.get_backend(parent) == "fake"  # of its ranks there is only one
            opened[timeout] = LocalChannel() if fake else TreeChannel(parent, timeout)
        except RuntimeError as error:
            raise RankFailureError(f"the job's key-value store does not answer: {error}") from None
    return opened[timeout]
