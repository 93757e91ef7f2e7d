"""Gradient flow (S0 5.1): size and spread of each module's gradient, layer against layer, histograms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.kernels.elements import (
    BINS,
    SUMS,
    Elements,
    ElementStats,
    read_elements,
)
from hjepa_dist_metrics.metrics.kernels.moments import standard_deviation
from hjepa_dist_metrics.metrics.optimization.parameter_partition import ParameterPartition
from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.parallel.reduction import (
    max_over_shards,
    moments_over_shards,
    norm_over_shards,
    sum_over_shards,
)
from hjepa_dist_metrics.states.base import to_device
from hjepa_dist_metrics.states.ranks.sharded import ShardedCounts, ShardedMax, ShardedMin, ShardedSum
from hjepa_dist_metrics.states.ranks.sharded_norms import ShardedMoments
from hjepa_dist_metrics.values import Histogram, Text

Floats = npt.NDArray[np.float64]
Report = Literal["all", "numbers", "histograms"]


class GradientFlow(DistributedMetric):
    """Describe the gradients that the parameters hold: call `update` after backward, before `zero_grad`.

    Tags under `gradients/`: `global_norm`; for each module `{module}_mean`, `_max`, `_min` (of |g|), `_std`
    (of g), `_avg`, `_total_norm` (L2), `_abs_sum`, `_zero_fraction`; `ratio_{i}`, the L2 norm of layer i over
    that of layer i - 1 where that is not 0; `nonfinite` elements and, where there are any, the name of the
    `first_nonfinite` parameter; histograms `{module}` over powers of two. `per_parameter` adds the same for
    each parameter by its name; `report` picks the numbers or the histograms alone.

    The numbers are those of the whole model, in any of these: plain, DDP, FSDP1, FSDP2, HSDP, tensor and
    sequence parallel, mixed; pipeline stages and experts where a `layout` declares them, with which making
    the object is a collective call. `update` is local where no gradient is sharded or made of addends.
    Modules as in `ParameterPartition`. A parameter without a gradient counts nothing. Under gradient
    accumulation measure at the optimizer's step only, under a GradScaler after `unscale_`. Ranks that hold
    copies of a parameter and differ in its gradient are named in a `DesyncError`.

    >>> model = nn.Linear(3, 1)
    >>> flow = GradientFlow(model)
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> flow.update()
    >>> round(flow.compute()["gradients/global_norm"], 4)
    4.0
    """

    def __init__(
        self,
        model: nn.Module,
        depth: int = 1,
        patterns: Mapping[str, str] | None = None,
        *,
        per_parameter: bool = False,
        report: Report = "all",
        context: ProcessContext | None = None,
        layout: ParallelLayout | None = None,
    ) -> None:
        if report not in get_args(Report):
            raise ConfigError(f"expected report to be one of {get_args(Report)}, got {report!r}")
        self.segments = ParameterPartition(model, depth, patterns, per_parameter, context, layout=layout)
        self.report = report
        size = len(self.segments.segments)
        self.add_state("sums", ShardedSum(shape=(len(SUMS), size)))
        self.add_state("moments", ShardedMoments(shape=(size,)))
        self.add_state("largest", ShardedMax(shape=(size,)))
        self.add_state("smallest", ShardedMin(shape=(size,)))
        # Of whole parameters: ranks that hold one must agree, and what is not finite is found by it.
        self.add_state("parameter_norms", ShardedMax(shape=(len(self.segments.parts.names),)))
        if report != "numbers":
            self.add_state("counts", ShardedCounts(size, BINS))

    def update(self, *also: GradientFlow) -> None:
        """Read the gradients. ConfigError where the model's parameters are not those of the start.

        `also` are flows made alike but for their report: they take what this one reads, so that numbers and
        histograms cost one look.
        """
        segments, flows = self.segments, (self, *also)
        pieces, slots = segments.gradients()
        columns = [segments.parts.segment_of[slot] for slot in slots]
        read = read_elements(
            pieces,
            columns,
            len(segments.segments) + 1,  # the last one for pieces that other ranks count
            segments.device,
            counting=any(flow.report != "numbers" for flow in flows),
        )
        norms = self._parameter_norms(read.each, slots)
        for flow in flows:
            flow._take(read, columns, norms)

    def _parameter_norms(self, each: ElementStats, slots: Sequence[int]) -> Tensor:
        """Return the norm of each whole parameter's gradient, over the ranks that share it, [names]."""
        parts, device = self.segments.parts, self.segments.device
        norms = torch.hypot(each.spread, each.sums[SUMS.index("sum")] / each.sums[0].clamp(min=1).sqrt())
        held = torch.zeros(len(self.segments.slots), dtype=torch.float64, device=device)
        held.index_copy_(0, _index(slots, device), norms.to(device))
        whole = norm_over_shards(held, [slot.layout.shards for slot in self.segments.slots])
        return whole.new_zeros(len(parts.names)).index_copy_(0, _index(parts.place, device), whole)

    def _take(self, read: Elements, columns: Sequence[int], norms: Tensor) -> None:
        parts, size, device = self.segments.parts, len(self.segments.segments), self.segments.device
        stats = read.each.by_column(columns, size + 1)
        sums, spread = stats.sums[:, :size], stats.spread[:size]
        largest, smallest = stats.largest[:size], stats.smallest[:size]
        roles = to_device(parts.roles, device)
        self.sums.update(sum_over_shards(sums, parts.beyond), roles.expand(len(SUMS), -1))
        moments = sums[0], sums[SUMS.index("sum")], spread
        self.moments.update_moments(*moments_over_shards(*moments, parts.beyond), roles)
        self.largest.update(max_over_shards(largest, parts.beyond), roles)
        self.smallest.update(-max_over_shards(-smallest, parts.beyond), roles)
        self.parameter_norms.update(norms, to_device(parts.norm_roles, device))
        if self.report != "numbers" and read.counts is not None:
            counts = read.counts[:size].to(device)
            self.counts.update(sum_over_shards(counts.T, parts.beyond).T, roles)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        if not states["sums"].known:
            return {}
        numbers = self._numbers(states) if self.report != "histograms" else {}
        return numbers | (self._histograms(states) if self.report != "numbers" else {})

    def _numbers(self, states: Mapping[str, Any]) -> dict[str, Any]:
        sums, largest, smallest = (states[name].value for name in ("sums", "largest", "smallest"))
        spread = states["moments"].spread
        norms = norms_of(sums, spread)
        tags: dict[str, Any] = {
            "gradients/global_norm": joint(norms),
            "gradients/nonfinite": sums[SUMS.index("nonfinite")].sum(),
        }
        for name, columns in self._parts():
            part = summarise(sums[:, columns], spread[columns], largest[columns], smallest[columns])
            tags |= {f"gradients/{name}_{key}": value for key, value in part.items()}
        norms_of_parameters = states["parameter_norms"].value
        bad = np.flatnonzero(np.isnan(norms_of_parameters) | np.isposinf(norms_of_parameters))
        if len(bad):
            tags["gradients/first_nonfinite"] = Text(self.segments.parts.names[bad[0]])
        return tags | self._ratios(norms)

    def _histograms(self, states: Mapping[str, Any]) -> dict[str, Histogram]:
        counts, sums, largest = states["counts"].counts, states["sums"].value, states["largest"].value
        norms = norms_of(sums, states["moments"].spread)
        return {
            f"gradients/{name}": power_histogram(
                counts[columns].sum(axis=0),
                sums[SUMS.index("sum"), columns].sum(),
                joint(norms[columns]),
                largest[columns].max(),
            )
            for name, columns in self._parts()
        }

    def _parts(self) -> list[tuple[str, list[int]]]:
        """Return each module, and each parameter where asked, with its segments."""
        segments = self.segments
        parts = [(name, segments.columns(name)) for name in segments.modules]
        return parts + list(segments.parameter_columns().items())

    def _ratios(self, norms: Floats) -> dict[str, float]:
        of_layers = [joint(norms[self.segments.columns(layer)]) for layer in self.segments.layers]
        pairs = enumerate(itertools.pairwise(of_layers), start=1)
        return {f"gradients/ratio_{i}": after / before for i, (before, after) in pairs if before != 0}


