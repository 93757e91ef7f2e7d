"""One sync of many metrics: ours, the packed floor and every peer, and covariance against gather and SVD.

All methods run in one job, each in every round and in another order each time, so that they share whatever
else the machine does and meet each other's cold caches alike; a number is the median over rounds of the
slowest rank's time. Slow peers take part in fewer rounds, quick methods in more turns. Where ranks have not a
core of their own for each of their threads, some turns wait for a time slice, 2 to 4 ms: the ratio of the
lower quartiles tells what a method takes without.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from benchmarks import _covariance, _log_step, _training
from benchmarks._methods import METHODS, PEERS, Sync, quiet, require_peers
from benchmarks._plot import plot
from benchmarks._ranks import (
    counted,
    lower_quartile,
    markdown,
    median,
    milliseconds,
    on_ranks,
    positive,
    timed,
    whole,
    write,
)
from hjepa_dist_metrics.errors import ConfigError

Cell = dict[str, Any]
_FEWEST_ROUNDS = 3
_QUICK = 0.01  # seconds


def run(argv: Sequence[str]) -> int:
    """Measure, print the tables and write sync.md, sync.json and sync.png."""
    options = _parser().parse_args(argv)
    if not (options.metrics or (options.dims and options.covariance_rounds) or options.memory_rows):
        raise ConfigError("nothing to measure: give --metrics, --dims or --memory-rows")
    if options.metrics:
        _check_methods(options.methods)
    data: dict[str, list[Cell]] = {}
    parts = (_scalars, _log_steps, _training_thread, _covariances, _memory)
    sections = [part(options, data) for part in parts]
    text = "\n\n".join(section for section in sections if section)
    print(text)
    write(options.out, "sync.md", text)
    write(options.out, "sync.json", json.dumps(data, indent=1))
    if options.plot and "scalars" in data:
        print(f"\nplot: {plot(data['scalars'], options.out)}")
    return 0


def _scalars(options: argparse.Namespace, data: dict[str, list[Cell]]) -> str:
    if not options.metrics:
        return ""
    how = (options.methods, options.metrics, options.rounds, options.seconds)
    data["scalars"] = [cell for world in options.ranks for cell in on_ranks(world, measure, *how)]
    return report(data["scalars"])


def _log_steps(options: argparse.Namespace, data: dict[str, list[Cell]]) -> str:
    if not options.metrics or not options.log_step_rounds:
        return ""
    tables = []
    for world in options.ranks:
        cells = on_ranks(world, _log_step.measure, options.log_step_rounds)
        data.setdefault("log step", []).extend({**cell, "ranks": world} for cell in cells)
        tables.append(_log_step.report(cells, world))
    return "\n\n".join(tables)


def _training_thread(options: argparse.Namespace, data: dict[str, list[Cell]]) -> str:
    if not options.metrics:
        return ""
    data["training thread"] = on_ranks(options.ranks[0], _training.measure)
    return _training.report(data["training thread"], options.ranks[0])


def _covariances(options: argparse.Namespace, data: dict[str, list[Cell]]) -> str:
    if not (options.dims and options.covariance_rounds):
        return ""
    how = (options.rows, options.dims, options.covariance_rounds)
    data["covariance"] = [
        cell for world in options.ranks for cell in on_ranks(world, _covariance.measure, *how)
    ]
    return _covariance.report(data["covariance"])


def _memory(options: argparse.Namespace, data: dict[str, list[Cell]]) -> str:
    if not options.memory_rows:
        return ""
    how = (options.memory_rows, options.memory_dim)
    data["memory"] = on_ranks(options.ranks[0], _covariance.measure_memory, *how)
    return _covariance.memory_report(data["memory"])


def _check_methods(methods: Sequence[str]) -> None:
    known = ", ".join(METHODS)
    if not {"ours", "packed"} <= set(methods) <= set(METHODS):
        raise ConfigError(f"--methods takes ours, packed and any of {known}; got {', '.join(methods)}")
    require_peers(methods)


def measure(methods: Sequence[str], counts: Sequence[int], rounds: int, seconds: float) -> list[Cell]:
    """Return a cell for every method and number of metrics; runs on every rank."""
    quiet()
    return [cell for count in counts for cell in _measure_count(methods, count, rounds, seconds)]


def _measure_count(methods: Sequence[str], count: int, rounds: int, seconds: float) -> list[Cell]:
    rank, world = dist.get_rank(), dist.get_world_size()
    values = [0.25 * i + rank for i in range(count)]
    expected = [0.25 * i + (world - 1) / 2 for i in range(count)]
    syncs = {name: METHODS[name](values) for name in methods}
    traffic = {name: _check(name, sync, expected) for name, sync in syncs.items()}
    once = {name: _once(sync) for name, sync in syncs.items()}
    times: dict[str, list[float]] = {name: [] for name in syncs}
    for i in range(rounds):
        for name in _turns(once, i, rounds, seconds):
            times[name].append(timed(syncs[name]))
            _finish(syncs[name])
    return [
        {
            "method": name,
            "ranks": world,
            "metrics": count,
            "seconds": median(times[name]),
            "quartile": lower_quartile(times[name]),
            "rounds": len(times[name]),
            "calls": traffic[name][0],
            "sent_bytes": traffic[name][1],
        }
        for name in methods
    ]


def _check(name: str, sync: Sync, expected: Sequence[float]) -> tuple[int, int]:
    """Warm up, count, and make sure that the method measures the right thing."""
    sync()
    _finish(sync)
    with counted() as traffic:
        result = list(sync()) or _finish(sync)
    if not all(abs(a - b) < 1e-3 for a, b in zip(result, expected, strict=True)):
        raise RuntimeError(f"{name} returned {result[:3]}..., expected {expected[:3]}...")
    return traffic.calls, traffic.sent_bytes


def _finish(sync: Sync) -> list[float]:
    """Complete what a background method has left to do."""
    finish = getattr(sync, "finish", None)
    return [] if finish is None else list(finish())


def _once(sync: Sync) -> float:
    """Return about how long a method takes, the same on every rank."""
    timed(sync)  # the first time connects
    _finish(sync)
    once = timed(sync)
    _finish(sync)
    return once


def _turns(once: dict[str, float], i: int, rounds: int, seconds: float) -> list[str]:
    """Return the methods of a round in their order, another one each time: so each follows each other one.

    A slow method takes part in as many rounds as fit into `seconds`. The quick ones take as many turns in a
    round as there are slow ones, and two at least: theirs are the times that vary most.
    """
    share = {
        name: max(min(_FEWEST_ROUNDS, rounds), min(rounds, int(seconds / t))) for name, t in once.items()
    }
    slow = [name for name in once if once[name] > _QUICK]
    here = [name for name in slow if (i * share[name]) // rounds != ((i + 1) * share[name]) // rounds]
    turns = here + [name for name in once if name not in slow] * max(2, len(slow))
    random.Random(i).shuffle(turns)
    return turns


def report(cells: Sequence[Cell]) -> str:
    """Return the tables of all numbers of ranks in Markdown."""
    return "\n\n".join(_table(cells, world) for world in dict.fromkeys(cell["ranks"] for cell in cells))


def _table(cells: Sequence[Cell], world: int) -> str:
    here = {(c["method"], c["metrics"]): c for c in cells if c["ranks"] == world}
    methods = list(dict.fromkeys(method for method, _ in here))
    counts = list(dict.fromkeys(count for _, count in here))
    most = counts[-1] if 100 not in counts else 100
    rows = []
    for method in methods:
        cell = here[method, most]
        ratio = cell["seconds"] / here["packed", most]["seconds"]
        quartile = cell["quartile"] / here["packed", most]["quartile"]
        ours = cell["seconds"] / here["ours", most]["seconds"]
        times = [milliseconds(here[method, count]["seconds"]) for count in counts]
        cost = [str(cell["calls"]), f"{cell['sent_bytes']:,}"]
        rows.append([method, *times, f"{ratio:.2f}", f"{quartile:.2f}", f"{ours:.1f}", *cost])
    head = [
        f"{world} ranks, ms",
        *(f"{count}" for count in counts),
        f"over packed at {most}",
        "of the lower quartiles",
        "over ours",
        "calls",
        "bytes a rank",
    ]
    return markdown(head, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py sync",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--ranks", type=whole(1), nargs="+", default=[2, 4], help="numbers of gloo ranks")
    add(
        "--metrics", type=whole(1), nargs="*", default=[1, 10, 50, 100, 200], help="numbers of scalar metrics"
    )
    add("--methods", nargs="+", default=list(METHODS), help=f"ours, packed and others ({', '.join(PEERS)})")
    add("--rounds", type=whole(1), default=40, help="rounds in which every method runs once")
    add("--seconds", type=positive, default=4.0, help="time for one method at one size, about")
    add("--log-step-rounds", type=whole(0), default=40, help="rounds of a monitor's log step; 0: no table")
    add("--rows", type=whole(2), default=4096, help="rows a rank of the covariance comparison")
    add(
        "--dims",
        type=whole(1),
        nargs="*",
        default=[],
        help="widths of its rows, 384 for instance; none: no table",
    )
    add("--covariance-rounds", type=whole(0), default=5, help="its rounds; 0: no table")
    add(
        "--memory-rows",
        type=whole(2),
        nargs="*",
        default=[],
        help="rows a rank of the memory table, 1024 4096 16384 for instance; none: no table",
    )
    add("--memory-dim", type=whole(1), default=1024, help="their width")
    add("--out", default="results/benchmarks", help="folder of sync.md, sync.json and sync.png")
    add("--no-plot", dest="plot", action="store_false", help="do not draw sync.png")
    return parser
