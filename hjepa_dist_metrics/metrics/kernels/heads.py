"""Statistics of attention heads from queries and keys, or from scores, in blocks of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa_dist_metrics.states import HeadSums

POSITIONS = 256  # keys that are told apart as sinks; those after them share one place
_BLOCK_ELEMENTS = 1 << 21
_NOTHING = float("-inf")


@dataclass(frozen=True)
class Scores:
    """Hold attention scores to be: `of(samples, queries)` gives a block [b, heads, q, keys].

    Blocks are float32, or float64 of float64; keys that a query may not see are minus infinity.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    device: torch.device
    of: Callable[[slice, slice], Tensor]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Yield samples and queries of blocks; all blocks of some samples follow each other."""
        row = max(1, self.heads * self.keys)
        queries = max(1, min(self.queries, _BLOCK_ELEMENTS // row))
        samples = max(1, min(self.batch, _BLOCK_ELEMENTS // (row * queries)))
        for first in range(0, self.batch, samples):
            for start in range(0, self.queries, queries):
                yield slice(first, first + samples), slice(start, start + queries)


def scores_of(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Scores:
    """Return the scores q k^T scale + mask of query [..., heads, N, d] and key [..., heads or fewer, M, d].

    The arguments are those of `scaled_dot_product_attention`; fewer key heads are shared by groups of query
    heads. Query and key of three dimensions have one head.
    """
    query, key = query.detach(), key.detach()
    if query.ndim == 3:  # one head
        query, key = query[:, None], key[:, None]
        mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
    (heads, queries, width), keys = query.shape[-3:], key.shape[-2]
    own = query.reshape(-1, heads, queries, width)
    other = key.expand(*query.shape[:-3], *key.shape[-3:]).reshape(-1, *key.shape[-3:])
    factor, exact = width**-0.5 if scale is None else scale, _exact(query, key)
    whole = None if mask is None else mask.detach().expand(*query.shape[:-1], keys)
    whole = None if whole is None else whole.reshape(-1, heads, queries, keys)

    def block(samples: slice, rows: slice) -> Tensor:
        theirs = other[samples].to(exact)
        if theirs.shape[1] != heads:
            theirs = theirs.repeat_interleave(heads // theirs.shape[1], dim=1)
        scores = _product(own[samples, :, rows].to(exact) * factor, theirs)
        if causal:
            places = torch.arange(queries, device=scores.device)[rows, None]
            hidden = torch.arange(keys, device=scores.device) > places
            scores = scores.masked_fill(hidden, _NOTHING)
        if whole is None:
            return scores
        part = whole[samples, :, rows]
        if part.dtype == torch.bool:
            return scores.masked_fill(~part, _NOTHING)
        return _without_hidden(scores + part.to(exact), part)

    return Scores(len(own), heads, queries, keys, query.device, block)


def _without_hidden(scores: Tensor, masked: Tensor) -> Tensor:
    """Hide the keys where `masked` has about the smallest number of its type, as masks of finite size do."""
    return scores.masked_fill(masked < 0.5 * torch.finfo(masked.dtype).min, _NOTHING)


def _exact(*tensors: Tensor) -> torch.dtype:
    """Return float32, or float64 where a tensor is of that."""
    found = {tensor.dtype for tensor in tensors}
    return torch.float64 if torch.float64 in found else torch.float32


def _product(query: Tensor, key: Tensor) -> Tensor:
    """Return q k^T with TF32 off."""
    if query.device.type != "cuda":
        return query @ key.transpose(-2, -1)
    precision = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return query @ key.transpose(-2, -1)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = precision


def ready_scores(scores: Tensor, heads: int) -> Scores:
    """Return scores [..., heads, N, M] that a model has computed itself; [batch * heads, N, M] too."""
    queries, keys = scores.shape[-2:]
    whole, exact = scores.detach().reshape(-1, heads, queries, keys), _exact(scores)

    def block(samples: slice, rows: slice) -> Tensor:
        part = whole[samples, :, rows]
        return _without_hidden(part.to(exact), part)

    return Scores(len(whole), heads, queries, keys, scores.device, block)


def head_statistics(scores: Scores) -> tuple[Tensor, Tensor]:
    """Return the block of `HeadSums` [7, heads], and how often each key took the largest share of a sample.

    Those counts are float64 [positions * heads], the heads of a key next to each other; keys from number 256
    on are counted together.
    """
    device, positions = scores.device, min(scores.keys, POSITIONS + 1)
    sums = HeadSums((scores.heads,)).data.to(device, non_blocking=True)
    counts = torch.zeros(positions, scores.heads, dtype=torch.float64, device=device)
    shares = rows = torch.zeros((), device=device)
    for samples, queries in scores.blocks():
        block, column, seen = _of_rows(scores.of(samples, queries))
        sums = HeadSums.merge_rows(sums, block)
        begins = queries.start == 0
        shares, rows = (column, seen) if begins else (shares + column, rows + seen)
        if queries.stop >= scores.queries:
            sunk, counted = _of_samples(shares, rows, positions)
            sums, counts = HeadSums.merge_rows(sums, sunk), counts + counted
    return sums, counts.reshape(-1)


def _of_rows(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums [7, heads], and by sample sums of weights [b, heads, keys] and queries [b, heads]."""
    top = scores.amax(dim=-1, keepdim=True)
    seen = top[..., 0] != _NOTHING  # a query without any key is none
    # Where a key is hidden or e to its score as good as 0, a weight of 1e-26: that of minus infinity is slow.
    below = (scores - torch.where(seen[..., None], top, 0.0)).clamp(min=-60.0)
    weights = below.exp()
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / total * seen[..., None]
    entropy = total[..., 0].log() - (weights * below).sum(dim=-1)
    entropy = torch.where(seen, entropy.to(torch.float64), 0.0)
    # A comparison that is written as numbers: sums of bools cost ten times as much.
    keys = torch.ne(scores, _NOTHING, out=torch.empty_like(scores)).sum(dim=-1)
    several = keys > 1
    relative = torch.where(several, entropy / keys.clamp(min=2).to(torch.float64).log(), 0.0)
    zeros = torch.zeros_like(entropy)
    parts = [seen.to(torch.float64), entropy, several.to(torch.float64), relative, zeros, zeros]
    sums = torch.stack([part.sum(dim=(0, 2)) for part in parts])
    logit = top[..., 0].to(torch.float64).amax(dim=(0, 2))
    return torch.cat([sums, logit[None]]), weights.sum(dim=-2), seen.to(weights.dtype).sum(dim=-1)


def _of_samples(shares: Tensor, rows: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Return each head's samples and largest mean shares of one key [7, heads], and those keys' counts."""
    counted = rows > 0
    mean = shares / rows.clamp(min=1)[..., None]
    share, key = mean.max(dim=-1)
    block = HeadSums((share.shape[1],)).data.to(share.device, non_blocking=True)
    block[4] = counted.sum(dim=0)
    block[5] = torch.where(counted, share, 0.0).to(torch.float64).sum(dim=0)
    place = key.clamp(max=positions - 1)
    counts = torch.zeros(positions, share.shape[1], dtype=torch.float64, device=share.device)
    return block, counts.scatter_add_(0, place, counted.to(torch.float64))
