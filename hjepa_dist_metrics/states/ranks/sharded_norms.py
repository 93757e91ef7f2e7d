"""Norms, and sums with their spread, of a thing that lies over ranks: no scale and no offset costs digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric, as_tensor
from hjepa_dist_metrics.states.ranks.sharded import ShardedSum
from hjepa_dist_metrics.states.row_state import Block, Signed, namespace


class ShardedNorm(ShardedSum):
    """Put the norms of the ranks' shards together: `.value`, 0 without any."""

    @classmethod
    def _together(cls, lower: Block, upper: Block) -> Block:
        return namespace(lower).hypot(lower, upper)


class ShardedMoments(ShardedSum):
    """Put the ranks' shards together: `.value` is their count, `.sum` their sum, `.spread` that of all.

    The spread of n numbers is the norm of their deviations from their mean, sqrt(sum (x - m)^2).
    """

    fields = 8

    @property
    def sum(self) -> Any:
        """Return the sum over all shards."""
        return self._field(3)

    @property
    def spread(self) -> Any:
        """Return the norm of the deviations from the mean over all shards."""
        return self._field(4)

    def update_moments(self, counts: Numeric, sums: Numeric, spreads: Numeric, roles: Tensor) -> None:
        """Replace what this rank holds: counts, sums and spreads [*shape]; `roles` as in `update`."""
        self.update(counts, roles)
        held = self.data[1] + self.data[2] > 0
        more = torch.stack([as_tensor(v, held.device).to(torch.float64).reshape(-1) for v in (sums, spreads)])
        more = torch.where(held, more, torch.zeros_like(more))
        self.data = torch.cat([self.data[:3], more, self.data[3:]])

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Add counts and sums; spreads about the common mean (Chan et al., 1983)."""
        xp = namespace(lower)
        merged = super().merge_rows(lower, upper)
        both = (lower[1] > 0) & (upper[1] > 0) & ~Signed.later(lower, upper)
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities: a finding, and no error
            n, m = lower[0].clip(min=1), upper[0].clip(min=1)
            apart = abs(lower[3] / n - upper[3] / m) * (lower[0] / (n + m) * upper[0]) ** 0.5
            apart = xp.where(xp.isfinite(apart), apart, xp.zeros_like(apart))
            spread = xp.hypot(xp.hypot(lower[4], upper[4]), apart)
        merged[3] = xp.where(both, lower[3] + upper[3], merged[3])
        merged[4] = xp.where(both, spread, merged[4])
        return merged
