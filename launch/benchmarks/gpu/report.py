"""The tables of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks._ranks import markdown
from benchmarks.gpu.training import REPRESENTATIONS

_DEFAULT_GOAL, _REPRESENTATIONS_GOAL = 0.5, 2.0  # percent


def report(found: Mapping[str, Any]) -> str:
    """Return all tables in Markdown, of the parts that are there."""
    parts = [f"{found['device']}, torch {found['torch']}"]
    if found["training"]:
        parts += [_training(found["training"]), _goals(found["training"], found["rehearsal"])]
    if "gradients" in found:
        parts.append(_gradients(found["gradients"]))
    if "covariances" in found:
        parts += [_covariance(part) for part in found["covariances"]]
    return "\n\n".join(parts)


def _training(jobs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{job['job']}: {kind}",
            f"{numbers['ms a step']:.2f}",
            f"{numbers['overhead, %']:+.2f}",
            f"{numbers['smallest, %']:+.2f} to {numbers['largest, %']:+.2f}",
            f"{numbers['host, ms a step']:.3f}",
        ]
        for job in jobs
        for kind, numbers in job["kinds"].items()
    ]
    head = ["training", "ms a step", "overhead, %", "of single rounds", "training thread, ms a step"]
    return markdown(head, rows)


def _goals(jobs: Sequence[Mapping[str, Any]], rehearsal: bool) -> str:
    lines = []
    for job in jobs:
        frequent = job["kinds"][REPRESENTATIONS]["overhead, %"]
        lines.append(
            f"{job['job']}: {job['rounds']} rounds of {job['block']} steps; default cadences "
            f"{_judged(job['default cadences'], _DEFAULT_GOAL, rehearsal)}; representations every "
            f"{job['representations']} steps {_judged(frequent, _REPRESENTATIONS_GOAL, rehearsal)}."
        )
    return "\n".join(lines)


def _judged(percent: float, goal: float, rehearsal: bool) -> str:
    verdict = "not judged" if rehearsal else "met" if percent < goal else "missed"
    return f"{percent:+.2f} % (goal {goal} %: {verdict})"


def _gradients(found: Mapping[str, Any]) -> str:
    one = found["one read, ms"]
    rows = [
        [name, *_milliseconds(cost), f"{cost['device, ms'] / one:.2f}"]
        for name, cost in found["ways"].items()
    ]
    head = [
        f"{found['tensors']} gradients, {found['bytes'] / 1e6:,.0f} MB, read in {one:.3f} ms at "
        f"{found['bytes a second'] / 1e9:,.0f} GB/s",
        "device, ms",
        "host, ms",
        "reads",
    ]
    return markdown(head, rows)


def _covariance(part: Mapping[str, Any]) -> str:
    slow = "slow" if part["float64 is slow"] else "fast"
    head = [f"D = {part['width']}, {part['rows']:,} rows, float64 is {slow}", "device, ms", "host, ms"]
    table = markdown(head, [[name, *_milliseconds(cost)] for name, cost in part["ways"].items()])
    return f"{table}\n\nErrors: covariance {part['error']:.0e}, digits {part['error of digits']:.0e}."


def _milliseconds(cost: Mapping[str, float]) -> list[str]:
    return [f"{cost['device, ms']:.3f}", f"{cost['host, ms']:.3f}"]
