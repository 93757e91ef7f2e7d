"""A sink that keeps what it gets, for tests and notebooks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from hjepa_dist_metrics.sinks.base import HParam
from hjepa_dist_metrics.values import Scalar, Value


@dataclass(frozen=True)
class Written:
    """Hold one call of `write`."""

    step: int
    values: dict[str, Value]
    wall_time: float


@dataclass
class MemorySink:
    """Keep every write in `records`, in order."""

    local: ClassVar[bool] = True
    records: list[Written] = field(default_factory=list)
    hparams: dict[str, HParam] = field(default_factory=dict)
    hparam_metrics: tuple[str, ...] = ()
    success: bool | None = None
    flushes: int = 0
    closed: bool = False

    def __str__(self) -> str:
        return "memory"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Keep the values of one step."""
        self.records.append(Written(step, dict(values), time.time() if wall_time is None else wall_time))

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        """Return the (step, value) pairs of a scalar tag, in the order written."""
        found = ((record.step, record.values.get(tag)) for record in self.records)
        return [(step, value.value) for step, value in found if isinstance(value, Scalar)]

    def tags(self) -> set[str]:
        """Return every tag written."""
        return {tag for record in self.records for tag in record.values}

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Keep the run's settings."""
        self.hparams, self.hparam_metrics = dict(hparams), tuple(metrics)

    def write_status(self, success: bool) -> None:
        """Keep how the run ended."""
        self.success = success

    def flush(self) -> None:
        """Count the call."""
        self.flushes += 1

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
