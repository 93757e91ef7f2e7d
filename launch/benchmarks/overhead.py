"""How much slower training is with all metrics on: the default run, logging off against on, in turns.

Four kinds of run take turns of a log's steps in one process: `off` (no monitor at all, torch's own gradient
clipping), `observe` (metrics are updated, nothing is synced or written), `sync` (at the default cadences,
but neither written nor drawn) and `all`. Each is the whole default run, since what is done once, as figures
are, must be shared out over its own number of steps. Milliseconds are those of the steps, the first ones left
out: of each step the fastest of all rounds, since all else that the machine does makes steps slower and none
faster. Processor seconds are medians, those of all ranks while a kind has its turn, background threads and
the process that draws included.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks._profile import hottest, observer_shares, timed_observers
from benchmarks._ranks import markdown, median, milliseconds, on_ranks, write
from benchmarks._turns import Turn, in_turns
from hjepa_dist_metrics import LoggingConfig, ProcessContext, TrainingMonitor
from hjepa_dist_metrics.reference import trainer as training_loop
from hjepa_dist_metrics.reference.arguments import RunConfig, parse
from hjepa_dist_metrics.reference.workloads import workload_kind

KINDS = ("off", "observe", "sync", "all")
GOAL = 1.05
_WARM = 5
_this_run = threading.local()
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


@dataclass(frozen=True)
class Cost:
    """Hold what a run took: seconds of every step, and processor seconds of the whole, rank by rank summed.

    `training` is the training threads' time, `background` that of all other threads, `drawing` that of the
    process that draws figures. `count` is the number of steps, the first ones included.
    """

    steps: tuple[float, ...]
    training: float
    background: float
    drawing: float
    count: int

    @property
    def processor(self) -> float:
        """Return all processor seconds."""
        return self.training + self.background + self.drawing


def run(argv: Sequence[str]) -> int:
    """Measure, print the tables and what dominates, and write overhead.md."""
    options = _parser().parse_args(argv)
    overrides = [*options.overrides, "--training.probe_every_epochs", "0"]
    if options.steps is not None:
        overrides += ["--training.max_steps", str(options.steps + _WARM)]
    arguments = ["--config", options.config, *overrides]
    parse(arguments)  # so that a mistake is told once and not by every rank
    with tempfile.TemporaryDirectory() as folder:
        found = on_ranks(options.ranks, measure, arguments, options.rounds, folder, options.profile)
    costs, steps, hot = found
    text = "\n\n".join(filter(None, [report(costs, options.ranks, steps), hot]))
    print(text)
    write(options.out, "overhead.md", text)
    return 0


def measure(
    arguments: Sequence[str], rounds: int, folder: str, profiled: bool
) -> tuple[dict[str, list[Cost]], int, str]:
    """Return what every run took by kind, its steps, and where the training thread's time goes."""
    torch.set_num_threads(1)
    config = parse(arguments)
    settings = {kind: variant(config.logging, kind, folder) for kind in KINDS}
    costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
    steps = 0
    for number in range(rounds):
        found = one_round(config, settings, number)
        steps = found["off"].count
        for kind in KINDS:
            costs[kind].append(found[kind])
    if not profiled:
        return costs, steps, ""
    step = median([cost.training / cost.count for cost in costs["off"]]) / dist.get_world_size()
    with timed_observers() as seconds:
        train(config, settings["all"], lambda: None, watched=True)
    shares = observer_shares(seconds, steps, step)
    profile = cProfile.Profile(time.thread_time)  # which other work on the machine does not lengthen
    profile.runcall(train, config, settings["all"], lambda: None, watched=True)
    return costs, steps, f"{shares}\n\n{hottest(profile)}"


def variant(logging: LoggingConfig, kind: str, folder: str) -> LoggingConfig:
    """Return the run's logging settings, reduced to what a kind of run does."""
    changed = dataclasses.replace(
        logging,
        log_dir=folder,
        experiment_name=kind,
        activations=dataclasses.replace(logging.activations, enabled=True, gradients=True),
        attention=dataclasses.replace(logging.attention, enabled=True),
    )
    if kind != "all":
        changed = dataclasses.replace(
            changed,
            tensorboard=dataclasses.replace(logging.tensorboard, enabled=False),
            jsonl=dataclasses.replace(logging.jsonl, enabled=False),
            figures=dataclasses.replace(logging.figures, enabled=False),
            cadence=dataclasses.replace(logging.cadence, figures=0),
        )
    if kind in ("off", "observe"):
        never = {field.name: 0 for field in dataclasses.fields(logging.cadence)}
        changed = dataclasses.replace(changed, cadence=dataclasses.replace(logging.cadence, **never))
    return changed


