"""The channel of a real process group: private gloo connections that name the ranks that fail.

Metrics have connections of their own: they have their own timeout, their operations never interleave with
the training's, and when they break the training's do not. They are made from the job's store under a name
that the ranks know without talking, and not by `new_group`, whose names depend on how many groups a process
has made so far: ranks that belong to different groups would wait for each other under different names.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions, AllToAllOptions
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from hjepa_dist_metrics.distributed.arrivals import ArrivalBoard, first_line
from hjepa_dist_metrics.distributed.messages import Messages
from hjepa_dist_metrics.errors import ConfigError, MetricsError, RankFailureError, SyncTimeoutError

_ENDLESS = timedelta(days=365)
_MOST_ROOM_KEPT = 1 << 21  # bytes: twice the first frames of all ranks
# On up to 32 ranks of one machine messages took half to two thirds of what gloo's gather took at 1 to 64 KiB,
# its all-to-all took half from 8 ranks on. At 1 MiB messages took three quarters, but a network may be better
# off with a ring.
_MOST_FOR_MESSAGES = 32  # ranks
_MOST_IN_MESSAGE = 1 << 16  # bytes
_MOST_AT_ONCE = 1 << 24  # bytes that come to a rank in one step
_SIMULATED = ("threaded", "fake")
_channels: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[float, GroupChannel]] = (
    weakref.WeakKeyDictionary()
)
# The channel that was last asked for: a look at a weak dictionary takes ten times as long.
_latest: tuple[weakref.ref[dist.ProcessGroup], float, weakref.ref[GroupChannel]] | None = None
_stores: weakref.WeakKeyDictionary[dist.ProcessGroup, Store] = weakref.WeakKeyDictionary()


class GroupChannel:
    """Exchange host tensors between the ranks of a group over private connections.

    The first sync connects. After a rank has failed or been given up, every further sync raises an error of
    the same kind: the connections are gone, and only a new process group brings new ones.

    What the ranks tell each other through the job's store lies where torch's own addresses of the job's group
    lie. So a store that outlives a restart serves metrics where it serves torch: under a new prefix for each
    attempt, as torchrun does it.
    """

    def __init__(self, parent: dist.ProcessGroup, timeout: float) -> None:
        ranks = tuple(dist.get_process_group_ranks(parent))
        self.rank, self.world_size = dist.get_rank(parent), len(ranks)
        self._store = _own_store()
        prefix = f"hjepa_dist_metrics/{parent.group_name}"
        # The store outlives groups: one made anew under the same name must not meet old keys.
        life = self._store.add(f"{prefix}/opened/{self.rank}", 1)
        self.board = ArrivalBoard(self._store, f"{prefix}/{life}", ranks, self.rank, timeout)
        self._simulated = parent if dist.get_backend(parent) in _SIMULATED else None
        self._group: Any = None
        self._messages: Messages | None = None
        # What the last operation used. Gloo's thread drops it a moment after the operation is over: were that
        # the last reference, the thread would need the interpreter for it, and abort the process where the
        # interpreter is just shutting down.
        self._kept: tuple[Tensor, ...] = ()
        # Where the last gather's rows came: the next one of the same size has them come there too.
        self._received: Tensor | None = None
        self._limit = timedelta(seconds=timeout)
        self._patient = False
        self._started = self.board.clock()
        self._broken: RankFailureError | SyncTimeoutError | None = None
        self._process = os.getpid()
        if hosts_store():
            self._store.set(f"{self.board.prefix}/host", str(dist.get_rank()))

    def connect(self) -> None:
        """Connect, where that is not done yet: every rank has to be here."""
        self._raise_broken()
        self._started = self.board.clock()
        if self._group is None:
            self._guard(self._connect)

    def begin(self, patient: bool = False) -> None:
        """Come to the next sync, and connect at the first; the others learn of it with the first exchange.

        A `patient` rank waits in the sync's first gather for as long as the others live. That one of them is
        gone it learns at the latest when the others come to a sync.
        """
        if os.getpid() != self._process:
            raise ConfigError("a forked process is not a rank: sync metrics in the process that trains")
        self._raise_broken()
        self._started = self.board.clock()
        self.board.arrive()
        self._patient = patient
        if self._group is None:
            self._guard(self._connect)
        elif self._messages is not None and self._messages.under_way:
            self._guard(self._messages.finish, self._seconds)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Gather equally sized tensors; see `Channel`."""
        out, sent, seconds = self._room_for(tensor), tensor.contiguous(), self._seconds
        self._patient = False
        way = way_to_gather(self.world_size, sent.nbytes)
        if self._messages is None or way == "ring":
            self._gather_in_a_ring(sent, out, seconds)
        elif way == "messages":
            self._guard(self._messages.gather, sent, out, seconds, self.board.post)
        else:
            self._gather_all_to_all(sent, out, seconds)
        if out.nbytes <= _MOST_ROOM_KEPT:
            self._received = out
        return out

    @property
    def _seconds(self) -> float:
        return (_ENDLESS if self._patient else self._limit).total_seconds()

    def _gather_in_a_ring(self, sent: Tensor, out: Tensor, seconds: float) -> None:
        rows, options = list(out.unbind(0)), AllgatherOptions()
        options.timeout = timedelta(seconds=seconds)
        self._kept = (*rows, sent)
        self._guard(self._run, "allgather", [rows], [sent], options)

    def _gather_all_to_all(self, sent: Tensor, out: Tensor, seconds: float) -> None:
        """Send every rank the same, which gloo does in one step."""
        repeated, flat, options = sent.repeat(self.world_size), out.view(-1), AllToAllOptions()
        options.timeout = timedelta(seconds=seconds)
        self._kept = (repeated, flat)
        self._guard(self._run, "alltoall_base", flat, repeated, [], [], options)

    def _room_for(self, tensor: Tensor) -> Tensor:
        """Return room for every rank's tensor, [W, n]: the last gather's, where it fits.

        It is not kept while it is in use: rows of a gather that is interrupted may still come to it.
        """
        last, self._received = self._received, None
        if last is not None and last.dtype == tensor.dtype and last.shape[1:] == tensor.shape:
            return last
        with torch.inference_mode(False):  # a later sync may be outside of it
            return torch.empty((self.world_size, tensor.numel()), dtype=tensor.dtype, device=tensor.device)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks in place; see `Channel`."""
        self._kept = (tensor,)
        self._guard(self._run, "allreduce", [tensor])
        return tensor

    def _run(self, operation: str, *arguments: Any) -> None:
        """Start an operation, post this rank's arrival while it is under way, and wait for it."""
        work = getattr(self._group, operation)(*arguments)
        self.board.post()
        work.wait()

    def _connect(self) -> None:
        self.board.post()  # first: to connect is to wait for the others
        if self._simulated is not None:
            self._group = self._simulated
            return
        if (given_up := self.board.given_up()) is not None:
            self._close(given_up)
            raise given_up
        store = PrefixStore(f"{self.board.prefix}/gloo", self._store)
        self._group = dist.ProcessGroupGloo(store, self.rank, self.world_size, self._limit)
        self._messages = Messages(self._group, self.rank, self.world_size)
        # Connected, all have opened their channels, and so said whether they host the store.
        host = f"{self.board.prefix}/host"
        self.board.host = int(self._store.get(host)) if self._store.check([host]) else None

    def _guard(self, operation: Callable[..., Any], *arguments: Any) -> None:
        """Run what needs the other ranks; where it fails, say which of them are at fault."""
        self._raise_broken()
        cause = None
        try:
            operation(*arguments)
        except MetricsError:
            raise
        except (RuntimeError, ValueError) as error:
            cause = first_line(error)
        if cause is not None:
            self._fail(cause)

    def _fail(self, cause: str) -> None:
        # Closed at once, so that the ranks that wait for this one need not wait for their own timeouts.
        if self._messages is not None:
            self._messages.close()
        self._group = self._messages = None
        error = self.board.explain(cause, self._started)
        self._close(error)
        raise error

    def _close(self, error: RankFailureError | SyncTimeoutError) -> None:
        """Keep what further syncs raise."""
        self._broken = type(error)(
            f"metrics of ranks {list(self.board.ranks)} cannot sync any more, since an earlier sync failed: "
            f"{error}. A new process group brings them back: torch.distributed.new_group() on all ranks that "
            "are left, given to the metrics as their context, or a restart of the job",
            error.ranks,
        )

    def _raise_broken(self) -> None:
        if self._broken is not None:
            raise self._broken.with_traceback(None)


