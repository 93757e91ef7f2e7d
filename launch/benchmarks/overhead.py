"""How much slower training is with all metrics on: the default run, logging off against on, in turns.

Four kinds of run take turns: `off` (no monitor at all, torch's own gradient clipping), `observe` (metrics are
updated, nothing is synced or written), `sync` (at the default cadences, merged but not written) and `all`. A
run's time is that of its steps, the first ones left out; syncs and files run on while the next step trains.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import pstats
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks._ranks import markdown, median, milliseconds, on_ranks, write
from hjepa_dist_metrics import LoggingConfig, ProcessContext
from hjepa_dist_metrics.reference import trainer as training_loop
from hjepa_dist_metrics.reference.arguments import RunConfig, parse
from hjepa_dist_metrics.reference.workloads import workload_kind

KINDS = ("off", "observe", "sync", "all")
GOAL = 1.05
_WARM = 5
_MOST_FUNCTIONS = 10
_CONFIG = Path(__file__).resolve().parents[2] / "configs/default.yaml"


class NoMonitor(AbstractContextManager["NoMonitor"]):
    """Do what a loop needs and watch nothing."""

    def __init__(self, model: nn.Module, *_: Any, **__: Any) -> None:
        self.model = model
        self.step_number = self.last_step = 0
        self.latest: dict[str, float] = {}

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Return the loader's batches."""
        return iter(loader)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip as torch does."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def step(self, *_: Any, **__: Any) -> None:
        """Count the step."""
        self.last_step = self.step_number
        self.step_number += 1

    def due(self, family: str) -> bool:
        """Return False: nothing is logged."""
        return False

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        """Stand in for the monitor's other methods: do nothing, also in a `with`."""
        plain: dict[str, Any] = {
            "run_name": "off",
            "first": {},
            "alerts": [],
            "failures": [],
            "should_stop": None,
        }
        return plain[name] if name in plain else lambda *_, **__: nullcontext()


def run(argv: Sequence[str]) -> int:
    """Measure, print the table and what dominates, and write overhead.md."""
    options = _parser().parse_args(argv)
    overrides = [*options.overrides, "--training.max_steps", str(options.steps + _WARM)]
    overrides += ["--training.probe_every_epochs", "0"]
    arguments = ["--config", options.config, *overrides]
    parse(arguments)  # so that a mistake is told once and not by every rank
    with tempfile.TemporaryDirectory() as folder:
        times, hot = on_ranks(options.ranks, measure, arguments, options.rounds, folder)
    text = "\n\n".join([report(times, options.ranks), hot])
    print(text)
    write(options.out, "overhead.md", text)
    return 0


def measure(arguments: Sequence[str], rounds: int, folder: str) -> tuple[dict[str, list[float]], str]:
    """Return the seconds a step of every run by kind, and where the training thread's time goes."""
    torch.set_num_threads(1)
    config = parse(arguments)
    settings = {kind: variant(config.logging, kind, folder) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            times[kind].append(seconds_a_step(config, settings[kind], watched=kind != "off"))
    profile = cProfile.Profile()
    profile.runcall(seconds_a_step, config, settings["all"], watched=True)
    return times, hottest(profile)


def variant(logging: LoggingConfig, kind: str, folder: str) -> LoggingConfig:
    """Return the run's logging settings, reduced to what a kind of run does."""
    changed = dataclasses.replace(logging, log_dir=folder, experiment_name=kind)
    if kind != "all":
        changed = dataclasses.replace(
            changed,
            tensorboard=dataclasses.replace(logging.tensorboard, enabled=False),
            jsonl=dataclasses.replace(logging.jsonl, enabled=False),
        )
    if kind in ("off", "observe"):
        never = {field.name: 0 for field in dataclasses.fields(logging.cadence)}
        changed = dataclasses.replace(changed, cadence=dataclasses.replace(logging.cadence, **never))
    return changed


def seconds_a_step(config: RunConfig, logging: LoggingConfig, watched: bool) -> float:
    """Train and return the mean seconds of a step."""
    context = ProcessContext.current()
    kind = workload_kind(config.workload)
    workload = kind.build(config.model, config.data, config.training, context)
    trainer = training_loop.Trainer(workload, config.training, logging, context)
    ends: list[float] = []

    def tick(step: int, total: int, latest: Mapping[str, float]) -> None:
        ends.append(time.perf_counter())

    with patch.object(training_loop, "TrainingMonitor", NoMonitor) if not watched else nullcontext():
        trainer.run(tick)
    return (ends[-1] - ends[_WARM - 1]) / (len(ends) - _WARM)


def hottest(profile: cProfile.Profile) -> str:
    """Return a table of the package's functions in which the training thread spends most time."""
    found = []
    stats: dict[Any, Any] = vars(pstats.Stats(profile))["stats"]
    for (file, line, name), (_, calls, _, cumulative, _) in stats.items():
        _, package, rest = file.rpartition("hjepa_dist_metrics/")
        if package and not rest.startswith(("reference/", "distributed/")):
            found.append((cumulative, f"{rest}:{line} {name}", calls))
    rows = [
        [f"`{name}`", str(calls), milliseconds(seconds)]
        for seconds, name, calls in sorted(found, reverse=True)[:_MOST_FUNCTIONS]
    ]
    return markdown(["training thread, whole profiled run", "calls", "ms, with what they call"], rows)


def report(times: Mapping[str, Sequence[float]], ranks: int) -> str:
    """Return the table of the kinds of run and the verdict, in Markdown."""
    middle = {kind: median(values) for kind, values in times.items()}
    # Each round's runs are neighbours in time: their ratio is steadier than the ratio of the medians.
    ratio = {kind: median([t / o for t, o in zip(times[kind], times["off"], strict=True)]) for kind in times}
    rows = [[kind, milliseconds(middle[kind]), f"{100 * (ratio[kind] - 1):+.1f} %"] for kind in KINDS]
    table = markdown([f"default run, {ranks} ranks", "ms a step", "over off"], rows)
    parts = {
        "observing": ratio["observe"] - 1,
        "syncing": ratio["sync"] - ratio["observe"],
        "writing": ratio["all"] - ratio["sync"],
    }
    dominant = max(parts, key=lambda name: parts[name])
    shares = ", ".join(f"{name} {100 * part:+.1f} %" for name, part in parts.items())
    verdict = "within" if ratio["all"] <= GOAL else "above"
    goal = f"{verdict} the goal of {100 * (GOAL - 1):.0f} %"
    return f"{table}\n\nMedian of {len(times['off'])} rounds, {goal}. {shares}: {dominant} dominates."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--ranks", type=int, default=2, help="gloo ranks (default 2)")
    add("--steps", type=int, default=40, help="timed steps of a run (default 40)")
    add("--rounds", type=int, default=7, help="runs of each kind (default 7)")
    add("--config", default=str(_CONFIG), help="the run's YAML file (default configs/default.yaml)")
    add("--out", default="results/benchmarks", help="folder of overhead.md")
    add("overrides", nargs="*", help="after --: overrides of the run, --section.key value")
    return parser
