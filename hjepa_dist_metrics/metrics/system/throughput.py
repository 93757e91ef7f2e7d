"""Speed of the whole job: every rank's samples over the slowest rank's time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from typing_extensions import Self

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import OVERHEAD_PERCENT
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.system.flops import peak_flops as devices_peak
from hjepa_dist_metrics.states import RankExtremes, ShardedSum, State, Sum
from hjepa_dist_metrics.states.ranks.sharded import SHARD

_ITS_OWN = torch.tensor([SHARD], device="cpu")
PHASES = ("forward", "backward", "data", "optimizer", "step")


class Throughput(DistributedMetric):
    """Report rates and times under `performance/`.

    `samples_per_second` and `tokens_per_second` are the ranks' sums over the longest elapsed time of any
    rank. `{phase}_time_ms` is the mean over steps and ranks, `{phase}_time_ms_max` the slowest rank's mean
    and `{phase}_time_ms_max_rank` that rank; phases without a time are left out. `forward_backward_ratio` is
    forward over backward, `monitor_overhead_percent` the monitor's own share of the steps' time. With
    `flops_per_sample` (see `count_flops`) `mfu`, the share of the devices' peak: of this rank's `peak_flops`,
    by default looked up for `device`; left out where a rank's peak is unknown.

    >>> throughput = Throughput()
    >>> for _ in range(4):
    ...     throughput.update(samples=64, forward_s=0.1, backward_s=0.3, step_s=0.5)
    >>> values = throughput.compute()
    >>> values["performance/samples_per_second"], round(values["performance/forward_time_ms"], 3)
    (128.0, 100.0)
    """

    def __init__(
        self,
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
        device: torch.device | None = None,
    ) -> None:
        for name, value in (("flops_per_sample", flops_per_sample), ("peak_flops", peak_flops)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a positive number, got {value!r}")
        self.flops_per_sample = flops_per_sample
        self.peak_flops = peak_flops if peak_flops or device is None else devices_peak(device)
        self._seconds: dict[str, list[float]] = {}
        self._counts = [0.0, 0.0, 0.0]
        for name in ("samples", "tokens", "flops"):
            self.add_state(name, Sum())
        self.add_state("peak", ShardedSum())
        for phase in (*PHASES, "monitor"):
            self.add_state(f"{phase}_s", RankExtremes())

    def update(
        self,
        samples: float,
        forward_s: float | None = None,
        backward_s: float | None = None,
        data_s: float | None = None,
        optimizer_s: float | None = None,
        step_s: float | None = None,
        tokens: float = 0,
        computed: float | None = None,
    ) -> None:
        """Add one step of this rank: its samples and seconds.

        `computed` is the number of samples on which this rank computed, where others count some of them, as
        the ranks of a pipeline do. `step_s` is the whole step's time; without it, the sum of the phases'.
        """
        given = {"forward": forward_s, "backward": backward_s, "data": data_s, "optimizer": optimizer_s}
        known = {phase: seconds for phase, seconds in given.items() if seconds is not None}
        self._counts[0] += samples
        self._counts[1] += tokens
        self._counts[2] += samples if computed is None else computed
        for phase, seconds in known.items():
            self.add_time(phase, seconds)
        self.add_time("step", sum(known.values()) if step_s is None else step_s)

    def add_time(self, phase: str, seconds: float) -> None:
        """Add a phase's seconds on their own, when they become known: CUDA events are read steps later."""
        if phase not in (*PHASES, "monitor"):
            raise ConfigError(f"expected a phase of {(*PHASES, 'monitor')}, got {phase!r}")
        self._seconds.setdefault(phase, []).append(seconds)

    @property
    def states(self) -> Mapping[str, State]:  # type: ignore[override]
        """Return the local states by name."""
        self._settle()
        return self._states

    def _settle(self) -> None:
        """Move what was collected into the states: once a sync, which costs less than once a step."""
        for phase, seconds in self._seconds.items():
            self._states[f"{phase}_s"].update(seconds)
        if self._seconds:
            samples, tokens, computed = self._counts
            self._states["samples"].update(samples)
            self._states["tokens"].update(tokens)
            if self.flops_per_sample is not None:
                self._states["flops"].update(computed * self.flops_per_sample)
                self._states["peak"].update(self.peak_flops or math.nan, _ITS_OWN)
        self._seconds, self._counts = {}, [0.0, 0.0, 0.0]

    def merge(self, other: DistributedMetric) -> Self:
        """Take in what `other` has seen."""
        self._settle()
        if isinstance(other, Throughput):
            other._settle()
        return super().merge(other)

    def reset(self) -> None:
        """Forget everything seen."""
        self._seconds, self._counts = {}, [0.0, 0.0, 0.0]
        super().reset()

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return rates and times; {} before the first step."""
        step = states["step_s"]
        if step.count == 0:
            return {}
        tags: dict[str, Any] = {}
        if step.longest > 0:
            tags["performance/samples_per_second"] = states["samples"].value / step.longest
            tags["performance/monitor_overhead_percent"] = 100.0 * states["monitor_s"].total / step.total
            if states["tokens"].value:
                tags["performance/tokens_per_second"] = states["tokens"].value / step.longest
            peak = states["peak"].value
            if states["flops"].value and peak > 0:
                tags["performance/mfu"] = states["flops"].value / step.longest / peak
        for phase in PHASES:
            tags |= _times(phase, states[f"{phase}_s"])
        forward, backward = states["forward_s"], states["backward_s"]
        if backward.count and backward.total > 0:
            tags["performance/forward_backward_ratio"] = forward.total / backward.total
        return tags


def _times(phase: str, seconds: Any) -> dict[str, Any]:
    if seconds.count == 0:
        return {}
    return {
        f"performance/{phase}_time_ms": 1e3 * seconds.mean,
        f"performance/{phase}_time_ms_max": 1e3 * seconds.highest,
        f"performance/{phase}_time_ms_max_rank": seconds.highest_rank,
    }


class TotalSamples(DistributedMetric):
    """Count over the whole run: `performance/total_samples`, `total_tokens`, `samples_per_second_total`.

    The rate is the ranks' samples since the start over the longest time of any rank.

    >>> total = TotalSamples()
    >>> total.update(samples=64)
    >>> total.update(samples=64)
    >>> total.compute()["performance/total_samples"]
    128.0
    """

    persistent = True

    def __init__(self) -> None:
        self.add_state("samples", Sum())
        self.add_state("tokens", Sum())
        self.add_state("seconds", RankExtremes())

    def update(self, samples: float, seconds: float = 0.0, tokens: float = 0) -> None:
        """Add samples and tokens of this rank, of one step or several, and the time that they took."""
        self.samples.update(samples)
        self.tokens.update(tokens)
        self.seconds.update(seconds)

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} before the first update."""
        seconds = states["seconds"]
        if not seconds.count:
            return {}
        tags = {"performance/total_samples": states["samples"].value}
        if states["tokens"].value:
            tags["performance/total_tokens"] = states["tokens"].value
        if seconds.longest > 0:
            tags["performance/samples_per_second_total"] = states["samples"].value / seconds.longest
        return tags


