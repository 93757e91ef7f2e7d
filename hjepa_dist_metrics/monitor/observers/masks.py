"""The masks of masked prediction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hjepa_dist_metrics.metrics import Masking
from hjepa_dist_metrics.metrics.validation import require_mask
from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.monitor.validation import require_one_mask_a_sample


class MaskGeometry(Observer):
    """Count what is masked, in every step; blocks are counted on the steps that log."""

    takes = ("mask",)
    also = ("samples", "context_mask", "target_mask")
    family = None

    def observe(
        self,
        mask: Tensor,
        samples: Any,
        context_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> None:
        """Add masks, bool [B, N] or [B, rows, columns], True = masked, of `samples` samples at most.

        `context_mask` marks the patches that the context encoder is given, where these are not simply the
        rest, and `target_mask` those that are predicted, where these are not simply the masked ones.
        """
        require_mask("mask", mask, grid=True)
        require_one_mask_a_sample(mask, samples)
        grid = (mask.shape[1], mask.shape[2]) if mask.ndim == 3 else None
        flat = mask.reshape(len(mask), -1)
        masking = self.scope.metric("masking", Masking, lambda: Masking(flat.shape[1], grid))
        masking.update(
            flat,
            context=_flat("context_mask", context_mask),
            target=_flat("target_mask", target_mask),
            count_blocks=self.scope.is_due("scalars"),
        )


def _flat(name: str, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    require_mask(name, mask, grid=True)
    return mask.reshape(len(mask), -1)
