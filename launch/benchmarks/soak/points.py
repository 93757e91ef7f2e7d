"""Count the points that a run has written: each logged step once, in JSON lines and in event files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.soak.job import LOG_EVERY, Task
from hjepa_dist_metrics.sinks import read_jsonl

_TAG = "loss/total"


@dataclass(frozen=True)
class Points:
    """Hold how many points a file should have, and which it lacks or has twice."""

    expected: int
    lost: list[int]
    doubled: list[int]


def count(task: Task, last_step: int) -> dict[str, Points]:
    """Return the counts of both kinds of files."""
    lines = [int(record["step"]) for record in read_jsonl(task.lines) if _TAG in record]
    events = EventAccumulator(str(task.events), size_guidance={"scalars": 0}).Reload()
    steps = [event.step for event in events.Scalars(_TAG)]
    return {"JSON lines": compare(lines, last_step), "event files": compare(steps, last_step)}


def compare(steps: Iterable[int], last_step: int) -> Points:
    """Compare steps with those that a run without interruptions logs."""
    expected = set(range(0, last_step + 1, LOG_EVERY))
    found = Counter(steps)
    extra = [step for step in found if step not in expected]
    doubled = sorted([step for step, times in found.items() if times > 1] + extra)
    return Points(len(expected), sorted(expected - set(found)), doubled)
