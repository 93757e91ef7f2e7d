"""Gradient flow (S0 5.1): size and spread of each module's gradient, layer against layer, histograms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

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
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.parallel.reduction import max_over_shards, moments_over_shards, sum_over_shards
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

    The numbers are those of the whole model, whatever holds it: plain, DDP, FSDP1, FSDP2, HSDP, tensor and
    sequence parallel, mixed. `update` is local except where gradients are addends (sequence parallelism), or
    sharded over ranks beyond `context`. Modules as in `ParameterPartition`. A parameter without a gradient
    counts nothing. Under gradient accumulation measure at the optimizer's step only, under a GradScaler after
    `unscale_`. Plain parameters are replicas: ranks whose gradients differ are named in a `DesyncError`.
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
    ) -> None:
        if report not in get_args(Report):
            raise ConfigError(f"expected report to be one of {get_args(Report)}, got {report!r}")
        self.segments = ParameterPartition(model, depth, patterns, per_parameter, context)
        self.report = report
        size = len(self.segments.segments)
        self.add_state("sums", ShardedSum(shape=(len(SUMS), size)))
        self.add_state("moments", ShardedMoments(shape=(size,)))
        self.add_state("largest", ShardedMax(shape=(size,)))
        self.add_state("smallest", ShardedMin(shape=(size,)))
        self.add_state("bad", ShardedMax(shape=(len(self.segments.slots),)))
        if report != "numbers":
            self.add_state("counts", ShardedCounts(size, BINS))

    def update(self, *also: GradientFlow) -> None:
        """Read the gradients. ConfigError where the model's parameters are not those of the start.

        `also` are flows made alike but for their report: they take what this one reads, so that numbers and
        histograms cost one look.
        """
        segments, flows = self.segments, (self, *also)
        pieces, slots = segments.gradients()
        read = read_elements(
            pieces,
            [segments.segment_of[slot] for slot in slots],
            len(segments.segments),
            segments.device,
            counting=any(flow.report != "numbers" for flow in flows),
        )
        for flow in flows:
            flow._take(read, slots)

    def _take(self, read: Elements, slots: Sequence[int]) -> None:
        segments = self.segments
        stats = read.each.by_column([segments.segment_of[slot] for slot in slots], len(segments.segments))
        roles = to_device(segments.roles, segments.device)
        self.sums.update(sum_over_shards(stats.sums, segments.beyond), roles.expand(len(SUMS), -1))
        moments = stats.sums[0], stats.sums[SUMS.index("sum")], stats.spread
        self.moments.update_moments(*moments_over_shards(*moments, segments.beyond), roles)
        self.largest.update(max_over_shards(stats.largest, segments.beyond), roles)
        self.smallest.update(-max_over_shards(-stats.smallest, segments.beyond), roles)
        self._find_bad(read.each, slots)
        if self.report != "numbers" and read.counts is not None:
            counts = read.counts.to(segments.device)
            self.counts.update(sum_over_shards(counts.T, segments.beyond).T, roles)

    def _find_bad(self, each: ElementStats, slots: Sequence[int]) -> None:
        segments = self.segments
        bad = (~torch.isfinite(each.sums[1])).to(torch.float64)
        flags = bad.new_zeros(len(segments.slots))
        flags.index_copy_(0, to_device(torch.tensor(slots, dtype=torch.int64, device="cpu"), bad.device), bad)
        roles = to_device(segments.slot_roles, bad.device)
        self.bad.update(max_over_shards(flags, segments.slot_beyond), roles)

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
        bad = np.flatnonzero(states["bad"].value > 0)
        if len(bad):
            tags["gradients/first_nonfinite"] = Text(self.segments.slots[bad[0]].name)
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
        return parts + [(s.parameter, [i]) for i, s in enumerate(segments.segments) if s.parameter]

    def _ratios(self, norms: Floats) -> dict[str, float]:
        of_layers = [joint(norms[self.segments.columns(layer)]) for layer in self.segments.layers]
        pairs = enumerate(itertools.pairwise(of_layers), start=1)
        return {f"gradients/ratio_{i}": after / before for i, (before, after) in pairs if before != 0}


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
