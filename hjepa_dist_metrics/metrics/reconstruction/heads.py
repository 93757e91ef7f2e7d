"""Models with several heads: losses, gradients and parameters of each, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.kernels.moments import moments, pooled_spread
from hjepa_dist_metrics.metrics.optimization.layouts.group_norms import Column, GroupNorms, columns_of
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import TrackedParameters
from hjepa_dist_metrics.metrics.validation import as_number
from hjepa_dist_metrics.parallel.reduction import moments_over_shards
from hjepa_dist_metrics.parallel.sharding.square_ranges import root_sum_square
from hjepa_dist_metrics.states import Replicated, Sum
from hjepa_dist_metrics.states.base import moved, to_device


class HeadLosses(DistributedMetric):
    """Average the losses of named heads over all samples of all ranks.

    Tags: `{prefix}/{name}_loss` and `{prefix}/total_loss`, the sum of loss * weight. With `breakdown`, for
    each head but the first: `{prefix}/{name}_loss_weighted`, the ratio `{prefix}/{first}_to_{name}_ratio`
    where that head has a loss, and `{above}/{name}_loss_active`, 1 where its weight is above 0, in the group
    above the prefix.

    >>> losses = HeadLosses(["rgb", "text"])
    >>> losses.update({"rgb": 2.0, "text": 1.0}, weights={"rgb": 1.0, "text": 0.5}, count=8)
    >>> values = losses.compute()
    >>> values["Train/Loss/total_loss"], values["Train/Loss/rgb_to_text_ratio"]
    (2.5, 2.0)
    """

    def __init__(self, names: Sequence[str], prefix: str = "Train/Loss", breakdown: bool = True) -> None:
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"expected heads with names of their own, got {list(names)}")
        self.names, self.prefix, self.breakdown = list(names), prefix, breakdown
        self.above = prefix.rpartition("/")[0] or prefix
        self.add_state("sums", Sum(shape=(2, len(self.names))))  # plain, weighted
        self.add_state("count", Sum())
        self.add_state("weights", Replicated(shape=(len(self.names),)))

    def update(
        self, losses: Mapping[str, Any], weights: Mapping[str, float] | None = None, count: Any = 1
    ) -> None:
        """Add mean losses over `count` samples; `weights` are those of the objective now, 1 by default.

        A head that is switched off has the weight 0 and the loss 0.
        """
        weight = dict.fromkeys(self.names, 1.0) if weights is None else weights
        for kind, given in (("losses", losses), ("weights", weight)):
            if sorted(given) != sorted(self.names):
                raise ConfigError(f"expected {kind} of the heads {self.names}, got {sorted(given)}")
        values = torch.stack([as_number(f"{name!r} of losses", losses[name]) for name in self.names])
        counted = moved(as_number("count", count), values.device)
        factors = [float(weight[name]) for name in self.names]
        both = torch.stack([values, torch.stack([v * f for v, f in zip(values, factors, strict=True)])])
        # A mean over nothing is often NaN: with a count of zero it is no finding, it is nothing.
        self.sums.update(torch.where(counted > 0, both * counted, torch.zeros_like(both)))
        self.count.update(counted)
        self.weights.update(factors)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Divide the sums by the count; {} before the first sample."""
        count = states["count"].value
        if not count > 0:
            return {}
        means, weighted = states["sums"].value / count
        tags = {f"{self.prefix}/{name}_loss": mean for name, mean in zip(self.names, means, strict=True)}
        tags[f"{self.prefix}/total_loss"] = weighted.sum()
        return tags | self._breakdown(means, weighted, states["weights"].value) if self.breakdown else tags

    def _breakdown(
        self, means: Sequence[float], weighted: Sequence[float], weights: Sequence[float]
    ) -> dict[str, Any]:
        tags: dict[str, Any] = {}
        for index, name in enumerate(self.names[1:], start=1):
            tags[f"{self.prefix}/{name}_loss_weighted"] = weighted[index]
            tags[f"{self.above}/{name}_loss_active"] = float(weights[index] > 0)
            if means[index] != 0:
                tags[f"{self.prefix}/{self.names[0]}_to_{name}_ratio"] = means[0] / means[index]
        return tags