_speed = partial(Entry, dashboard="performance")

_PHASE_TITLES = {
    "forward_time": "forward pass",
    "backward_time": "backward pass",
    "data_time": "wait for data",
    "optimizer_time": "optimizer step",
    "step_time": "whole step",
}


def _phase_entries(name: str, what: str) -> tuple[Entry, ...]:
    clock = "by CUDA events on CUDA, by the host's clock on CPU"
    deviation = "often the time that CUDA kernels take to launch, on one rank" if what != "whole step" else ""
    return (
        _speed(
            f"performance/{name}_ms",
            f"time of the {what}",
            f"Time of the {what}, mean over steps and ranks, {clock}.",
            unit="ms",
            deviation=deviation,
        ),
        _speed(
            f"performance/{name}_ms_max",
            f"time of the {what} on the slowest rank",
            f"Time of the {what}, mean over steps, largest over ranks.",
            unit="ms",
            healthy=f"near performance/{name}_ms; far above it one rank is slow",
        ),
        _speed(
            f"performance/{name}_ms_max_rank",
            f"slowest rank in the {what}",
            f"Rank of performance/{name}_ms_max.",
            unit="rank",
            healthy="changes; always the same rank is a slow machine",
            dashboard="",
        ),
    )


ENTRIES = (
    *(entry for name, what in _PHASE_TITLES.items() for entry in _phase_entries(name, what)),
    _speed(
        "performance/samples_per_second",
        "throughput of the job",
        "Samples of all ranks over the longest rank's elapsed time.",
        unit="samples/s",
        healthy="steady",
        deviation="often one rank's samples over its compute time, times the number of ranks",
    ),
    _speed(
        "performance/tokens_per_second", "token throughput of the job", "The same in tokens.", unit="tokens/s"
    ),
    _speed(
        "performance/total_samples", "samples seen", "Samples of all ranks since the start.", unit="samples"
    ),
    _speed("performance/total_tokens", "tokens seen", "Tokens of all ranks since the start.", unit="tokens"),
    _speed(
        "performance/samples_per_second_total",
        "throughput since the start",
        "Samples of all ranks since the start over the longest rank's time, pauses left out.",
        unit="samples/s",
    ),
    _speed("performance/forward_backward_ratio", "forward over backward", "Forward time over backward time."),
    _speed(
        "performance/mfu",
        "model FLOPs utilisation",
        "Arithmetic of the model per second over the devices' peak.",
        source="arXiv 2204.02311",
        healthy="above 0.3 for large models",
    ),
    _speed(
        "performance/monitor_overhead_percent",
        "cost of monitoring",
        "Share of the step time that the training thread spends in this library.",
        unit="%",
        healthy="below 5",
        bounds=OVERHEAD_PERCENT,
    ),
)
