"""Which rank slows the others down, and by what: its own compute or its wait for data.

A collective makes every rank's step equally long: the others wait for the slow one inside it. The time of a
step is therefore no measure; the time of a rank's own work is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import straggler_limits
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.states.ranks.rank_table import RankTable
from hjepa_dist_metrics.values import Image, Text

CAUSES = ("compute", "data")
SLOW = 0.75  # a rank is reported where the fastest needs less than this share of its time
_CELL = 12  # pixels of a cell of the heat map

Report = Literal["all", "numbers", "map"]
Floats = npt.NDArray[np.float64]


class Stragglers(DistributedMetric):
    """Compare the ranks over the last `window` steps; on one rank there is nothing to report.

    Of each step a rank gives the seconds of its forward, backward and optimizer, and of its wait for data.
    The backward holds the gradients' collectives, in which ranks wait: the shortest backward of any rank in a
    step is taken for the work, what is beyond for waiting. A rank's own time is forward, optimizer and that
    work, and its wait for data; medians over the window are compared. Where the forward has collectives too
    (FSDP), ranks wait there as well, and a slow rank shows in its data wait alone.

    Tags under `performance/`: `straggler_score` (least own time of a rank over the largest; 1 is even),
    `slowest_rank`, `collective_wait_time_ms` (mean over ranks), and with a score below 0.75 `straggler`, a
    text that names rank and cause; `straggler_map`, an image with a row for each rank and a column for each
    step: white as fast as the fastest, red twice as slow.
    """

    def __init__(self, window: int = 32, *, report: Report = "all") -> None:
        if window < 1:
            raise ConfigError(f"the window must hold at least one step, got window={window}")
        if report not in get_args(Report):
            raise ConfigError(f"expected report to be one of {get_args(Report)}, got {report!r}")
        self.window, self.report = window, report
        self._steps: deque[tuple[float, float, float]] = deque(maxlen=window)
        self.add_state("times", RankTable(3 * window))

    def update(
        self, forward_s: float = 0.0, backward_s: float = 0.0, data_s: float = 0.0, optimizer_s: float = 0.0
    ) -> None:
        """Add a step of this rank."""
        self.update_steps([(forward_s, backward_s, data_s, optimizer_s)])

    def update_steps(self, steps: Iterable[tuple[float, float, float, float]]) -> None:
        """Add several steps at once: forward, backward, wait for data and optimizer of each, in seconds."""
        self._steps.extend(
            (forward + optimizer, backward, data) for forward, backward, data, optimizer in steps
        )
        if self._steps:
            row = np.full((self.window, 3), np.nan)
            row[self.window - len(self._steps) :] = list(self._steps)
            self.times.update(row.reshape(-1))

    def reset(self) -> None:
        """Forget everything seen."""
        self._steps.clear()
        super().reset()

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} on one rank and where not all ranks have a step in common."""
        table = states["times"].table.reshape(-1, self.window, 3)
        together = ~np.isnan(table).any(axis=(0, 2))
        if len(table) < 2 or not together.any():
            return {}
        compute, data, wait = split_times(table[:, together])
        drawn = {"performance/straggler_map": Image(heat_map(compute + data))}
        if self.report == "map":
            return drawn
        return _numbers(compute, data, wait) | (drawn if self.report == "all" else {})


def _numbers(compute: Floats, data: Floats, wait: Floats) -> dict[str, Any]:
    medians = np.median(compute + data, axis=1)
    slowest = int(medians.argmax())
    score = float(medians.min() / medians[slowest]) if medians[slowest] > 0 else 1.0
    tags: dict[str, Any] = {
        "performance/straggler_score": score,
        "performance/slowest_rank": slowest,
        "performance/collective_wait_time_ms": 1e3 * wait.mean(),
    }
    if score < SLOW:
        tags["performance/straggler"] = Text(blame(slowest, compute, data))
    return tags


def split_times(table: Floats) -> tuple[Floats, Floats, Floats]:
    """Split [W, steps, (forward and optimizer, backward, data)] into own compute, data wait, collective wait.

    Each is [W, steps], in seconds.
    """
    work = table[:, :, 1].min(axis=0)
    return table[:, :, 0] + work, table[:, :, 2], table[:, :, 1] - work


def blame(rank: int, compute: Floats, data: Floats) -> str:
    """Return who is slow and why: the part in which the rank's median is furthest above the other ranks'."""
    medians = {cause: np.median(times, axis=1) for cause, times in zip(CAUSES, (compute, data), strict=True)}
    others = {cause: float(np.median(np.delete(times, rank))) for cause, times in medians.items()}
    cause = max(CAUSES, key=lambda name: medians[name][rank] - others[name])
    own = 1e3 * medians[cause][rank]
    return (
        f"rank {rank} is slow in {cause}: {own:.1f} ms a step, the other ranks {1e3 * others[cause]:.1f} ms"
    )


def heat_map(own: Floats) -> npt.NDArray[np.uint8]:
    """Draw own times [W, steps] as uint8 [H, W, 3]: a row a rank, white the fastest, red twice that."""
    fastest = own.min(axis=0)
    excess = np.clip(own / np.where(fastest > 0, fastest, 1.0) - 1.0, 0.0, 1.0)
    fade = np.round(255 * (1 - excess)).astype(np.uint8)
    cells = np.stack([np.full_like(fade, 255), fade, fade], axis=-1)
    return cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)


_speed = partial(Entry, dashboard="performance")

ENTRIES = (
    _speed(
        "performance/straggler_score",
        "slowest rank's speed",
        "Least median time of a rank's own compute and data over the largest, waits for others left out.",
        healthy="near 1; below 0.75 one rank holds all the others up",
        limits=straggler_limits,
    ),
    _speed("performance/slowest_rank", "slowest rank", "Rank of the score.", unit="rank"),
    _speed(
        "performance/collective_wait_time_ms",
        "wait for other ranks",
        "Time that a rank waits inside the backward's collectives: beyond the step's shortest backward.",
        unit="ms",
        healthy="small against the step",
    ),
    _speed(
        "performance/straggler",
        "straggler",
        "Names the slow rank and whether its compute or its data is slow; written below a score of 0.75.",
        kind="text",
        dashboard="",
    ),
    _speed(
        "performance/straggler_map",
        "ranks' own times",
        "A row for each rank, a column for each of the last steps: white as the fastest, red twice as slow.",
        kind="image",
        family="figures",
        dashboard="",
        healthy="white; a red row is a slow rank, a red column a slow step",
    ),
)
