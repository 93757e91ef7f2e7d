"""What 100 numbers cost the caller beside SummaryWriter and W&B offline, and what a place that hangs costs.

The writers take turns in random order, so that each finds the processor's caches as the others left them; "in
a loop" is the logger alone. Then a loop logs 100 numbers a step while one output hangs for a minute: the
delays are those of `log_metrics`, and what arrives after the hang is counted.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._ranks import markdown, median, write
from hjepa_dist_metrics import ConfigError, MetricsLogger
from hjepa_dist_metrics.sinks import MemorySink
from hjepa_dist_metrics.values import Value

_NUMBERS = {f"group{index % 10}/metric{index}": 0.5 for index in range(100)}


class HangingSink(MemorySink):
    """A place behind a network that does not answer before `answers` is set."""

    local = False

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Wait for the answer, then keep the values."""
        self.answers.wait()
        super().write(step, values, wall_time)


def run(argv: Sequence[str]) -> int:
    """Measure, print both tables, and write outputs.md."""
    options = _parser().parse_args(argv)
    if options.rounds < 2:
        raise ConfigError(f"--rounds is {options.rounds}; the median needs 2 or more")
    with tempfile.TemporaryDirectory() as folder:
        costs = _table_of_costs(Path(folder), options.rounds)
        hang = _table_of_a_hang(Path(folder), options.hang, options.step)
    text = f"{costs}\n\n{hang}"
    print(text)
    write(options.out, "outputs.md", text)
    return 0


def _table_of_costs(folder: Path, rounds: int) -> str:
    with MetricsLogger("costs", folder) as logger:
        bodies: dict[str, Callable[[int], object]] = {
            "log_metrics": lambda step: logger.log_metrics(_NUMBERS, step)
        }
        ends = _add_others(bodies, folder)
        seconds: dict[str, list[float]] = {name: [] for name in bodies}
        for step in range(rounds):
            for name in random.sample(sorted(bodies), len(bodies)):
                seconds[name].append(_timed(bodies[name], step))
        alone = [_timed(bodies["log_metrics"], step) for step in range(rounds, 9 * rounds)]
        for end in ends:
            end()
    rows = [[name, *_quartiles(times)] for name, times in seconds.items()]
    return markdown(
        ["100 numbers", "lower quartile, us", "median, us"],
        [*rows, ["log_metrics in a loop", *_quartiles(alone)]],
    )


def _add_others(bodies: dict[str, Callable[[int], object]], folder: Path) -> list[Callable[[], object]]:
    """Add the calls of other writers; return what closes them."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "bare"))
    bodies["100 calls of add_scalar"] = lambda step: [
        writer.add_scalar(n, v, step) for n, v in _NUMBERS.items()
    ]
    try:
        import wandb
    except ImportError:
        return [writer.close]
    settings = wandb.Settings(console="off", x_disable_stats=True, disable_git=True)
    offline: Any = wandb.init(project="benchmark", dir=str(folder), mode="offline", settings=settings)
    bodies["W&B offline"] = lambda step: offline.log(_NUMBERS, step=step)
    return [writer.close, offline.finish]


def _table_of_a_hang(folder: Path, hang: float, pause: float) -> str:
    """Return delays where an output hangs, and where it answers at once: the machine's share of them."""
    rows = [[what, *_loop(folder / what, hang, pause, what == "hangs")] for what in ("answers", "hangs")]
    header = ["the output", "steps", "median, us", "99.9 %, us", "longest, us", "arrived", "dropped"]
    return f"For {hang:g} s:\n\n{markdown(header, rows)}"


def _loop(folder: Path, seconds: float, pause: float, hangs: bool) -> list[str]:
    sink = HangingSink()
    if not hangs:
        sink.answers.set()
    delays: list[float] = []
    with MetricsLogger("hang", folder, sinks=[lambda: sink]) as logger:
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            delays.append(_timed(lambda step: logger.log_metrics(_NUMBERS, step), len(delays)))
            time.sleep(pause)
        sink.answers.set()
    places = (len(delays) // 2, len(delays) * 999 // 1000, len(delays) - 1)
    times = [f"{1e6 * sorted(delays)[place]:,.0f}" for place in places]
    return [str(len(delays)), *times, str(len(sink.records)), str(len(delays) - len(sink.records))]


def _timed(call: Callable[[int], object], step: int) -> float:
    begun = time.perf_counter()
    call(step)
    return time.perf_counter() - begun


def _quartiles(seconds: list[float]) -> list[str]:
    return [f"{1e6 * sorted(seconds)[len(seconds) // 4]:,.1f}", f"{1e6 * median(seconds):,.1f}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark.py outputs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="calls of each writer (default 300)")
    parser.add_argument("--hang", type=float, default=60.0, help="seconds that an output hangs (default 60)")
    parser.add_argument("--step", type=float, default=0.01, help="seconds of a step beside (default 0.01)")
    parser.add_argument("--out", default="results/benchmarks", help="folder of outputs.md")
    return parser
