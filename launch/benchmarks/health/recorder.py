"""Record runs: train each, read back what its monitor published, and store it with the facts."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks._ranks import on_ranks
from benchmarks.health.catalogue import RunSpec, all_runs, is_held_out, recipe_class
from benchmarks.health.job import Job
from benchmarks.health.traces import SUFFIX, Trace
from hjepa_dist_metrics import ProcessContext
from hjepa_dist_metrics.sinks.jsonl import read_jsonl

# What the judge itself writes is no observation.
_JUDGEMENTS = ("alerts/", "health/")


def record(spec: RunSpec) -> Trace:
    """Train a run and return its trace; of many ranks the first one's holds what was published."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        job = train(spec, place)
        logs = _published(place) if job.context.is_main else []
        return Trace(spec.name, description(spec, job), logs, job.facts.series)


def train(spec: RunSpec, log_dir: str) -> Job:
    """Train a run; the monitor writes JSON lines in `log_dir`."""
    context = ProcessContext.current(device="cpu")
    recipe = recipe_class(spec.recipe)(spec.setting, context)
    failure, strength = spec.failure, spec.strength or 0.0
    plant = None if failure is None else lambda job: failure.plant(job, strength)
    job = Job(recipe, context, plant, spec.planted_at or 0, spec.steps)
    job.run(monitor_config(log_dir, recipe.log_every))
    return job


def monitor_config(log_dir: str, every: int) -> dict[str, Any]:
    """Return the settings of a recorded run: all families at each log, JSON lines, no judgement."""
    return {
        "experiment_name": "run",
        "log_dir": log_dir,
        "log_frequency": every,
        "sync": "inline",
        "cadence": {"representations": every, "system": every, "histograms": 0, "figures": 0},
        "tensorboard": {"enabled": False},
        "figures": {"enabled": False},
        "alerts": {"enabled": False},
        "dashboards": [],
    }


def description(spec: RunSpec, job: Job) -> dict[str, Any]:
    """Return what a trace says of its run."""
    failure, recipe = spec.failure, job.recipe
    return {
        "recipe": spec.recipe,
        "seed": spec.setting.seed,
        "strength": spec.strength,
        "rate_factor": spec.setting.rate_factor,
        "ranks": spec.ranks,
        "failure": None if failure is None else failure.name,
        "planted_at": spec.planted_at,
        "expect": None if failure is None else failure.finding,
        "accept": [] if failure is None else list(failure.accept),
        "measure": None if failure is None else failure.measure,
        "held_out": is_held_out(spec.setting.seed),
        "steps": job.steps,
        "batch_size": recipe.samples * spec.ranks,
        "log_every": recipe.log_every,
    }


def _published(log_dir: str) -> list[tuple[int, dict[str, float]]]:
    """Return the numbers that the monitor wrote, in order."""
    logs = []
    for line in read_jsonl(Path(log_dir) / "metrics/run.jsonl"):
        step = int(line.pop("step"))
        numbers = {
            tag: float(value)
            for tag, value in line.items()
            if isinstance(value, (int, float)) and tag != "wall_time" and not tag.startswith(_JUDGEMENTS)
        }
        if numbers:
            logs.append((step, numbers))
    return logs


def missing(specs: Sequence[RunSpec], folder: Path) -> list[RunSpec]:
    """Return the runs that have no trace yet."""
    return [spec for spec in specs if not (folder / f"{spec.name}{SUFFIX}").exists()]


def record_all(specs: Sequence[RunSpec], folder: Path, done: Callable[[str], None]) -> list[str]:
    """Record runs; a trace is stored as soon as its run is over.

    Those on many ranks share a group for each number of ranks. Return the names of the runs that failed, with
    a traceback on the error stream: they do not keep the others from being recorded.
    """
    failed = []
    for group in groups(specs):
        try:
            if group[0].ranks == 1:
                record(group[0]).save(folder)
            else:
                on_ranks(group[0].ranks, record_ranks, [spec.name for spec in group], str(folder))
        except Exception:
            traceback.print_exc()
        failed += [spec.name for spec in missing(group, folder)]
        for spec in group:
            done(spec.name)
    return failed


def groups(specs: Sequence[RunSpec]) -> list[list[RunSpec]]:
    """Return runs to record together: each by itself, and at the end those of each number of ranks."""
    alone = [[spec] for spec in specs if spec.ranks == 1]
    numbers = sorted({spec.ranks for spec in specs} - {1})
    return alone + [[spec for spec in specs if spec.ranks == ranks] for ranks in numbers]


def record_ranks(names: Sequence[str], folder: str) -> None:
    """Record runs as one rank of their group; the first one stores them."""
    specs = {spec.name: spec for spec in all_runs()}
    for name in names:
        trace = record(specs[name])
        if dist.get_rank() == 0:
            trace.save(Path(folder))
