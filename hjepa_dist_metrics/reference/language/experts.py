"""A mixture of experts: each token goes to one of them, wherever its rank is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_dist_metrics import ProcessContext, gather_rows
from hjepa_dist_metrics.parallel.collectives import all_gather_tensors, all_reduce_sum


class Expert(nn.Module):
    """Two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [N, width]."""
        result: Tensor = self.down(F.gelu(self.up(tokens)))
        return result


class Mixture(nn.Module):
    """Send each token to the expert that the router prefers, scaled by the router's probability.

    This rank holds the experts `held`, named by their numbers. The tokens of all ranks of `context` are
    gathered, each expert does its own, and every rank gets back what its tokens became.
    """

    def __init__(self, width: int, experts: int, held: Sequence[int], context: ProcessContext) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleDict({str(number): Expert(width) for number in held})
        self.context = context
        # The router's scores of the passes since the last `take_logits`.
        self._logits: list[Tensor] = []

    def take_logits(self, passes: int) -> Tensor:
        """Return the router's scores [tokens, experts] of the newest passes, and forget all."""
        logits, self._logits = self._logits[-passes:], []
        return torch.cat(logits)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., width]; every rank has as many tokens."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        logits = self.router(flat)
        self._logits.append(logits.detach())
        gate, chosen = torch.softmax(logits, dim=-1).max(dim=-1)
        ranks = self.context.world_size
        everything = gather_rows(flat, self.context, [len(flat)] * ranks)
        choices = all_gather_tensors(chosen, self.context).reshape(-1)
        result = torch.zeros_like(everything)
        for number, expert in self.experts.items():
            mine = (choices == int(number)).nonzero()[:, 0]
            result = result.index_add(0, mine, expert(everything.index_select(0, mine)))
        if ranks > 1:
            result = _OwnShare.apply(result, self.context)  # type: ignore[no-untyped-call]
        return (gate[:, None] * result).reshape(tokens.shape)


class _OwnShare(torch.autograd.Function):
    """Add up the ranks' rows and return this rank's share of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, context: ProcessContext) -> Tensor:
        ctx.context = context
        share: Tensor = all_reduce_sum(rows, context).chunk(context.world_size)[context.rank]
        return share

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return all_gather_tensors(gradients[0], ctx.context).flatten(0, 1), None
