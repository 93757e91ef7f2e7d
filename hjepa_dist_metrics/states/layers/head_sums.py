"""What is kept of attention heads: sums over queries and samples, and the largest logit."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa_dist_metrics.states.base import Numeric
from hjepa_dist_metrics.states.row_state import Block, RowState, namespace

# Queries with a key, the sum of their entropies, queries with several keys, the sum of their entropies over
# the largest possible ones, samples, the sum of the samples' largest shares of one key, the largest logit.
QUERIES, ENTROPY, SPREAD_QUERIES, RELATIVE_ENTROPY, SAMPLES, SINK, LOGIT = range(7)


class HeadSums(RowState):
    """Keep sums of each attention head, a column; the last field is a maximum."""

    fields = 7

    @classmethod
    def _blank(cls, size: int) -> Tensor:
        data = torch.zeros((cls.fields, size), dtype=torch.float64, device="cpu")
        data[LOGIT] = float("-inf")
        return data

    def update(self, values: Numeric) -> None:
        """Merge a block [fields, *shape] of a batch."""
        batch = self._batch(values)
        self.data = self.merge_rows(self.data, batch)

    @classmethod
    def merge_rows(cls, lower: Block, upper: Block) -> Block:
        """Add the sums, take the larger logit."""
        xp = namespace(lower)
        merged = lower + upper
        merged[LOGIT] = xp.maximum(lower[LOGIT], upper[LOGIT])
        return merged
