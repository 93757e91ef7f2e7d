"""How well augmented views of a sample agree, and how far samples stand apart beyond that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import NOTHING
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.ssl.formulas.rows import feature_blocks, pool, unit_rows
from hjepa_dist_metrics.metrics.ssl.formulas.spectrum import discriminability
from hjepa_dist_metrics.metrics.validation import require_features
from hjepa_dist_metrics.states import ClassScatter, Moments
from hjepa_dist_metrics.states.rows import row_mask


class ViewAgreement(DistributedMetric):
    """Compare embeddings [B, V, D] of V augmented views of each of B samples, over all samples of all ranks.

    Tags under `collapse/views_`: `lidar`, LiDAR (2312.04000) with samples as classes and their views as
    members; `between_within_ratio`; `alignment`, mean |x - y|^2 of two unit views of one sample
    (2005.10242); `num_samples`, those with two views; `nonfinite`, those with a NaN or an infinity.

    >>> agreement = ViewAgreement(dim=2)
    >>> agreement.update(torch.eye(2)[:, None].expand(2, 3, 2))  # two samples, three equal views of each
    >>> values = agreement.compute()
    >>> values["collapse/views_alignment"], values["collapse/views_num_samples"]
    (0.0, 2.0)
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.add_state("views", ClassScatter(dim))
        self.add_state("distance", Moments())

    def update(self, views: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch; `valid` bool [B, V] leaves views out."""
        require_features("views", views)
        if views.ndim != 3 or views.shape[-1] != self.dim:
            raise ConfigError(f"expected views [B, V, {self.dim}], got shape {list(views.shape)}")
        x = views.detach()
        kept = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if valid is not None:
            kept = row_mask(valid, x.shape[:2], x.device)
        kept = kept & (kept.sum(dim=1, keepdim=True) > 1)
        for block, mask, _ in feature_blocks(x, kept, None):
            if mask is not None:
                self._add(block, mask)

    def _add(self, x: Tensor, kept: Tensor) -> None:
        means, has = pool(x, kept)
        self.views.update(means, has, x.to(torch.float64) - means[:, None], kept)
        unit = torch.where(kept[..., None], unit_rows(x), 0.0)
        count = kept.sum(dim=1).clamp(min=2)
        centred = unit - unit.sum(dim=1, keepdim=True) / count[:, None, None]
        squared = torch.where(kept, centred.square().sum(dim=-1), 0.0).sum(dim=1)
        # sum over pairs of |x - y|^2 = n sum |x - mean|^2, and there are n (n - 1) / 2 pairs
        self.distance.update(2.0 * squared / (count - 1), has)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the formulas to the merged moments; {} where no sample has two views."""
        views, distance = states["views"], states["distance"]
        if distance.count == 0:
            return {}
        numbers = {
            "alignment": distance.mean if distance.nonfinite == 0 else math.nan,
            "num_samples": distance.count,
            "nonfinite": distance.nonfinite,
            **discriminability(views),
        }
        return {f"collapse/views_{name}": value for name, value in numbers.items()}


_views = partial(Entry, dashboard="collapse", family="representations")

ENTRIES = (
    _views(
        "collapse/views_lidar",
        "LiDAR of augmented views",
        "exp of the entropy of the eigenvalues of Sw^-1/2 Sb Sw^-1/2, where classes are samples and members "
        "their augmented views, as in the paper. collapse/lidar has images as classes and tokens as members.",
        unit="dimensions",
        source="arXiv 2312.04000",
        healthy="high, and not falling; compares checkpoints of one run",
    ),
    _views(
        "collapse/views_between_within_ratio",
        "samples apart beyond their views",
        "Trace of the covariance of the samples' means over the trace of the scatter of views about them.",
        healthy="above 1, and rising; near 0 samples cannot be distinguished",
    ),
    _views(
        "collapse/views_alignment",
        "alignment of views",
        "Mean of |x - y|^2 over the pairs of L2-normalised views of one sample.",
        source="arXiv 2005.10242",
        healthy="falls; 0 together with uniformity 0 is collapse",
    ),
    _views(
        "collapse/views_num_samples", "samples with views", "Samples of two views or more.", unit="samples"
    ),
    _views(
        "collapse/views_nonfinite",
        "nonfinite samples of views",
        "Samples with a NaN or an infinity in a view; the other numbers are NaN then.",
        healthy="0",
        bounds=NOTHING,
    ),
)