def group_channel(group: dist.ProcessGroup | None, timeout: float) -> GroupChannel:
    """Return this process's channel for a group and a timeout, made at the first call."""
    global _latest
    parent = group if group is not None else dist.group.WORLD
    if parent is None:
        raise ConfigError("the process group is gone: compute metrics before destroy_process_group()")
    latest = _latest  # once: another thread may ask for another channel meanwhile
    if latest is not None and latest[0]() is parent and latest[1] == timeout:
        known = latest[2]()
        if known is not None:
            return known
    channel = _open(parent, timeout)
    _latest = weakref.ref(parent), timeout, weakref.ref(channel)
    return channel


def _open(parent: dist.ProcessGroup, timeout: float) -> GroupChannel:
    opened = _channels.setdefault(parent, {})
    if timeout not in opened:
        try:
            opened[timeout] = GroupChannel(parent, timeout)
        except RuntimeError as error:
            raise RankFailureError(f"the job's key-value store does not answer: {error}") from None
    return opened[timeout]


def way_to_gather(world_size: int, size: int) -> Literal["messages", "all_to_all", "ring"]:
    """Return how `size` bytes of every rank are gathered, the same on all ranks.

    Small ones go to all others at once: by messages where there are few ranks, by gloo's all-to-all where
    calls of our own for each would be many. Large ones go round a ring, lest all send to one at a time.
    """
    if size > _MOST_IN_MESSAGE or size * world_size > _MOST_AT_ONCE:
        return "ring"
    return "messages" if world_size <= _MOST_FOR_MESSAGES else "all_to_all"


def hosts_store() -> bool:
    """Return whether this process serves the job's key-value store; its client alone does not say."""
    store = dist.distributed_c10d._get_default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return isinstance(store, TCPStore) and "server=TCPServer" in repr(store)


def _own_store() -> Store:
    """Return a connection of our own to the job's store: a wait on the shared one blocks its other users."""
    world = dist.group.WORLD
    assert world is not None
    if world not in _stores:
        store = dist.distributed_c10d._get_default_store()
        _stores[world] = store.clone() if hasattr(store, "clone") else store
    return _stores[world]
