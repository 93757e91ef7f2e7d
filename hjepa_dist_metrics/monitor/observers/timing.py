"""Times and counts of the training steps, gathered on the host, given to the metrics when they are logged."""

from __future__ import annotations

import importlib.util
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from hjepa_dist_metrics.figures.canvas import to_image
from hjepa_dist_metrics.figures.training.stragglers import straggler_map
from hjepa_dist_metrics.metrics import Memory, MemoryGrowth, Stragglers, Throughput, TotalSamples
from hjepa_dist_metrics.metrics.system.flops import count_flops
from hjepa_dist_metrics.metrics.system.stragglers import StepTimes
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.monitor.observers.phase_clock import PhaseClock
from hjepa_dist_metrics.monitor.sample_share import counted
from hjepa_dist_metrics.parallel.sharding.collective_waits import CollectiveWaits, Waits
from hjepa_dist_metrics.values import Drawing

B = TypeVar("B")
_WINDOW = 32
_WARM_UP = 3  # steps of a run that say nothing about speed
_WATCHED = 8  # steps before a log in which a GPU's reducer may be asked for its times
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
        scope.own_time = self.own_time
        self._phases = PhaseClock(scope.context.device, lambda: _clock())
        self._recent: deque[StepTimes] = deque(maxlen=_WINDOW)
        self._latest: StepTimes | None = None  # a step whose waits are known after the next one
        self._waits: CollectiveWaits | None = None  # made at the first step: the model is wrapped by then
        self._warm_up = _WARM_UP
        self._exchange_seconds = 0.0  # in collectives of the gradients' clipping
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

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body as a phase of the step."""
        self._start()
        if self._waits is None and self.scope.context.world_size > 1:
            scope = self.scope
            self._waits = CollectiveWaits(scope.model, scope.context.device, scope.context.world_size)
        if self._waits is not None:
            self._waits.phase = name
            self._waits.prepare(self._is_watched())
        with self._phases.phase(name):
            yield
        if self._waits is not None:
            self._waits.phase = ""

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Time the body as one in which ranks may wait for each other."""
        begun = _clock()
        yield
        self._exchange_seconds += _clock() - begun

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the body out of the training's throughput."""
        begun, inside = _clock(), self.scope.paused
        self.scope.paused = True
        if self._waits is not None:
            self._waits.paused = True
        try:
            yield
        finally:
            self.scope.paused = inside
            if self._waits is not None:
                self._waits.paused = inside
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
        own_samples, own_tokens = counted(samples, tokens, self.scope.layout)
        throughput.update(own_samples, step_s=step_s, tokens=own_tokens, computed=samples)
        monitor_s = self._own_seconds
        throughput.add_time("monitor", monitor_s)
        data_s, self._loader_seconds, self._own_seconds = self._loader_seconds, None, 0.0
        if data_s is not None:
            throughput.add_time("data", data_s)
        self._note(step_s, phases, data_s or 0.0, monitor_s)
        self._steps += 1
        for i, amount in enumerate((own_samples, step_s, own_tokens)):
            self._unlogged[i] += amount

    def _is_watched(self) -> bool:
        """Return whether the coming step is one of the last before a log."""
        between, step = self.scope.steps_between("scalars"), self.scope.step
        return between is not None and (-step % between < _WATCHED or self.scope.is_due("scalars"))

    def _note(self, step_s: float, phases: Mapping[str, float], data_s: float, monitor_s: float) -> None:
        """Keep what this rank did in a step, and how long it waited; the first steps of a run warm up."""
        forward, backward, optimizer = (phases.get(n, 0.0) for n in ("forward", "backward", "optimizer"))
        exchange, self._exchange_seconds = self._exchange_seconds, 0.0
        between = step_s - forward - backward - optimizer - data_s - monitor_s - exchange
        times = StepTimes(forward, backward, data_s, optimizer, max(0.0, between), exchange)
        seconds = None if self._waits is None else self._waits.take()
        if self._waits is not None and self._waits.lag:
            times, self._latest = self._latest, times  # type: ignore[assignment]
        if self._warm_up > 0:
            self._warm_up -= 1
        elif times is not None:
            self._recent.append(_without_waits(times, seconds))

    def before_log(self, due: Sequence[str]) -> None:
        """Bring the metrics of the families that are about to be logged up to date."""
        many, device = self.scope.context.world_size > 1, self.scope.context.device
        if "scalars" in due:
            if many and self._steps:
                self._stragglers("numbers", "stragglers", "scalars").update_steps(self._recent)
            if self._steps:
                self.scope.metric("memory_growth", MemoryGrowth, lambda: MemoryGrowth(device)).update()
            self._settle()
        if "figures" in due and many:
            self._stragglers("map", "straggler_map", "figures").update_steps(self._recent)
        if "system" in due:
            make = partial(Memory, device, growing=False)
            self.scope.metric("memory", Memory, make, "system").update()

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

    def close(self) -> None:
        """Take the clocks off the model's collectives."""
        if self._waits is not None:
            self._waits.close()

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
        # Without matplotlib the map is plain cells.
        draw = _drawn_map if importlib.util.find_spec("matplotlib") else None
        return self.scope.metric(name, Stragglers, lambda: Stragglers(report=report, draw=draw), family)


def _drawn_map(own: Any, ranks: Sequence[int]) -> Drawing:
    sketch = partial(straggler_map, own, ranks)
    return Drawing(lambda: to_image(sketch()), lambda: sketch)


def _without_waits(times: StepTimes, seconds: Waits) -> StepTimes:
    """Return a step's times with the waits taken out; NaN for waits that are not known."""
    if seconds is None:
        return times._replace(wait_s=math.nan)
    waited = sum(seconds.values())
    forward = min(times.forward_s, seconds.get("forward", 0.0))
    backward = min(times.backward_s, seconds.get("backward", 0.0))
    elsewhere = waited - forward - backward  # in a loop that does not show its phases
    return times._replace(
        forward_s=times.forward_s - forward,
        backward_s=times.backward_s - backward,
        between_s=max(0.0, times.between_s - elsewhere),
        wait_s=(times.wait_s or 0.0) + waited,
    )
