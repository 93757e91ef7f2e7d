"""What the rest of the package may ask of other ranks.

This layer is the only place that calls torch.distributed collectives. Metrics go through the private channel
of `open_channel`; training code uses the job's own group through the other functions.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hjepa_dist_metrics.parallel.context import ProcessContext
from hjepa_dist_metrics.parallel.transport import Channel, LocalChannel
from hjepa_dist_metrics.parallel.transport.tree_channel import group_channel


def open_channel(context: ProcessContext, timeout: float) -> Channel:
    """Return the channel of a context. The ranks connect at their first sync over it.

    `timeout` is how many seconds a sync waits for a rank that does not come.
    """
    if context.channel is not None:
        return context.channel
    if context.world_size == 1:
        return LocalChannel()
    return group_channel(context.group, timeout)


def all_reduce_sum(tensor: Tensor, context: ProcessContext) -> Tensor:
    """Sum a training tensor over the job's own group, out of place and without autograd."""
    if context.channel is not None:
        return all_gather_tensors(tensor, context).sum(dim=0)
    total = tensor.detach().clone()
    if context.world_size > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=context.group)
    return total


def all_gather_tensors(tensor: Tensor, context: ProcessContext) -> Tensor:
    """Return every rank's tensor, of one shape, as [W, ...], in rank order and without autograd."""
    own = tensor.detach().contiguous()
    if context.world_size == 1:
        return own.clone().unsqueeze(0)
    if context.channel is not None:
        return _gather_simulated(own, context.channel)
    parts = [torch.empty_like(own) for _ in range(context.world_size)]
    dist.all_gather(parts, own, group=context.group)
    return torch.stack(parts)


def gather_texts(own: str, context: ProcessContext) -> list[str]:
    """Return every rank's text, in rank order."""
    device = torch.device("cpu") if context.channel is not None else _device_of(context.group)
    data = np.frombuffer(own.encode(), dtype=np.uint8)
    size = torch.tensor([len(data)], device="cpu").to(device)
    sizes = all_gather_tensors(size, context).reshape(-1).tolist()
    padded = np.zeros(max(sizes), dtype=np.uint8)
    padded[: len(data)] = data
    rows = all_gather_tensors(torch.from_numpy(padded).to(device), context).cpu().numpy()
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def gather_json(own: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """Return what every rank of a group gives, plain data of lists, numbers and texts, in rank order."""
    size = dist.get_world_size(group)
    context = ProcessContext(dist.get_rank(group), size, _device_of(group), is_main=False, group=group)
    return [json.loads(text) for text in gather_texts(json.dumps(own), context)]


def _device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Return the kind of device whose tensors a group's collectives take."""
    if not dist.is_initialized() or dist.get_backend(group) != "nccl":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _gather_simulated(own: Tensor, channel: Channel) -> Tensor:
    """Gather over a channel that was given, that of ranks in one process: each rank sends to all others."""
    data = own.reshape(-1).view(torch.uint8).numpy() if own.numel() else np.zeros(0, dtype=np.uint8)
    parts = [own] * channel.world_size
    for peer in range(channel.world_size):
        if peer != channel.rank:
            received = channel.exchange(peer, data, len(data))
            parts[peer] = torch.from_numpy(received.copy()).view(own.dtype).reshape(own.shape)
    return torch.stack(parts)


def barrier(context: ProcessContext) -> None:
    """Wait until every rank of the job's own group is here."""
    if context.world_size > 1:
        dist.barrier(group=context.group)