class HeadGradients(DistributedMetric):
    """Average over steps the L2 norms of the gradients of named parts of a model.

    Tags: `{prefix}/{part}_norm`, `{prefix}/total_norm` over the whole model, and for each pair of `ratios`
    `{prefix}/{a}_to_{b}_ratio`, without a part's ending "_head", where the second norm is not 0. The norms
    are those of the whole model, also where it is sharded. Call `update` after backward and before clipping.

    >>> model = nn.ModuleDict({"rgb": nn.Linear(2, 1), "text": nn.Linear(2, 1)})
    >>> gradients = HeadGradients(model, dict(model), ratios=[("rgb", "text")])
    >>> (3 * model["rgb"](torch.ones(1, 2)) + model["text"](torch.ones(1, 2))).sum().backward()
    >>> gradients.update()
    >>> round(gradients.compute()["Train/Gradients/rgb_to_text_ratio"], 4)
    3.0
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Mapping[str, nn.Module],
        ratios: Sequence[tuple[str, str]] = (),
        prefix: str = "Train/Gradients",
    ) -> None:
        _require_parts(parts, ratios)
        self.watched = _watch(model, parts)
        self.names, self.ratios, self.prefix = list(parts), list(ratios), prefix
        self._group_norms = GroupNorms(self.watched)
        # A gradient is the same on every rank once it is reduced: norms are replicated, never summed.
        self.add_state("norms", Replicated(shape=(len(self.names) + 2,)))  # parts, total, number of steps

    def update(self) -> None:
        """Add the norms of this step's gradients. Where parameters are sharded this is a collective call."""
        self.watched.require_unchanged()
        norms = self._group_norms()
        step = torch.cat([norms[:-1], root_sum_square(norms)[None], torch.ones_like(norms[:1])])
        seen = moved(self.norms.data, step.device)
        self.norms.update(torch.where(seen[1] > 0, seen[0] + step, step))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mean norms; {} before the first step."""
        *sums, steps = states["norms"].value
        if not steps > 0:
            return {}
        norms = dict(zip([*self.names, "total"], (total / steps for total in sums), strict=True))
        tags = {f"{self.prefix}/{name}_norm": norm for name, norm in norms.items()}
        for a, b in self.ratios:
            if norms[b] != 0:
                pair = "_to_".join(part.removesuffix("_head") for part in (a, b))
                tags[f"{self.prefix}/{pair}_ratio"] = norms[a] / norms[b]
        return tags


class HeadParameters(DistributedMetric):
    """Report mean and standard deviation of the parameters of named parts of a model.

    Tags: `{prefix}/{part}_mean`, `{prefix}/{part}_std` (divided by n), of whole parameters, also where
    ranks hold shards of them. Ranks whose values differ are named in a `DesyncError`.

    >>> model = nn.ModuleDict({"rgb": nn.Linear(2, 1)})
    >>> _ = nn.init.constant_(model["rgb"].weight, 3.0), nn.init.zeros_(model["rgb"].bias)
    >>> parameters = HeadParameters(model, dict(model))
    >>> parameters.update()
    >>> parameters.compute()["Model/Params/rgb_mean"]
    2.0
    """

    def __init__(
        self, model: nn.Module, parts: Mapping[str, nn.Module], prefix: str = "Model/Params"
    ) -> None:
        _require_parts(parts)
        self.watched = _watch(model, parts)
        self.names, self.prefix = list(parts), prefix
        self._columns = [column for column in columns_of(self.watched) if column.group < len(self.names)]
        self.add_state("stats", Replicated(shape=(2, len(self.names))))  # mean, std

    def update(self) -> None:
        """Read the parameters. Where they are sharded this is a collective call."""
        self.watched.require_unchanged()
        local = torch.stack([_moments(column) for column in self._columns], dim=-1)
        shards = [column.shards for column in self._columns]
        merged = torch.stack(moments_over_shards(local[0], local[1], local[2], shards))
        by_part: list[list[Tensor]] = [[] for _ in self.names]
        for column, moments_of in zip(self._columns, merged.unbind(-1), strict=True):
            by_part[column.group].append(moments_of)
        stats = [_mean_and_std(*torch.stack(found, dim=-1).unbind()) for found in by_part]
        self.stats.update(torch.stack(stats, dim=-1))

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags of what was read last; {} before the first update."""
        if not (states["stats"].data[1] > 0).all():
            return {}
        pairs = zip(self.names, states["stats"].value.T, strict=True)
        named = [(name, zip(("mean", "std"), row, strict=True)) for name, row in pairs]
        return {f"{self.prefix}/{name}_{key}": value for name, row in named for key, value in row}


def _moments(column: Column) -> Tensor:
    """Return number, sum and spread about the mean of this rank's elements, float64 [3]."""
    parts = [slot.values().reshape(-1) for slot in column.slots]
    wide = [part if part.dtype == torch.float64 else part.to(torch.float32) for part in parts]
    totals, spreads = moments(wide, wide[0].device)
    counts = torch.tensor([float(part.numel()) for part in wide], dtype=torch.float64, device="cpu")
    counts = to_device(counts, totals.device)
    return torch.stack([counts.sum(), totals.sum(), pooled_spread(counts, totals, spreads)])


