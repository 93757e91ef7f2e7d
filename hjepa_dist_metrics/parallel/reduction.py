"""Put together what ranks hold of one model: sums over shards, values out of addends.

These run on the training's own groups and devices, in the training thread, in the same order on every rank:
the order in which the model's parameters name the groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from hjepa_dist_metrics.parallel.collectives import all_reduce_sum
from hjepa_dist_metrics.parallel.context import ProcessContext
from hjepa_dist_metrics.parallel.sharding.placement import Layout
from hjepa_dist_metrics.parallel.sharding.square_ranges import root, square_ranges

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sum_over_shards(block: Tensor, shards: Sequence[Sequence[ProcessGroup]]) -> Tensor:
    """Add up the columns of `block` [..., n] over the ranks that share each column's tensor.

    `shards[i]` are the groups over which column i is spread. One all_reduce a group, for any n.
    """
    return _reduce_columns(block, shards, dist.ReduceOp.SUM)


def norm_over_shards(norms: Tensor, shards: Sequence[Sequence[ProcessGroup]]) -> Tensor:
    """Return the norm of each column of `norms`, float64 [..., n], over the ranks that share its tensor."""
    return root(sum_over_shards(square_ranges(norms), shards)) if any(shards) else norms


def moments_over_shards(
    counts: Tensor, sums: Tensor, spreads: Tensor, shards: Sequence[Sequence[ProcessGroup]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, sum and spread about the common mean, float64 [n] each, over each column's ranks.

    Two all_reduces a group; none where nothing is shared.
    """
    if not any(shards):
        return counts, sums, spreads
    count, total = sum_over_shards(torch.stack([counts, sums]), shards)
    apart = counts.sqrt() * (sums / counts.clamp(min=1) - total / count.clamp(min=1)).abs()
    apart = torch.where(torch.isfinite(apart), apart, torch.zeros_like(apart))
    return count, total, norm_over_shards(torch.hypot(spreads, apart), shards)


def max_over_shards(block: Tensor, shards: Sequence[Sequence[ProcessGroup]]) -> Tensor:
    """Take the largest of each column of `block` [..., n] over the ranks that share its tensor."""
    return _reduce_columns(block, shards, dist.ReduceOp.MAX)


def _reduce_columns(block: Tensor, shards: Sequence[Sequence[ProcessGroup]], operation: Any) -> Tensor:
    if not any(shards):
        return block
    columns = list(block.unbind(-1))  # not by an index tensor: building one on CUDA waits for the device
    for group, members in _columns_by_group(shards):
        part = torch.stack([columns[c] for c in members], dim=-1)
        dist.all_reduce(part, op=operation, group=group)
        for c, reduced in zip(members, part.unbind(-1), strict=True):
            columns[c] = reduced
    return torch.stack(columns, dim=-1)


def _columns_by_group(
    shards: Sequence[Sequence[ProcessGroup]],
) -> list[tuple[ProcessGroup, list[int]]]:
    found: dict[ProcessGroup, list[int]] = {}
    for column, groups in enumerate(shards):
        for group in groups:
            found.setdefault(group, []).append(column)
    return list(found.items())


def resolve_partial(pieces: Sequence[tuple[Tensor, Layout]]) -> list[Tensor]:
    """Return the pieces with addends added up over their ranks: sequence-parallel gradients, for instance.

    All pieces of one group, dtype and device travel in one all_reduce; pieces without addends stay as they
    are, and nothing communicates where there are none.
    """
    resolved = [piece for piece, _ in pieces]
    fused: dict[tuple[ProcessGroup, str, torch.dtype, torch.device], list[int]] = {}
    for index, (piece, layout) in enumerate(pieces):
        for group, operation in layout.partial:
            fused.setdefault((group, operation, piece.dtype, piece.device), []).append(index)
    for (group, operation, _, _), members in fused.items():
        flat = torch.cat([resolved[i].reshape(-1) for i in members])
        dist.all_reduce(flat, op=dist.ReduceOp.SUM, group=group)
        if operation == "avg":
            flat /= dist.get_world_size(group)
        parts = flat.split_with_sizes([resolved[i].numel() for i in members])
        for i, part in zip(members, parts, strict=True):
            resolved[i] = part.view(resolved[i].shape)
    return resolved


def any_rank(flag: Tensor, context: ProcessContext) -> bool:
    """Return whether a 0-d flag is set on any rank of the job. Waits for the device."""
    return bool(all_reduce_sum(flag.to(torch.float32).reshape(1), context).item())
