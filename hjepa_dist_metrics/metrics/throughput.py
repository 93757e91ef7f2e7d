"""Speed of the whole job (S0 8.1): every rank's samples over the slowest rank's time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states import PerRank, Sum

PHASES = ("forward", "backward", "data", "optimizer", "step")


class Throughput(DistributedMetric):
    """Report rates and times under `performance/`.

    `samples_per_second` and `tokens_per_second` are the ranks' sums over the longest elapsed time of any
    rank. `{phase}_time_ms` is the mean over steps and ranks, `{phase}_time_ms_max` the slowest rank's mean
    and `{phase}_time_ms_max_rank` that rank; phases without a time are left out. `forward_backward_ratio` is
    forward over backward, `monitor_overhead_percent` the monitor's own share of the steps' time.
    """

    def __init__(self) -> None:
        self.add_state("samples", Sum())
        self.add_state("tokens", Sum())
        for phase in (*PHASES, "monitor"):
            self.add_state(f"{phase}_s", PerRank())

    def update(
        self,
        samples: float,
        forward_s: float | None = None,
        backward_s: float | None = None,
        data_s: float | None = None,
        optimizer_s: float | None = None,
        step_s: float | None = None,
        tokens: float = 0,
    ) -> None:
        """Add one step of this rank: its samples and seconds.

        `step_s` is the whole step's time; without it, the sum of the phases'.
        """
        given = {"forward": forward_s, "backward": backward_s, "data": data_s, "optimizer": optimizer_s}
        known = {phase: seconds for phase, seconds in given.items() if seconds is not None}
        self.samples.update(samples)
        self.tokens.update(tokens)
        for phase, seconds in known.items():
            self.add_time(phase, seconds)
        self.add_time("step", sum(known.values()) if step_s is None else step_s)

    def add_time(self, phase: str, seconds: float) -> None:
        """Add a phase's seconds on their own, when they become known: CUDA events are read steps later."""
        self.states[f"{phase}_s"].update(seconds)

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
