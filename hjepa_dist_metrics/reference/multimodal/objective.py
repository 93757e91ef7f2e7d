"""Contrastive losses over the global batch: every sample of every rank is a negative of every other.

A rank differentiates world_size times its own samples' share of the loss over all samples. The embeddings
of the other ranks are gathered with gradients, so the mean of gradients that DistributedDataParallel takes is
the gradient of the loss that one process would compute on the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_dist_metrics import ProcessContext
from hjepa_dist_metrics.metrics.multimodal.modalities import matched_rows
from hjepa_dist_metrics.parallel import gather_rows, row_sizes
from hjepa_dist_metrics.reference.multimodal.modality import GLOBAL

TOTAL, GLOBAL_MODAL = "total", "global_modal"


@dataclass(frozen=True)
class ContrastiveResult:
    """Hold one step's loss."""

    loss: Tensor
    """Scalar to differentiate: this rank's part, scaled for DDP's mean of gradients."""
    losses: dict[str, Tensor]
    """Detached: `total`, `{a}_{b}` for each pair and `global_modal`. Their mean over ranks, weighted by
    `count`, is the loss of the global batch."""
    count: int
    """Samples of this rank."""


class ContrastiveObjective:
    """Pull the embeddings of one sample together and push those of different samples apart.

    Between two modalities it is the symmetric InfoNCE (Radford et al., 2103.00020); `global_modal` is the
    mean of that between the global embedding and each modality. The total is the mean over pairs times
    `pair_weight` plus `global_modal` times `global_weight`.
    """

    def __init__(
        self,
        names: Sequence[str],
        context: ProcessContext,
        pair_weight: float = 1.0,
        global_weight: float = 0.5,
    ) -> None:
        self.names, self.context = list(names), context
        self.weights = (pair_weight, global_weight)

    def __call__(
        self, embeddings: Mapping[str, Tensor], scale: Tensor, sizes: Sequence[int] | None = None
    ) -> ContrastiveResult:
        """Return the loss of embeddings [B_r, D] by name, `global` among them; a collective call.

        `scale` multiplies the cosines. `sizes` are the ranks' B_r where they are known.
        """
        with torch.autocast(scale.device.type, enabled=False):
            return self._losses(embeddings, scale.float(), sizes)

    def _losses(
        self, embeddings: Mapping[str, Tensor], scale: Tensor, sizes: Sequence[int] | None
    ) -> ContrastiveResult:
        rows = matched_rows(embeddings, [*self.names, GLOBAL], same_width=True)
        own = F.normalize(torch.stack([tensor.float() for tensor in rows], dim=1), dim=-1)
        held = row_sizes(own, self.context) if sizes is None else sizes
        everything = gather_rows(own, self.context, held)
        start = sum(held[: self.context.rank])
        last = len(self.names)

        def share(a: int, b: int) -> Tensor:
            return _share(own, everything, scale, a, b, start)

        terms = {f"{self.names[a]}_{self.names[b]}": share(a, b) for a, b in combinations(range(last), 2)}
        mean = torch.stack(list(terms.values())).mean()
        terms[GLOBAL_MODAL] = torch.stack([share(last, place) for place in range(last)]).mean()
        total = self.weights[0] * mean + self.weights[1] * terms[GLOBAL_MODAL]
        to_mean = len(everything) / max(len(own), 1)
        losses = {name: term.detach() * to_mean for name, term in {TOTAL: total, **terms}.items()}
        return ContrastiveResult(total * self.context.world_size, losses, len(own))


def _share(own: Tensor, everything: Tensor, scale: Tensor, a: int, b: int, start: int) -> Tensor:
    """Return this rank's part of the symmetric loss between places a and b: its rows' sum over all rows."""
    target = torch.arange(start, start + len(own), device=own.device)
    forth = F.cross_entropy(scale * own[:, a] @ everything[:, b].T, target, reduction="sum")
    back = F.cross_entropy(scale * own[:, b] @ everything[:, a].T, target, reduction="sum")
    return (forth + back) / (2 * max(len(everything), 1))
