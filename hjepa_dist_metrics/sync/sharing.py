"""The work that merged states ask for, spread over the ranks: each task runs on one of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_dist_metrics.distributed.channel import Channel
from hjepa_dist_metrics.states import State, Task
from hjepa_dist_metrics.sync.plan import Plan

# What a sum of a few thousand numbers takes over TCP, for each rank of the ring: less work is not worth one.
_SECONDS_A_RANK = 1e-4
# The others wait in a collective, which has a timeout: of D = 2048 two spectra take 2 s on one core.
_LONGEST_SECONDS = 5.0


def worth_sharing(plan: Plan, world_size: int) -> bool:
    """Return whether ranks that share the plan's work save more than an exchange of the results takes.

    Not where others might wait too long for a rank whose single task is large.
    """
    gain = plan.work * (world_size - 1)
    return gain > _SECONDS_A_RANK * world_size**2 and plan.longest_work <= _LONGEST_SECONDS


def share(channel: Channel, states: Sequence[State]) -> None:
    """Run each task of the merged states on one rank and keep its result on all. A collective call."""
    tasks = [task for state in states for task in state.tasks()]
    if not tasks:
        return
    sizes = [task.size for task in tasks]
    results = torch.zeros(sum(sizes), dtype=torch.float64, device="cpu")
    parts = results.split_with_sizes(sizes)
    for task, part, owner in zip(tasks, parts, owners(tasks, channel.world_size), strict=True):
        if owner == channel.rank:
            _run(task, part)
    results = channel.all_reduce_sum(results)
    for task, part in zip(tasks, results.split_with_sizes(sizes), strict=True):
        task.keep(part)


def _run(task: Task, part: Tensor) -> None:
    """Put a task's result into `part`; NaN where it fails, for the other ranks are waiting."""
    try:
        part.copy_(task.run())
    except Exception as error:
        warnings.warn(f"eigenvalues are reported as NaN: {type(error).__name__}: {error}", stacklevel=2)
        part.fill_(float("nan"))


def owners(tasks: Sequence[Task], world_size: int) -> list[int]:
    """Return the rank of each task: the longest first, to the rank that has least to do so far."""
    loads, found = [0.0] * world_size, [0] * len(tasks)
    for index in sorted(range(len(tasks)), key=lambda i: -tasks[i].seconds):
        rank = loads.index(min(loads))
        found[index] = rank
        loads[rank] += tasks[index].seconds
    return found