def one_round(config: RunConfig, settings: Mapping[str, LoggingConfig], number: int) -> dict[str, Cost]:
    """Train every kind of run once, in turns; return what each took.

    The order changes from round to round: a place in it, and in memory, is worth a percent or two.
    """
    first = number % len(KINDS)
    order = [*KINDS[first:], *KINDS[:first]]

    def body(kind: str) -> Callable[[Turn], Turn]:
        named = dataclasses.replace(settings[kind], experiment_name=f"{kind}{number}")

        def run(turn: Turn) -> Turn:
            train(config, named, turn.tick, watched=kind != "off")
            return turn

        return run

    turns = in_turns([body(kind) for kind in order], config.logging.log_frequency)
    return {kind: _cost(turn) for kind, turn in zip(order, turns, strict=True)}


def train(config: RunConfig, logging: LoggingConfig, tick: Callable[[], None], *, watched: bool) -> None:
    """Train; `tick` is called after every step."""
    context = ProcessContext.current()
    kind = workload_kind(config.workload)
    workload = kind.build(config.model, config.data, config.training, context)
    trainer = training_loop.Trainer(workload, config.training, logging, context)
    _this_run.watched = watched
    with patch.object(training_loop, "TrainingMonitor", _monitor):
        trainer.run(lambda step, total, latest: tick())


def _monitor(*arguments: Any, **options: Any) -> Any:
    """Make the monitor of the run on this thread."""
    return (TrainingMonitor if _this_run.watched else NoMonitor)(*arguments, **options)


def _cost(turn: Turn) -> Cost:
    """Add up what all ranks took."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, turn.seconds)
    training, threads, children = (sum(column) for column in zip(*every, strict=True))
    return Cost(tuple(turn.steps[_WARM - 1 :]), training, threads - training, children, len(turn.steps) + 1)


def report(costs: Mapping[str, Sequence[Cost]], ranks: int, steps: int) -> str:
    """Return the tables of the kinds of run and the verdict, in Markdown."""
    # Each round's runs are neighbours in time: their ratio is steadier than the ratio of the medians.
    rounds = {kind: list(zip(costs[kind], costs["off"], strict=True)) for kind in costs}
    fastest = {kind: fastest_step([cost.steps for cost in costs[kind]]) for kind in costs}
    time_over = {kind: fastest[kind] / fastest["off"] - 1 for kind in costs}
    work_over = {
        kind: median([c.processor / off.processor for c, off in pairs]) - 1 for kind, pairs in rounds.items()
    }
    rows = [
        [
            kind,
            milliseconds(fastest[kind]),
            f"{100 * time_over[kind]:+.1f} %",
            *(
                f"{median([getattr(cost, part) for cost in costs[kind]]):.2f}"
                for part in ("training", "background", "drawing", "processor")
            ),
            f"{100 * work_over[kind]:+.1f} %",
        ]
        for kind in KINDS
    ]
    head = [f"default run, {ranks} ranks", "ms a step", "over off"]
    head += ["processor s: training threads", "background", "drawing", "all", "over off"]
    verdict = "within" if 1 + time_over["all"] <= GOAL else "above"
    goal = f"{verdict} the goal of {100 * (GOAL - 1):.0f} % of the steps' time"
    measured = f"{len(costs['off'])} rounds of {steps} steps, {goal}."
    return f"{markdown(head, rows)}\n\n{measured} {_shares('Time', time_over)} {_shares('Work', work_over)}"


def fastest_step(runs: Sequence[Sequence[float]]) -> float:
    """Return the mean over a run's steps of the fastest that each was in any of the runs."""
    best: list[float] = [min(step) for step in zip(*runs, strict=True)]
    return sum(best) / len(best)


def _shares(what: str, over: Mapping[str, float]) -> str:
    parts = {
        "observing": over["observe"],
        "syncing": over["sync"] - over["observe"],
        "writing and drawing": over["all"] - over["sync"],
    }
    dominant = max(parts, key=lambda name: parts[name])
    shares = ", ".join(f"{name} {100 * part:+.1f} %" for name, part in parts.items())
    return f"{what}: {shares}; {dominant} dominates."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--ranks", type=int, default=2, help="gloo ranks (default 2)")
    add("--steps", type=int, help="timed steps of a run (default: the whole run)")
    add("--rounds", type=int, default=2, help="runs of each kind (default 2)")
    add("--profile", action="store_true", help="tell the share of each observer, and what is slow")
    add("--config", default=str(_CONFIG), help="the run's YAML file (default configs/default.yaml)")
    add("--out", default="results/benchmarks", help="folder of overhead.md")
    add("overrides", nargs="*", help="after --: overrides of the run, --section.key value")
    return parser
