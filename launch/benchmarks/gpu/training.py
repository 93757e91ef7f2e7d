"""Blocks of training steps that take turns: without a monitor, at default cadences, with all there is.

One model serves all kinds, each with an optimizer and a monitor of its own. A block ends when the device has
done its steps; its time is divided by that of the block without a monitor of the same round. Histograms and
figures are part of "everything" alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks._ranks import median
from benchmarks.gpu.clock import wait
from benchmarks.gpu.jobs import Job
from hjepa_dist_metrics import TrainingMonitor

OFF, DEFAULT, REPRESENTATIONS, EVERYTHING = "off", "default", "representations", "everything"
DEFAULT_REPRESENTATIONS = 1000  # steps between two representations at default cadences
_FAR = 1_000_000


@dataclass(frozen=True)
class Cadence:
    """Steps of a block, which holds one log of scalars, and between two representations."""

    block: int
    representations: int

    def settings(self) -> dict[str, dict[str, Any]]:
        """Return the logging settings of each kind of run."""
        rare = {"histograms": _FAR, "figures": _FAR, "system": _FAR}
        often = {"scalars": max(1, self.block // 10), "histograms": self.representations}
        return {
            DEFAULT: {"log_frequency": self.block, "cadence": {"representations": _FAR, **rare}},
            REPRESENTATIONS: {
                "log_frequency": self.block,
                "cadence": {"representations": self.representations, **rare},
            },
            EVERYTHING: {
                "log_frequency": self.block,
                "cadence": {"representations": self.representations, "figures": self.block, **often},
                "gradients": {"noise": True, "per_parameter": True},
            },
        }


@dataclass
class Runner:
    """Train one kind of run, block by block."""

    job: Job
    optimizer: torch.optim.Optimizer
    monitor: TrainingMonitor | None
    step: int = 0
    host: float = 0.0  # processor seconds of this thread in the monitor's calls, and in clipping
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def block(self, steps: int, device: torch.device) -> float:
        """Train some steps; return the seconds until the device has done them."""
        begun = time.perf_counter()
        for _ in range(steps):
            self._train_step()
        wait(device)
        return time.perf_counter() - begun

    def _train_step(self) -> None:
        watch = self.monitor
        with self._timed(watch.forward() if watch else nullcontext()):
            loss, observed = self.job.forward(self.step)
        with self._timed(watch.backward() if watch else nullcontext()):
            loss.backward()  # type: ignore[no-untyped-call]
        begun = time.thread_time()
        if watch is None:
            nn.utils.clip_grad_norm_(self.job.model.parameters(), 1.0, foreach=True)
        else:
            watch.clip_grad_norm_(1.0)
        self.host += time.thread_time() - begun
        with self._timed(watch.optimizer_step() if watch else nullcontext()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        further = self.job.after(self.step)
        begun = time.thread_time()
        if watch is not None:
            watch.step(samples=self.job.samples, **observed, **further)
        self.host += time.thread_time() - begun
        self.step += 1

    def _timed(self, context: AbstractContextManager[Any]) -> _Timed:
        return _Timed(self, context)


class _Timed(AbstractContextManager[None]):
    """Add the processor time of entering and leaving a context to a runner's."""

    def __init__(self, runner: Runner, context: AbstractContextManager[Any]) -> None:
        self._runner, self._context = runner, context

    def __enter__(self) -> None:
        begun = time.thread_time()
        self._context.__enter__()
        self._runner.host += time.thread_time() - begun

    def __exit__(self, *error: Any) -> None:
        begun = time.thread_time()
        self._context.__exit__(*error)
        self._runner.host += time.thread_time() - begun


def measure(
    make: Callable[[], Job], device: torch.device, cadence: Cadence, seconds: float, folder: Path
) -> dict[str, Any]:
    """Make and train a job for about `seconds`, one round at least; return what each kind of run took."""
    begun = time.monotonic()
    job = make()
    runners = {OFF: Runner(job, _optimizer(job, device), None)}
    for kind, settings in cadence.settings().items():
        optimizer = _optimizer(job, device)
        where = {"log_dir": str(folder), "experiment_name": kind}
        runners[kind] = Runner(job, optimizer, TrainingMonitor(job.model, optimizer, {**where, **settings}))
    try:
        rounds = _in_turns(runners, device, cadence, begun + seconds)
    finally:
        failures = {kind: runner.monitor.failures for kind, runner in runners.items() if runner.monitor}
        for runner in runners.values():
            if runner.monitor is not None:
                runner.monitor.close()
    spent = time.monotonic() - begun
    kinds = {kind: _summary(runner, rounds * cadence.block) for kind, runner in runners.items()}
    shared = _shared_out(kinds, cadence)
    failed = {kind: errors for kind, errors in failures.items() if errors}
    return {
        "job": job.name,
        "samples": job.samples,
        "rounds": rounds,
        "block": cadence.block,
        "representations": cadence.representations,
        "seconds": spent,
        "kinds": kinds,
        "default cadences": shared,
        "failures": failed,
    }


def _optimizer(job: Job, device: torch.device) -> torch.optim.Optimizer:
    trained = [p for p in job.model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")


def _in_turns(runners: Mapping[str, Runner], device: torch.device, cadence: Cadence, ended: float) -> int:
    """Train rounds until the next would end too late; return how many. The first kind changes."""
    for runner in runners.values():  # compiles, makes what is made once, and logs step 0
        runner.block(cadence.block, device)
        runner.host = 0.0
    rounds, longest = 0, 0.0
    while not rounds or time.monotonic() + longest < ended:
        begun = time.monotonic()
        order = list(runners.values())
        turn = rounds % len(order)
        for runner in [*order[turn:], *order[:turn]]:
            runner.seconds.append(runner.block(cadence.block, device))
        for runner in order:
            runner.ratios.append(runner.seconds[-1] / runners[OFF].seconds[-1])
        rounds, longest = rounds + 1, max(longest, time.monotonic() - begun)
    return rounds


def _summary(runner: Runner, steps: int) -> dict[str, float]:
    per_block = steps / len(runner.seconds)
    return {
        "ms a step": 1e3 * median(runner.seconds) / per_block,
        "overhead, %": 100.0 * (median(runner.ratios) - 1.0),
        "largest, %": 100.0 * (max(runner.ratios) - 1.0),
        "smallest, %": 100.0 * (min(runner.ratios) - 1.0),
        "host, ms a step": 1e3 * runner.host / steps,
    }


def _shared_out(kinds: Mapping[str, Mapping[str, float]], cadence: Cadence) -> float:
    """Return the overhead in percent at default cadences, representations every 1,000 steps."""
    plain = kinds[DEFAULT]["overhead, %"]
    each = kinds[REPRESENTATIONS]["overhead, %"] - plain
    return plain + max(0.0, each) * cadence.representations / DEFAULT_REPRESENTATIONS
