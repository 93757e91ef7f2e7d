"""How noisy the gradient is, from its norm at two batch sizes (McCandlish et al., 1812.06162)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.kernels.norms import square_sum
from hjepa_dist_metrics.metrics.optimization.layouts.group_norms import GroupNorms
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.parallel import ParallelLayout
from hjepa_dist_metrics.parallel.reduction import sum_over_shards
from hjepa_dist_metrics.parallel.sharding.gradient_hooks import CommHook, LocalGradients, watch_gradients
from hjepa_dist_metrics.states.base import moved
from hjepa_dist_metrics.states.ranks.rank_table import RankTable


class GradientNoise(DistributedMetric):
    """Estimate the gradient's signal |G|^2 and the variance S of one sample's gradient.

    E |G_b|^2 = |G|^2 + S / b for the mean gradient of b samples: two batch sizes give both unknowns. Tags:
    `gradients/noise_scale`, S / |G|^2 in samples, and `gradients/snr`, |G|^2 / S. Both norms are averaged
    over measured steps with weight `decay` for the past, each apart, before they are divided. Without a
    positive signal or noise, the sampling error being larger than either, nothing is written.

    On many ranks, with DDP or FSDP2, the small batch is a rank's: `noise = GradientNoise(model)`, then
    `with noise.measuring(samples): loss.backward()` on the steps to measure (with DDP's own hook given here
    as `hook`). In one process the small batch is the first micro-batch: `noise.small(samples, scale)` after
    its backward, where its loss was multiplied by 1 / `scale`, and `noise.large(samples)` before the step.

    >>> noise = GradientNoise(nn.Linear(2, 1))
    >>> noise.update(sq_norm_small_batch=3.0, small_batch=8, sq_norm_large_batch=2.0, large_batch=16)
    >>> noise.compute()["gradients/noise_scale"]
    16.0
    """

    persistent = True

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.95,
        *,
        hook: CommHook | None = None,
        hook_state: Any = None,
        layout: ParallelLayout | None = None,
    ) -> None:
        if layout is not None and (layout.expert or layout.shared):
            raise ConfigError(
                "gradient noise compares two batch sizes, and experts or shared parameters average over "
                "other ranks than the rest: leave logging.gradients.noise off"
            )
        if not 0 <= decay < 1:
            raise ConfigError(f"decay must be at least 0 and below 1, got {decay!r}")
        self.decay = decay
        self.layout = layout
        self.watched = TrackedParameters(model)
        self._norms = GroupNorms(self.watched, layout)
        self._model, self._hook, self._hook_state = model, hook, hook_state
        self._local: LocalGradients | None = None
        self.ranks = 1  # over which gradients are averaged
        self._pending: tuple[Tensor, float] | None = None
        self.add_state("smoothed", RankTable(4))  # |G_b|^2, 1 / b, |G_B|^2, 1 / B
        if hook is not None:
            self.listen()

    def listen(self) -> LocalGradients:
        """Hook the model's reduction now, and not at the first measurement; return what it will see.

        ConfigError for a model that is neither in DistributedDataParallel nor `fully_shard`, or not wholly.
        """
        if self._local is None:
            local = LocalGradients(lambda gradient: square_sum([gradient], gradient.device))
            self.ranks = watch_gradients(self._model, local, self._hook, self._hook_state)
            self._local = local
        return self._local

    @contextmanager
    def measuring(self, samples: float) -> Iterator[None]:
        """Measure the backward in the body, of `samples` samples on this rank, the same on every rank."""
        local = self.listen()
        with local.looking():
            yield
        total = self.taken(local)
        if total is None:
            raise ConfigError(
                "no gradient was reduced: the backward must run inside, with gradient synchronisation on"
            )
        self._pending = (total, samples)
        self.large(samples * self.ranks)

    def taken(self, local: LocalGradients) -> Tensor | None:
        """Return the squared norm of the gradient of this rank's samples, over all pipeline stages.

        None where nothing was reduced. A collective call where there are stages.
        """
        total = local.take()
        if total is None or self.layout is None or self.layout.pipeline is None:
            return total
        stages = self.layout.grid.groups[self.layout.pipeline]
        return sum_over_shards(total[None], [(stages,)])[0]

    def small(self, samples: float, scale: float = 1.0) -> None:
        """Read the gradient of the first micro-batch, of `samples` samples, after its backward.

        Its loss was the mean over those samples, divided by `scale` (the number of micro-batches, usually).
        """
        self._pending = (self.squares() * scale * scale, samples)

    def large(self, samples: float) -> None:
        """Read the gradient of the whole batch, of `samples` samples, before the optimizer's step."""
        if self._pending is None:
            raise ConfigError("there is no small batch to compare with: call small() or use measuring()")
        (small, count), self._pending = self._pending, None
        self.update(small, count, self.squares(), samples)

    def squares(self) -> Tensor:
        """Return the squared norm of the gradient as it is, 0-d. A collective call where it is sharded."""
        self.watched.require_unchanged()
        return self._norms().square().sum()

    def update(
        self,
        sq_norm_small_batch: Tensor | float,
        small_batch: float,
        sq_norm_large_batch: Tensor | float,
        large_batch: float,
    ) -> None:
        """Add one measurement: squared norms of the mean gradients of a small and a large batch."""
        if not 0 < small_batch < large_batch:
            raise ConfigError(
                f"the small batch must be smaller than the large one, got {small_batch} and {large_batch}"
            )
        large = as_number("sq_norm_large_batch", sq_norm_large_batch)
        small = moved(as_number("sq_norm_small_batch", sq_norm_small_batch), large.device)
        sizes = [torch.full_like(large, 1.0 / size) for size in (small_batch, large_batch)]
        row = torch.stack([small.reshape(()), sizes[0], large.reshape(()), sizes[1]])
        # a step whose norm is not finite would spoil the mean for good
        finite = torch.isfinite(row).all()
        past = moved(self.smoothed.row, row.device)
        known = torch.where(past.isnan(), row, past)
        mixed = self.decay * known + (1 - self.decay) * row
        self.smoothed.update(torch.where(finite, mixed, past))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first measurement."""
        table = states["smoothed"].table
        table = table[~np.isnan(table).any(axis=1)]
        if not len(table):
            return {}
        signal, noise = signal_and_noise(*table.mean(axis=0).tolist())
        if signal <= 0 or noise <= 0:
            return {}
        return {"gradients/noise_scale": noise / signal, "gradients/snr": signal / noise}


def signal_and_noise(
    sq_norm_small_batch: float,
    inverse_small_batch: float,
    sq_norm_large_batch: float,
    inverse_large_batch: float,
) -> tuple[float, float]:
    """Return |G|^2 and S from mean squared norms and inverse sizes of two batches.

    S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B) and |G|^2 = |G_B|^2 - S / B, which is
    (B |G_B|^2 - b |G_b|^2) / (B - b).
    """
    noise = (sq_norm_small_batch - sq_norm_large_batch) / (inverse_small_batch - inverse_large_batch)
    return sq_norm_large_batch - noise * inverse_large_batch, noise
