"""The loss over an epoch: mean and scatter over its steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.states import Sum
from hjepa_dist_metrics.states.scales import standard_deviation


class EpochLoss(DistributedMetric):
    """Report `{group}/epoch_mean` and `{group}/epoch_std` over an epoch's steps.

    Each step counts with the loss of the global batch, put together from the ranks' means and counts: one
    rank's batches are smaller and scatter more. `steps` is the number of steps of an epoch, which is also
    what a sync sends, twice.

    >>> loss = EpochLoss(steps=2)
    >>> loss.update(1.0, count=32, step=0)
    >>> loss.update(4.0, count=16, step=1)  # a smaller last batch
    >>> loss.compute()
    {'loss/train/epoch_mean': 2.5, 'loss/train/epoch_std': 1.5}
    """

    def __init__(self, steps: int, group: str = "loss/train") -> None:
        if steps < 1:
            raise ConfigError(f"an epoch has at least one step, got steps={steps}")
        self.steps, self.group = steps, group
        self.add_state("sums", Sum((2, steps)))

    def update(self, loss: Tensor | float, count: int, step: int) -> None:
        """Add a mean over `count` samples of this rank to a step of the epoch, from 0 on."""
        if not 0 <= step < self.steps:
            raise ConfigError(f"the epoch has the steps 0 to {self.steps - 1}, got step {step}")
        if count == 0:
            return
        value = as_number("loss", loss)
        block = torch.zeros((2, self.steps), dtype=torch.float64, device=value.device)
        block[0, step], block[1, step] = value * count, count
        self.sums.update(block)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return mean and standard deviation over the steps that were taken; {} before the first."""
        sums, counts = states["sums"].value
        taken = counts > 0
        if not taken.any():
            return {}
        losses = sums[taken] / counts[taken]
        return {
            f"{self.group}/epoch_mean": losses.mean(),
            f"{self.group}/epoch_std": standard_deviation(losses),
        }


_loss = partial(Entry, dashboard="multimodal_training")

ENTRIES = (
    _loss(
        "loss/train/{name}",
        "training loss {name}",
        "One term of the training loss, mean over all samples of all ranks: total, of two modalities, or of "
        "the global embedding with each modality (global_modal).",
        healthy="falls steadily; a plateau from the start is a pair that does not learn",
    ),
    _loss(
        "loss/train/epoch_mean",
        "training loss of the epoch, mean",
        "Mean of the total loss over the epoch's steps, each that of the global batch.",
        healthy="falls from epoch to epoch",
    ),
    _loss(
        "loss/train/epoch_std",
        "training loss of the epoch, scatter",
        "Standard deviation of the total loss over the epoch's steps, each that of the global batch.",
        healthy="small against the mean once the first epoch is over",
        deviation="over the losses of the whole job's batches; one rank's batches scatter more",
    ),
    _loss(
        "loss/val/{name}",
        "validation loss {name}",
        "The same term on held-out samples.",
        healthy="falls with loss/train; rising while that falls is overfitting",
    ),
)
