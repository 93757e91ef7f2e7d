"""The faults: what the victim does in a run of syncs, and what each other rank has to learn of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hjepa_dist_metrics import Collapse, MetricCollection, MetricsError, WeightedMean

Mode = Literal["inline", "background"]
TIMEOUT = 2.0  # seconds of a sync
SYNCS = 4
FAULT_AT = 2  # syncs before the fault
_LATE = TIMEOUT + 1.5
_DIM = 16
ROWS = 8


@dataclass(frozen=True)
class Fault:
    """Describe a fault: `act` is called on the victim before its sync number FAULT_AT.

    `errors` are the names of the errors that the ranks may get; none: all syncs succeed. `silent`: the victim
    does not answer.
    """

    name: str
    errors: tuple[str, ...] = ()
    act: Callable[[MetricCollection], None] | None = None
    silent: bool = False


def _die(metrics: MetricCollection) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit(metrics: MetricCollection) -> None:
    os._exit(1)


def _stop(metrics: MetricCollection) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _come_late(metrics: MetricCollection) -> None:
    time.sleep(_LATE)


def _leave(metrics: MetricCollection) -> None:
    raise SystemExit  # the loop of this rank ends early, by itself


def _have_one_more(metrics: MetricCollection) -> None:
    metrics.add("of this rank alone", WeightedMean("alone"))


def _have_another_width(metrics: MetricCollection) -> None:
    metrics.remove("collapse")
    metrics.add("collapse", Collapse(_DIM + 1))


def _take_a_slow_breath(metrics: MetricCollection) -> None:
    time.sleep(TIMEOUT / 4)


_LOST = ("RankFailureError", "SyncTimeoutError")
FAULTS = (
    Fault("none"),
    Fault("a pause shorter than the limit", (), _take_a_slow_breath),
    Fault("killed (SIGKILL)", _LOST, _die, silent=True),
    Fault("exits with an error", _LOST, _exit, silent=True),
    Fault("ends its loop early", _LOST, _leave),
    Fault("stopped (SIGSTOP)", ("SyncTimeoutError",), _stop, silent=True),
    Fault("comes after the limit", ("SyncTimeoutError",), _come_late),
    Fault("has one metric more", ("DesyncError",), _have_one_more),
    Fault("has states of another width", ("DesyncError",), _have_another_width),
)


def expected_mean(world_size: int, syncs: int) -> float:
    """Return the mean over all ranks' updates of 1 + rank + world_size * sync, up to a sync."""
    numbers = [1 + rank + world_size * sync for sync in range(syncs + 1) for rank in range(world_size)]
    return sum(numbers) / len(numbers)


def body(rank: int, world_size: int, victim: int, name: str, mode: Mode) -> dict[str, Any]:
    """Sync a few times; return the values in order, and the error that ended it."""
    metrics = MetricCollection(
        {"mean": WeightedMean("mean"), "collapse": Collapse(_DIM)}, sync_timeout=TIMEOUT
    )
    values: list[float] = []
    rows: list[float] = []
    outcome: dict[str, Any] = {
        "values": values,
        "rows": rows,
        "error": None,
        "text": "",
        "ranks": (),
        "left": False,
    }
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    try:
        for sync in range(SYNCS):
            metrics["mean"].update(1.0 + rank + world_size * sync, 1)
            metrics["collapse"].update(torch.ones(ROWS, _DIM))
            if sync == FAULT_AT and rank == victim and fault.act is not None:
                fault.act(metrics)
            merged = metrics.compute() if mode == "inline" else metrics.compute_async().result(10 * TIMEOUT)
            values.append(float(merged["mean"]))
            rows.append(float(merged["collapse/num_samples"]))
    except MetricsError as error:
        outcome.update(error=type(error).__name__, text=str(error), ranks=tuple(getattr(error, "ranks", ())))
    except SystemExit:
        outcome.update(left=True)
    return outcome