def _index(places: Sequence[int], device: torch.device) -> Tensor:
    return to_device(torch.tensor(places, dtype=torch.int64, device="cpu"), device)


def joint(norms: Floats) -> float:
    """Return the norm of norms, of any scale."""
    return math.hypot(*norms.tolist())


def norms_of(sums: Floats, spread: Floats) -> Floats:
    """Return each segment's norm from its sums [5, n] and its spread [n]."""
    norms: Floats = np.hypot(spread, sums[SUMS.index("sum")] / np.sqrt(sums[0].clip(min=1)))
    return norms


def summarise(sums: Floats, spread: Floats, largest: Floats, smallest: Floats) -> dict[str, float]:
    """Return a module's numbers from its segments' sums [5, n], spread and extremes [n]; 0 of nothing."""
    count, abs_sum, total, zeros, _ = sums.sum(axis=1)
    if count == 0:
        names = ("mean", "max", "min", "std", "avg", "total_norm", "abs_sum", "zero_fraction")
        return dict.fromkeys(names, 0.0)
    with np.errstate(invalid="ignore"):  # of gradients that are not finite: NaN, as it should be
        apart = (sums[2] / sums[0].clip(min=1) - total / count) * np.sqrt(sums[0])
        std = standard_deviation(count, total, joint(np.concatenate([spread, apart])))
    return {
        "mean": abs_sum / count,
        "max": largest.max(),
        "min": smallest.min(),
        "std": std,
        "avg": abs_sum / count,
        "total_norm": joint(norms_of(sums, spread)),
        "abs_sum": abs_sum,
        "zero_fraction": zeros / count,
    }


def power_histogram(counts: npt.NDArray[np.int64], total: float, norm: float, largest: float) -> Histogram:
    """Return a histogram over powers of two from counts by sign and exponent, [512], and their sum and norm.

    Only the stretch of bins that hold something is kept; the edges are +-2^k and 0 lies in a bin of its own,
    between the two smallest normal float32 numbers.
    """
    positive, negative = counts[1:255], counts[257:511]
    around_zero = counts[0] + counts[256]
    edges = np.exp2(np.arange(-126.0, 129.0))
    everything = np.concatenate([negative[::-1], [around_zero], positive])
    all_edges = np.concatenate([-edges[::-1], edges])
    filled = np.flatnonzero(everything)
    first, last = (filled[0], filled[-1]) if len(filled) else (254, 254)
    kept = slice(first, last + 1)
    nonfinite = int(counts[255] + counts[511])
    kept_edges = all_edges[first : last + 2]
    squares = min(norm * norm, np.finfo(np.float64).max)
    if nonfinite:  # the sums are not finite either: take the bins' middles for the values that are
        middles = (kept_edges[1:] + kept_edges[:-1]) / 2
        total, squares = everything[kept] @ middles, everything[kept] @ middles**2
    bound = largest if math.isfinite(largest) else math.inf
    low, high = max(kept_edges[0], -bound), min(kept_edges[-1], bound)
    return Histogram(
        kept_edges, everything[kept], float(low), float(high), float(total), float(squares), nonfinite
    )
