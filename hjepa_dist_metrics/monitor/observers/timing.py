"""Times and counts of the training steps, gathered on the host, given to the metrics when they are logged."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, cast

from hjepa_dist_metrics.metrics import Memory, Stragglers, Throughput, TotalSamples
from hjepa_dist_metrics.metrics.system.flops import count_flops
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.monitor.observers.phase_clock import PhaseClock

B = TypeVar("B")
_WINDOW = 32
_END = object()  # what a used up loader gives
_clock = time.perf_counter


class Timing(Observer):
    """Feed throughput, totals, stragglers and memory; a step costs a few appends."""

    takes = ("samples",)
    also = ("tokens",)
    family = None

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run."""
        super().attach(scope)
        self._phases = PhaseClock(scope.context.device, lambda: _clock())
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=_WINDOW)
        self._loader_seconds: float | None = None  # since the last step; None without a loader
        self._unlogged = [0.0, 0.0, 0.0]  # samples, seconds, tokens
        self._steps = 0  # that are not in the totals yet
        self._last_step_end: float | None = None
        self._begun = 0.0
        self._paused_seconds = 0.0  # of the whole run
        self._own_seconds = 0.0

    # -- what the loop calls -----------------------------------------------------------------------------

    def batches(self, loader: Iterable[B]) -> Iterator[B]:
        """Yield the loader's batches and time the wait for each; a step may take several."""
        iterator = iter(loader)
        while True:
            with self.loading():
                batch = next(iterator, _END)
            if batch is _END:
                return
            yield cast(B, batch)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Time the body, but for pauses in it, as a wait for data."""
        self._start()
        begun, paused = _clock(), self._paused_seconds
        yield
        waited = _clock() - begun - (self._paused_seconds - paused)
        self._loader_seconds = (self._loader_seconds or 0.0) + waited

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time the body as a phase of the step."""
        self._start()
        return self._phases.phase(name)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the body out of the training's throughput."""
        begun = _clock()
        try:
            yield
        finally:
            paused = _clock() - begun
            self._paused_seconds += paused
            if self._last_step_end is not None:
                self._last_step_end += paused

    @contextmanager
    def own_time(self) -> Iterator[None]:
        """Count the body's time as the monitor's own."""
        begun = _clock()
        try:
            yield
        finally:
            self._own_seconds += _clock() - begun

    def begin_step(self) -> None:
        """Note when the end of a step begins: what follows is the monitor's own time."""
        self._begun = _clock()

    def end_step(self) -> None:
        """Note when the monitor is done with a step."""
        self._own_seconds += _clock() - self._begun

    # -- what the monitor calls --------------------------------------------------------------------------

    def observe(self, samples: Any, tokens: int = 0) -> None:
        """Add a step of this rank."""
        start, self._last_step_end = self._last_step_end, self._begun
        step_s = 0.0 if start is None else self._begun - start
        throughput = self._throughput()
        phases: dict[str, float] = {}

        def report(name: str, seconds: float) -> None:
            phases[name] = seconds
            throughput.add_time(name, seconds)

        self._phases.collect(report)
        throughput.update(samples, step_s=step_s, tokens=tokens)
        throughput.add_time("monitor", self._own_seconds)
        data_s, self._loader_seconds, self._own_seconds = self._loader_seconds, None, 0.0
        if data_s is not None:
            throughput.add_time("data", data_s)
        forward, backward, optimizer = (phases.get(n, 0.0) for n in ("forward", "backward", "optimizer"))
        self._recent.append((forward, backward, data_s or 0.0, optimizer))
        self._steps += 1
        for i, amount in enumerate((samples, step_s, tokens)):
            self._unlogged[i] += amount

    def before_log(self, due: Sequence[str]) -> None:
        """Bring the metrics of the families that are about to be logged up to date."""
        many = self.scope.context.world_size > 1
        if "scalars" in due:
            if many and self._steps:
                self._stragglers("numbers", "stragglers", "scalars").update_steps(self._recent)
            self._settle()
        if "figures" in due and many:
            self._stragglers("map", "straggler_map", "figures").update_steps(self._recent)
        if "system" in due:
            device = self.scope.context.device
            self.scope.metric("memory", Memory, lambda: Memory(device), "system").update()

    def state_dict(self) -> dict[str, Any]:
        """Bring the totals up to date: a checkpoint has no room for anything else."""
        self._settle()
        return {}

    def count_flops(self, step: Callable[[], Any], samples: int, peak_flops: float | None = None) -> float:
        """Count the operations of `step` on `samples` samples, for the utilisation; return those of one."""
        per_sample = count_flops(step) / samples
        throughput = self._throughput()
        throughput.flops_per_sample = per_sample
        throughput.peak_flops = peak_flops or throughput.peak_flops
        return per_sample

    def _start(self) -> None:
        if self._last_step_end is None:
            self._last_step_end = _clock()

    def _settle(self) -> None:
        if self._steps:
            totals = self.scope.metric("total_samples", TotalSamples, TotalSamples)
            totals.update(*self._unlogged)
        self._unlogged, self._steps = [0.0, 0.0, 0.0], 0

    def _throughput(self) -> Throughput:
        device = self.scope.context.device
        return self.scope.metric("throughput", Throughput, lambda: Throughput(device=device))

    def _stragglers(self, report: Any, name: str, family: str) -> Stragglers:
        return self.scope.metric(name, Stragglers, lambda: Stragglers(report=report), family)
