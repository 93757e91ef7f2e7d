"""The only place that calls torch.distributed collectives.

Metrics use a private gloo group (`open_channel`): it has its own timeout, its operations can never
interleave with the training's, and when it breaks the training's group does not. Training code uses the
job's own group through the few functions at the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import (
    ArrivalBoard,
    Channel,
    LocalChannel,
    board_prefix,
    timeout_error,
)
from hjepa_dist_metrics.distributed.context import ProcessContext
from hjepa_dist_metrics.errors import MetricsError

T = TypeVar("T")

_channels: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[float, GroupChannel]] = (
    weakref.WeakKeyDictionary()
)


class GroupChannel:
    """Exchange host tensors over a private process group; name the ranks that fail to show up."""

    def __init__(self, group: dist.ProcessGroup, board: ArrivalBoard) -> None:
        self.group = group
        self.board = board
        self.rank = board.rank
        self.world_size = len(board.ranks)
        self._started = board.clock()
        self._broken: MetricsError | None = None

    def begin(self) -> None:
        """Post this rank's arrival, so that the others can tell who is missing."""
        if self._broken is not None:
            raise self._broken
        self._started = self.board.clock()
        self._guard(self.board.arrive)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Gather equally sized tensors; see `Channel`."""
        out = tensor.new_empty((self.world_size, tensor.numel()))
        self._guard(lambda: dist.all_gather(list(out.unbind(0)), tensor.contiguous(), group=self.group))
        return out

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks in place; see `Channel`."""
        self._guard(lambda: dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=self.group))
        return tensor

    def _guard(self, operation: Callable[[], Any]) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            operation()
        except (RuntimeError, ValueError) as error:
            self._broken = self.board.explain(error, self._started)
            raise self._broken from None


def open_channel(context: ProcessContext, timeout: float) -> Channel:
    """Return the channel of a context, opening it on the first call.

    Opening is collective: every rank of the group does it at its first sync. Ranks that do not come within
    `timeout` seconds are named in a `SyncTimeoutError`.
    """
    if context.channel is not None:
        return context.channel
    if context.world_size == 1:
        return LocalChannel()
    parent = context.group or dist.group.WORLD
    assert parent is not None
    opened = _channels.setdefault(parent, {})
    if timeout not in opened:
        opened[timeout] = _open_group_channel(parent, timeout, generation=len(opened))
    return opened[timeout]


def _open_group_channel(parent: dist.ProcessGroup, timeout: float, generation: int) -> GroupChannel:
    ranks = tuple(dist.get_process_group_ranks(parent))
    store = dist.distributed_c10d._get_default_store()
    prefix = board_prefix(ranks, timeout, generation)
    board = ArrivalBoard(store, prefix, ranks, dist.get_rank(parent), timeout)
    board.arrive()
    missing = board.wait(board.clock() + timeout)
    if missing:
        raise timeout_error(missing, board.arrived, timeout)
    group = dist.new_group(
        ranks=list(ranks),
        backend=_host_backend(parent),
        timeout=timedelta(seconds=timeout),
        use_local_synchronization=True,
    )
    assert group is not None
    return GroupChannel(group, board)


def _host_backend(parent: dist.ProcessGroup) -> str:
    """Return gloo, or the parent's own backend where that is a simulated one on host memory."""
    name = dist.get_backend(parent)
    return name if name in ("threaded", "fake") else "gloo"


def all_reduce_sum(tensor: Tensor, context: ProcessContext) -> Tensor:
    """Sum a training tensor over the job's own group, out of place and without autograd."""
    if context.world_size == 1:
        return tensor.detach().clone()
    if context.channel is not None:
        return context.channel.all_reduce_sum(tensor.detach().clone())
    total = tensor.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM, group=context.group)
    return total


def all_gather_objects(value: T, context: ProcessContext) -> list[T]:
    """Return every rank's object, in rank order. For set-up and validation, not for the training step."""
    if context.world_size == 1:
        return [value]
    values: list[Any] = [None] * context.world_size
    dist.all_gather_object(values, value, group=context.group)
    return values


def broadcast_object(value: T, context: ProcessContext) -> T:
    """Return the first rank's object on every rank."""
    if context.world_size == 1:
        return value
    box: list[Any] = [value]
    source = 0 if context.group is None else dist.get_global_rank(context.group, 0)
    dist.broadcast_object_list(box, src=source, group=context.group)
    result: T = box[0]
    return result


def barrier(context: ProcessContext) -> None:
    """Wait until every rank of the job's own group is here."""
    if context.world_size > 1:
        dist.barrier(group=context.group)
