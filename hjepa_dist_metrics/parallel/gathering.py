"""Rows of all ranks with gradients: what a loss over the global batch, a contrastive one for instance, needs.

Ranks differentiate their share of one loss, and the shares add up to it. The gradient of a rank's rows then
is the sum over ranks of what their shares ask of these rows: gather forward, sum and cut backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.collectives import all_gather_tensors, all_reduce_sum
from hjepa_dist_metrics.parallel.context import ProcessContext


def gather_rows(rows: Tensor, context: ProcessContext, sizes: Sequence[int] | None = None) -> Tensor:
    """Return the rows [B_r, ...] of every rank, in rank order, as [sum B_r, ...], with gradients.

    `sizes` are the ranks' B_r, where they are known beforehand: without them they are gathered too, and the
    host waits for the device. A collective call, in the forward and in the backward pass: the loss of every
    rank must depend on the result, also on a rank without rows. Under DistributedDataParallel, which averages
    gradients, multiply a rank's share of the loss by the number of ranks.
    """
    if sizes is not None and (
        len(sizes) != context.world_size or min(sizes) < 0 or sizes[context.rank] != len(rows)
    ):
        raise ConfigError(
            f"expected the sizes of {context.world_size} ranks, {len(rows)} for rank {context.rank}, "
            f"got {list(sizes)}"
        )
    if context.world_size == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows, context, row_sizes(rows, context) if sizes is None else sizes)  # type: ignore[no-untyped-call]
    return gathered


def row_sizes(rows: Tensor, context: ProcessContext) -> list[int]:
    """Return how many rows every rank has, in rank order; a collective call that waits for the device."""
    own = torch.tensor([len(rows)], dtype=torch.int64, device="cpu").to(rows.device)
    return [int(size) for size in all_gather_tensors(own, context).reshape(-1).tolist()]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, context: ProcessContext, sizes: Sequence[int]) -> Tensor:
        ctx.context, ctx.sizes = context, list(sizes)
        padded = rows.new_zeros((max(*sizes, 1), *rows.shape[1:]))  # collectives need equal shapes
        padded[: len(rows)] = rows
        everything = all_gather_tensors(padded, context)
        return torch.cat([part[:size] for part, size in zip(everything, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = all_reduce_sum(gradients[0].contiguous(), ctx.context)
        start = sum(ctx.sizes[: ctx.context.rank])
        return total[start : start + ctx.sizes[ctx.context.rank]], None, None