def _mean_and_std(counts: Tensor, totals: Tensor, spreads: Tensor) -> Tensor:
    """Return mean and standard deviation (divided by n) of several sets of numbers together, float64 [2]."""
    number = counts.sum()
    return torch.stack([totals.sum() / number, pooled_spread(counts, totals, spreads) / number.sqrt()])


def _watch(model: nn.Module, parts: Mapping[str, nn.Module]) -> TrackedParameters:
    held = {id(parameter) for parameter in model.parameters()}
    strangers = [name for name, part in parts.items() if not {id(p) for p in part.parameters()} <= held]
    if strangers:
        raise ConfigError(f"{strangers[0]!r} is not part of the model: make the metric from its own modules")
    return TrackedParameters(model, {name: list(part.parameters()) for name, part in parts.items()})


def _require_parts(parts: Mapping[str, nn.Module], ratios: Sequence[tuple[str, str]] = ()) -> None:
    for name, part in parts.items():
        if not any(True for _ in part.parameters()):
            raise ConfigError(f"the part {name!r} has no parameters")
    unknown = sorted({name for pair in ratios for name in pair} - set(parts))
    if not parts or unknown:
        raise ConfigError(f"expected named parts of the model, got {list(parts)}; unknown: {unknown}")


_training = partial(Entry, dashboard="dual_head_loss_breakdown")
_gradient = partial(Entry, dashboard="dual_head_gradients")

ENTRIES = (
    Entry(
        "Train/PSNR",
        "PSNR of the epoch",
        "PSNR of every training patch as it was trained on, mean over the epoch and all ranks.",
        unit="dB",
        dashboard="dual_head_overview",
        healthy="rises steadily, without jumps",
    ),
    Entry(
        "Train/learning_rate",
        "learning rate",
        "Learning rate of the first parameter group.",
        dashboard="dual_head_overview",
        healthy="follows the schedule",
        deviation="written at every log, not once an epoch",
    ),
    _training(
        "Train/Loss/{name}_loss",
        "loss {name}",
        "Loss of one head, mean over all samples of the epoch on all ranks; 0 in its warm-up.",
        healthy="falls; one that is switched on after a warm-up falls from there",
    ),
    _training(
        "Train/Loss/total_loss",
        "total loss of the epoch",
        "Sum of the heads' losses times their weights, mean over the epoch.",
        healthy="falls steadily, but for a step where a head is switched on; wild swings are an alert",
    ),
    _training(
        "Train/Loss/{name}_loss_weighted",
        "weighted loss {name}",
        "The head's loss times its weight: what it adds to the total loss.",
        healthy="0 in the warm-up, then neither negligible nor most of the total",
    ),
    _training(
        "Train/Loss/{name}_ratio",
        "ratio of losses {name}",
        "Loss of the first head over that of another, before weights; not written while the other is 0.",
        healthy="steady; its size depends on the losses' units",
    ),
    _training(
        "Train/{name}_loss_active",
        "loss {name} switched on",
        "1 where the head's loss has a weight in this epoch, 0 in its warm-up.",
        healthy="0 for the warm-up, then 1",
    ),
    _gradient(
        "Train/Gradients/total_norm",
        "gradient norm",
        "L2 norm of the gradient of the whole model before clipping, mean over the epoch's steps.",
        healthy="between 0.1 and 10; below 0.001 vanishes, above 100 explodes",
    ),
    _gradient(
        "Train/Gradients/{module}_norm",
        "gradient norm of {module}",
        "The same for one part of the model: a head, or the decoder that they share.",
        healthy="of one order of magnitude over the parts; 0 for a head in its warm-up",
    ),
    _gradient(
        "Train/Gradients/{name}_ratio",
        "ratio of gradients {name}",
        "Gradient norm of one head over that of another; not written while the other is 0.",
        healthy="between 0.1 and 10: the heads learn at similar rates",
    ),
    Entry(
        "Train_Batch/PSNR",
        "PSNR of the batch",
        "PSNR of the patches since the last log, mean over all ranks.",
        unit="dB",
        healthy="noisy, rising",
        deviation="over the batches since the last log; log at every step for single batches",
    ),
    Entry(
        "Train_Batch/{name}_loss",
        "loss {name} of the batch",
        "Loss of one head, or the total, over the batches since the last log on all ranks.",
        healthy="noisy, falling",
        deviation="over the batches since the last log; log at every step for single batches",
    ),
    Entry(
        "Model/Params/{module}_mean",
        "mean of the parameters of {module}",
        "Mean over all elements of a head's parameters.",
        family="system",
        healthy="stable; steady drift saturates",
    ),
    Entry(
        "Model/Params/{module}_std",
        "spread of the parameters of {module}",
        "Standard deviation (divided by n) over all elements of a head's parameters.",
        family="system",
        healthy="stable",
    ),
)
