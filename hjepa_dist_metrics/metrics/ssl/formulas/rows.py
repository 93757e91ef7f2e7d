"""Rows of features as their statistics need them: in float64, of unit length, pooled to images.

What float32 or half-precision rows hold is exact in float64, and its squares neither overflow nor vanish
there. Rows of float64 are divided by their largest element before they are squared.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hjepa_dist_metrics.states.scales import unit_scale

# Elements of a block, of which a float64 copy is made.
_ELEMENTS = {"cpu": 1 << 20}
_ELEMENTS_ON_DEVICE = 1 << 22

Block = tuple[Tensor, Tensor | None, Tensor | None]


def feature_blocks(features: Tensor, valid: Tensor | None, ids: Tensor | None) -> Iterator[Block]:
    """Yield features [N, D] or [B, N, D] in blocks of rows or of whole images, with their masks and ids."""
    size = max(1, features[:1].numel())
    step = max(1, _ELEMENTS.get(features.device.type, _ELEMENTS_ON_DEVICE) // size)
    for start in range(0, len(features), step):
        piece = slice(start, start + step)
        mask = None if valid is None else valid[piece]
        yield features[piece], mask, None if ids is None else ids[piece]


def row_norms(rows: Tensor) -> Tensor:
    """Return |x| of rows [..., D], float64 [...], of any size that their type can hold."""
    norm: Tensor
    if rows.dtype != torch.float64:
        norm = torch.linalg.vector_norm(rows.to(torch.float64), dim=-1)
        return norm
    scale = unit_scale(rows)
    norm = torch.linalg.vector_norm(rows / scale, dim=-1)
    return norm * scale[..., 0]


def unit_rows(rows: Tensor) -> Tensor:
    """Return x / |x| in float64; rows of zeros stay zero."""
    x = rows.detach()
    x = x / unit_scale(x) if x.dtype == torch.float64 else x.to(torch.float64)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of unit rows [..., D], float64 [...], between -1 and 1; 0 with a row of zeros."""
    return (one * other).sum(dim=-1).clamp(-1.0, 1.0)


def pool(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the mean of each image's valid tokens, float64 [B, D], and which have any (None: all)."""
    if valid is None and tokens.shape[1]:
        parts = [block.to(torch.float64).mean(dim=1) for block, _, _ in feature_blocks(tokens, None, None)]
        return torch.cat(parts) if parts else tokens.new_zeros(
            (0, tokens.shape[-1]), dtype=torch.float64
        ), None
    if valid is None:  # images without any token: nothing to take the mean of
        valid = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    count = valid.sum(dim=1)
    parts = [_valid_sum(block, mask) for block, mask, _ in feature_blocks(tokens, valid, None)]
    total = torch.cat(parts) if parts else tokens.new_zeros((0, tokens.shape[-1]), dtype=torch.float64)
    return total / count.clamp(min=1)[:, None], count > 0


def _valid_sum(tokens: Tensor, valid: Tensor | None) -> Tensor:
    x = tokens.to(torch.float64)
    return (x if valid is None else torch.where(valid[..., None], x, 0.0)).sum(dim=1)
