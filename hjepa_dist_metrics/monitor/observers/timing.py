"""Times and counts of the training steps, gathered on the host, given to the metrics when they are logged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

from hjepa_dist_metrics.metrics.system.flops import count_flops
from hjepa_dist_metrics.monitor.metric_registry import MetricRegistry
from hjepa_dist_metrics.monitor.observers.phase_clock import PhaseClock

_WINDOW = 32


class SpeedWatch:
    """Feed throughput, totals, stragglers and memory; a step costs a few appends."""

    def __init__(self, families: MetricRegistry) -> None:
        self.families = families
        self.context = families.collection.context
        self._clock = PhaseClock(self.context.device)
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=_WINDOW)
        self._waited: float | None = None  # since the last step; None without a loader
        self._unlogged = [0.0, 0.0, 0.0]  # samples, seconds, tokens
        self._steps = 0  # that are not in the totals yet

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time the body as a phase of the step."""
        return self._clock.phase(name)

    def waited(self, seconds: float) -> None:
        """Add a wait for data: one a step, or several where gradients are accumulated."""
        self._waited = (self._waited or 0.0) + seconds

    def step(self, samples: int, tokens: int, step_s: float, own_s: float) -> None:
        """Add a step of this rank; `own_s` is what the monitor itself took since the last one."""
        throughput = self.families.throughput()
        phases: dict[str, float] = {}

        def report(name: str, seconds: float) -> None:
            phases[name] = seconds
            throughput.add_time(name, seconds)

        self._clock.collect(report)
        throughput.update(samples, step_s=step_s, tokens=tokens)
        throughput.add_time("monitor", own_s)
        if self._waited is not None:
            throughput.add_time("data", self._waited)
        self._recent.append(
            (
                phases.get("forward", 0.0),
                phases.get("backward", 0.0),
                self._waited or 0.0,
                phases.get("optimizer", 0.0),
            )
        )
        self._waited = None
        self._steps += 1
        for i, amount in enumerate((samples, step_s, tokens)):
            self._unlogged[i] += amount

    def refresh(self, due: Collection[str]) -> None:
        """Bring the metrics of the families that are about to be logged up to date."""
        many = self.context.world_size > 1
        if "scalars" in due:
            if many and self._steps:
                self.families.stragglers().update_steps(self._recent)
            self.settle()
        if "figures" in due and many:
            self.families.straggler_map().update_steps(self._recent)
        if "system" in due:
            self.families.memory().update()

    def settle(self) -> None:
        """Bring the totals up to date: for a checkpoint, which has no room for anything else."""
        if self._steps:
            self.families.total_samples().update(*self._unlogged)
        self._unlogged, self._steps = [0.0, 0.0, 0.0], 0

    def count_flops(self, step: Callable[[], Any], samples: int, peak_flops: float | None = None) -> float:
        """Count the operations of `step` on `samples` samples, for the utilisation; return those of one."""
        per_sample = count_flops(step) / samples
        throughput = self.families.throughput()
        throughput.flops_per_sample = per_sample
        throughput.peak_flops = peak_flops or throughput.peak_flops
        return per_sample
