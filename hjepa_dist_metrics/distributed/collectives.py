"""What the rest of the package may ask of other ranks.

This layer is the only place that calls torch.distributed collectives. Metrics go through the private channel
of `open_channel`; training code uses the job's own group through the other functions.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel, LocalChannel
from hjepa_dist_metrics.distributed.context import ProcessContext
from hjepa_dist_metrics.distributed.group_channel import group_channel

T = TypeVar("T")


def open_channel(context: ProcessContext, timeout: float) -> Channel:
    """Return the channel of a context. The ranks connect at their first sync over it.

    `timeout` is how many seconds a sync waits for a rank that does not come.
    """
    if context.channel is not None:
        return context.channel
    if context.world_size == 1:
        return LocalChannel()
    return group_channel(context.group, timeout)


def connect(context: ProcessContext, timeout: float) -> None:
    """Open the connections of a context's channel now, while every rank is here to do the same."""
    if context.is_member and context.channel is None and context.world_size > 1:
        group_channel(context.group, timeout).connect()


def all_reduce_sum(tensor: Tensor, context: ProcessContext) -> Tensor:
    """Sum a training tensor over the job's own group, out of place and without autograd."""
    if context.world_size == 1:
        return tensor.detach().clone()
    if context.channel is not None:
        return context.channel.all_reduce_sum(tensor.detach().clone())
    total = tensor.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM, group=context.group)
    return total


def all_gather_tensors(tensor: Tensor, context: ProcessContext) -> Tensor:
    """Return every rank's tensor, of one shape, as [W, ...], in rank order and without autograd."""
    own = tensor.detach().contiguous()
    if context.world_size == 1:
        return own.clone().unsqueeze(0)
    if context.channel is not None:
        return context.channel.all_gather(own.reshape(-1)).clone().reshape(-1, *own.shape)
    parts = [torch.empty_like(own) for _ in range(context.world_size)]
    dist.all_gather(parts, own, group=context.group)
    return torch.stack(parts)


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
