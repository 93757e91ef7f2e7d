"""A layer's output as rows of units, also where it is a DTensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.parallel.sharding.placement import is_dtensor, local_piece
from hjepa_dist_metrics.states import UnitRanges


@dataclass(frozen=True)
class Units:
    """Hold rows [n, units] of this rank: `units` from number `first` on, of `total`."""

    rows: Tensor
    first: int
    total: int

    def placed(self, block: Tensor) -> Tensor:
        """Return a block [fields, units] with the units at their places among all, the others blank."""
        if block.shape[1] == self.total:
            return block
        whole = UnitRanges((self.total,)).data.to(block.device, non_blocking=True)
        whole[:, self.first : self.first + block.shape[1]] = block
        return whole


def units_of(output: Tensor, dimension: int) -> Units | None:
    """Return the rows of an output that count on this rank, None where others have the same or it has none.

    Of a DTensor those of its local piece, once. ConfigError where it is a sum that is not added up yet.
    """
    dimension %= max(output.ndim, 1)
    first, total = 0, output.shape[dimension] if output.ndim else 1
    piece = output.detach()
    if is_dtensor(output):
        share = _own_share(output, dimension)
        if share is None:
            return None
        piece, first = local_piece(piece), share
    if piece.numel() == 0:
        return None
    rows = piece.reshape(1, 1) if piece.ndim == 0 else piece.movedim(dimension, -1)
    return Units(rows.reshape(-1, rows.shape[-1]), first, total)


def _own_share(output: Any, dimension: int) -> int | None:
    """Return the first unit of a DTensor's local piece; None where this rank's is a copy."""
    first, size = 0, output.shape[dimension]
    for number, placement in enumerate(output.placements):
        place, ranks = output.device_mesh.get_local_rank(number), output.device_mesh.size(number)
        if placement.is_replicate():
            if place:
                return None
        elif placement.is_partial():
            raise ConfigError(
                f"an output is a DTensor placed {tuple(output.placements)}, whose pieces are not added up "
                "yet: choose a module after the one that adds them up"
            )
        elif placement.dim % output.ndim == dimension:  # cut as torch.chunk does
            size = -(-size // ranks)
            first += place * size
    return first
