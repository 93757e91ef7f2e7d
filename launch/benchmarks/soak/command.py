"""The command: one long segment without faults, then kills at random times, each followed by a resume."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks._ranks import markdown, positive, whole, write
from benchmarks.faults.processes import Ranks
from benchmarks.soak import growth, points
from benchmarks.soak.job import LOG_EVERY, Task, body
from hjepa_dist_metrics import ConfigError
from hjepa_dist_metrics.reference import checkpoint

_CONTEXT = """\
Ranks train a small model under a monitor that writes JSON lines and event files. For half of the time nothing
happens to them: resident memory, descriptors, threads and waiting writes must stay flat. Then ranks are
killed at random times, the job resumes from its newest checkpoint each time, and in the end each point is
counted. The exit code is 1 where anything grows, is lost or doubled.
"""
_CALM_SHARE = 0.5
_FINAL_SECONDS = 3.0
_FOR_EVER = 1e9
_PATIENCE = 120.0  # for ranks to end


def run(argv: Sequence[str]) -> int:
    """Soak, print the tables, write soak.md and soak.json."""
    options = _parser().parse_args(argv)
    if sys.platform != "linux":
        raise ConfigError(f"a soak reads what processes hold from /proc, which {sys.platform} does not have")
    seconds = 3600.0 * options.hours if options.hours else 60.0 * options.minutes
    usual = round(5 * options.hours) if options.hours else 4
    kills = usual if options.kills is None else options.kills
    with tempfile.TemporaryDirectory() as folder:
        found = soak(folder, seconds, options.ranks, kills, options.pause, random.Random(options.seed))
    text = report(found)
    print(text)
    write(options.out, "soak.md", text)
    write(options.out, "soak.json", json.dumps(found, indent=1))
    return 0 if found["held"] else 1


def soak(
    folder: str, seconds: float, ranks: int, kills: int, pause: float, chance: random.Random
) -> dict[str, Any]:
    """Train calmly, then kill and resume `kills` times, then end well; return what was found."""
    least = LOG_EVERY * growth.LEAST
    calm = Task(folder, 0, _CALM_SHARE * seconds, pause, least)
    calm_end = _whole_segment(calm, ranks, _CALM_SHARE * seconds)
    segment_seconds = (1.0 - _CALM_SHARE) * seconds / max(1, kills)
    killed = [
        _killed_segment(Task(folder, 1 + i, _FOR_EVER, pause), ranks, segment_seconds, chance)
        for i in range(kills)
    ]
    last = Task(folder, 1 + kills, _FINAL_SECONDS, pause)
    last_step = _whole_segment(last, ranks, _FINAL_SECONDS)
    counted = points.count(last, last_step)
    grown = {rank: growth.growth(growth.read(calm.samples(rank))) for rank in range(ranks)}
    samples = min(len(growth.read(calm.samples(rank))) for rank in range(ranks))
    flat = all(kind["flat"] for kinds in grown.values() for kind in kinds.values())
    complete = not any(files.lost or files.doubled for files in counted.values())
    return {
        "seconds": seconds,
        "ranks": ranks,
        "calm steps": calm_end,
        "samples": samples,
        "kills": killed,
        "last step": last_step,
        "growth": grown,
        "points": {name: asdict(files) for name, files in counted.items()},
        "held": flat and complete,
    }


def _whole_segment(task: Task, ranks: int, seconds: float) -> int:
    """Run a job to its end; return its last step, the same on all ranks."""
    with Ranks(ranks, body, task) as job:
        steps = job.answers(seconds + _PATIENCE)
    if set(steps) != set(range(ranks)) or len(set(steps.values())) != 1:
        raise RuntimeError(f"segment {task.segment}: expected a last step of {ranks} ranks, got {steps}")
    return int(steps[0])


def _killed_segment(task: Task, ranks: int, seconds: float, chance: random.Random) -> dict[str, Any]:
    """Start a job, and kill one rank at a random time after it has joined the group; return what was done."""
    victim, delay = chance.randrange(ranks), chance.uniform(0.0, seconds)
    before = checkpoint.newest(task.checkpoints)
    with Ranks(ranks, body, task) as job:
        job.wait_for_start()
        time.sleep(delay)
        job.kill(victim)
        if chance.random() < 0.5:  # all at once, as a machine dies; else the others find out by themselves
            ended = "all killed"
        else:
            job.answers(_PATIENCE)
            ended = "the others ended by themselves"
    after = checkpoint.newest(task.checkpoints)
    return {
        "rank": victim,
        "after, s": round(delay, 2),
        "others": ended,
        "checkpoints": [path and path.name for path in (before, after)],
    }


def report(found: dict[str, Any]) -> str:
    """Return the tables in Markdown."""
    head = ["calm: first third, last third", *[f"rank {rank}" for rank in found["growth"]]]
    kinds = next(iter(found["growth"].values()))
    rows = [[kind, *[_cell(kind, own[kind]) for own in found["growth"].values()]] for kind in kinds]
    counted = [
        [name, f"{files['expected']}", f"{len(files['lost'])}", f"{len(files['doubled'])}"]
        for name, files in found["points"].items()
    ]
    steps = f"{found['last step'] + 1} steps on {found['ranks']} ranks"
    return "\n\n".join(
        [
            markdown(head, rows),
            markdown(["points", "expected", "lost", "doubled"], counted),
            f"{len(found['kills'])} kills and resumes, {steps} in {found['seconds']:.0f} s: "
            + ("held." if found["held"] else "NOT held."),
        ]
    )


def _cell(kind: str, numbers: dict[str, Any]) -> str:
    unit = 2.0**20 if kind == "resident" else 1.0
    shown = f"{numbers['first'] / unit:.0f}, {numbers['last'] / unit:.0f}"
    return shown + (" MiB" if kind == "resident" else "") + ("" if numbers["flat"] else " GROWS")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py soak", description=_CONTEXT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--hours", type=positive, help="how long, instead of --minutes")
    add("--minutes", type=positive, default=2.0, help="how long (default 2)")
    add("--ranks", type=whole(1), default=2, help="ranks (default 2)")
    add("--kills", type=whole(0), help="kills and resumes (default 4, with --hours 5 an hour)")
    add("--pause", type=positive, default=0.02, help="seconds of rest after each step (default 0.02)")
    add("--seed", type=int, default=0, help="seed of what is killed, and when (default 0)")
    add("--out", default="results/benchmarks", help="folder of soak.md and soak.json")
    return parser
