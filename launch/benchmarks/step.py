"""What the monitor costs the training thread on steps that log nothing, in a real loop with fresh gradients.

A multilayer perceptron of 100 tensors trains on one core; plain and monitored steps take turns. The parts
of a step are timed by the thread's CPU clock: the contexts around forward, backward and optimizer, clipping
(against torch.nn.utils.clip_grad_norm_), and `TrainingMonitor.step`. Idle observers take arguments that the
loop never hands over.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks._ranks import lower_quartile, markdown, median, upper_quartile, whole, write
from hjepa_dist_metrics import Observer, TrainingMonitor

PARTS = ("clocks", "clipping", "step")
Times = dict[str, list[float]]
_FAR = 1_000_000_000  # steps between two logs: after the first step nothing is logged


class Network(nn.Module):
    """Stack as many linear layers as make up `tensors` parameter tensors."""

    def __init__(self, tensors: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(tensors // 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Stopwatch:
    """Add up the CPU time of this thread by the parts of a step."""

    def __init__(self) -> None:
        self.times: Times = {part: [] for part in PARTS}
        self._step = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the body."""
        begun = time.thread_time()
        yield
        self._step[name] += time.thread_time() - begun

    def end_step(self) -> None:
        """Note the step's times."""
        for name, seconds in self._step.items():
            self.times[name].append(seconds)
        self._step = dict.fromkeys(PARTS, 0.0)


class Loop:
    """Train a network; `monitor` None is the plain loop."""

    def __init__(
        self, tensors: int, width: int, watched: Callable[[nn.Module, Any], TrainingMonitor] | None
    ) -> None:
        torch.manual_seed(0)
        self.model = Network(tensors, width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.monitor = watched(self.model, self.optimizer) if watched else None
        self.watch = Stopwatch()
        self.batch = torch.randn(16, width)

    def step(self) -> None:
        """Train one step."""
        self.optimizer.zero_grad()
        if self.monitor is None:
            self._plain()
        else:
            self._monitored(self.monitor)
        self.watch.end_step()

    def _plain(self) -> None:
        self.model(self.batch).square().mean().backward()
        with self.watch.part("clipping"):
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def _monitored(self, monitor: TrainingMonitor) -> None:
        with self._clocked(monitor.forward()):
            loss = self.model(self.batch).square().mean()
        with self._clocked(monitor.backward()):
            loss.backward()
        with self.watch.part("clipping"):
            monitor.clip_grad_norm_(1.0)
        with self._clocked(monitor.optimizer_step()):
            self.optimizer.step()
        with self.watch.part("step"):
            monitor.step(samples=16, losses=loss)

    @contextmanager
    def _clocked(self, context: Any) -> Iterator[None]:
        with self.watch.part("clocks"):
            context.__enter__()
        yield
        with self.watch.part("clocks"):
            context.__exit__(None, None, None)


def idle_observers(count: int) -> list[Observer]:
    """Return observers, of a class each, that no step calls."""
    return [type(f"Idle{i}", (Observer,), {"takes": (f"idle{i}",)})() for i in range(count)]


def run(argv: list[str]) -> int:
    """Measure, print the table and write step.md."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loops = _loops(options, folder)
        for _ in range(options.warmup):
            for loop in loops.values():
                loop.step()
        for loop in loops.values():
            loop.watch = Stopwatch()
        for _ in range(options.steps):
            for loop in loops.values():
                loop.step()
        text = report({name: loop.watch.times for name, loop in loops.items()}, options.tensors)
        for loop in loops.values():
            if loop.monitor is not None:
                loop.monitor.close()
    print(text)
    write(options.out, "step.md", text)
    return 0


def _loops(options: argparse.Namespace, folder: str) -> dict[str, Loop]:
    def watched(idle: int) -> Callable[[nn.Module, Any], TrainingMonitor]:
        def make(model: nn.Module, optimizer: Any) -> TrainingMonitor:
            settings = {"log_dir": f"{folder}/{idle}", "log_frequency": _FAR}
            monitor = TrainingMonitor(model, optimizer, settings)
            for observer in idle_observers(idle):
                monitor.add_observer(observer)
            return monitor

        return make

    loops = {"plain": Loop(options.tensors, options.width, None)}
    for idle in options.idle:
        name = f"monitored, {idle} idle observers" if idle else "monitored"
        loops[name] = Loop(options.tensors, options.width, watched(idle))
    return loops


def report(times: dict[str, Times], tensors: int) -> str:
    """Return the table in Markdown: medians and quartiles in us, and what is beyond the plain loop."""
    plain = median(times["plain"]["clipping"])
    rows = []
    for name, parts in times.items():
        total = sum(median(values) for values in parts.values() if values)
        cells = [_shown(parts[part]) for part in PARTS]
        rows.append([name, *cells, f"{1e6 * (total - plain):.0f}"])
    head = [f"{tensors} tensors, us: median (quartiles)", *PARTS, "beyond the plain loop"]
    return markdown(head, rows)


def _shown(seconds: list[float]) -> str:
    low, middle, high = (1e6 * f(seconds) for f in (lower_quartile, median, upper_quartile))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tensors", type=whole(2), default=100, help="parameter tensors (default 100)")
    add("--width", type=whole(1), default=64, help="width of the layers (default 64)")
    add("--steps", type=whole(1), default=300, help="measured steps of each loop (default 300)")
    add("--warmup", type=whole(1), default=30, help="steps before (default 30)")
    add("--idle", type=whole(0), nargs="+", default=[0, 20], help="idle observers of each monitored loop")
    add("--out", default="results/benchmarks", help="folder of step.md")
    return parser
