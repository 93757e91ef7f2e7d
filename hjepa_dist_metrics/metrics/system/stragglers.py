"""Which rank holds the others up, and by what.

A collective makes every rank's step equally long: the others wait for the slow one inside it. So a step's
time tells nothing; what a rank does by itself, and how little it waits, does.
"""

from __future__ import annotations

import math
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from hjepa_dist_metrics.catalog.entry import Entry
from hjepa_dist_metrics.catalog.limits import LITTLE, straggler_limits
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics.base import DistributedMetric
from hjepa_dist_metrics.metrics.system.straggler_search import (
    IN_BACKWARD,
    MEASURED,
    UNKNOWN,
    Floats,
    Straggler,
    Times,
    score,
    search,
)
from hjepa_dist_metrics.states.ranks.rank_table import RankTable
from hjepa_dist_metrics.values import Image, Text, Value

_CELL = 12  # pixels of a cell of the heat map
_COLUMNS = 7  # of a step: the parts, minus the wait, and how it is known
_NAME = 6  # numbers that hold the machine's name, six letters each
_TINY = 2.0**-90  # so that names do not count among times

Report = Literal["all", "numbers", "map"]
# From own times in seconds [W, steps] and the numbers of the ranks.
DrawMap = Callable[[Floats, Sequence[int]], Value]


class StepTimes(NamedTuple):
    """Hold the seconds of a step: what this rank did by itself, and its waits for others.

    `between` is what lies between the phases. `wait_s` is measured and not part of the phases; None where
    ranks wait in the backward alone, NaN where nobody knows where they wait.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    data_s: float = 0.0
    optimizer_s: float = 0.0
    between_s: float = 0.0
    wait_s: float | None = None


class Stragglers(DistributedMetric):
    """Compare the ranks over the last `window` steps; on one rank there is nothing to report.

    The rank that waits least is the slow one. Where waits are measured (`wait_s`), any part of the step may
    be the cause; it is named where it explains 80 % of the others' waiting, else the cause is unknown.
    Without measured waits the shortest backward of any rank is taken for the work, what is beyond for
    waiting; where ranks may wait anywhere, a slow rank is named only by its data.

    Tags under `performance/`: `straggler_score`, the share of the slowest rank's step that it would take if
    nobody waited for it (1 is even), `slowest_rank`, `slow_ranks` (how many the others surely wait for),
    `collective_wait_time_ms` (mean over ranks and steps), and where a rank is slow, always or at times,
    `straggler`, a text that names ranks, causes and what the job loses; `straggler_map`, an image with a row
    for each rank and a column for each step: white as fast as the fastest, red twice as slow. Of more than
    256 ranks the 32 slowest are compared. `draw` draws the map with axes, from own times in seconds
    [W, steps] and the ranks' numbers.

    >>> stragglers = Stragglers()
    >>> stragglers.update(forward_s=0.1, backward_s=0.2, wait_s=0.0)
    >>> stragglers.compute()  # with one rank there is nobody to compare with
    {}
    """

    def __init__(self, window: int = 32, *, report: Report = "all", draw: DrawMap | None = None) -> None:
        if window < 1:
            raise ConfigError(f"the window must hold at least one step, got window={window}")
        if report not in get_args(Report):
            raise ConfigError(f"expected report to be one of {get_args(Report)}, got {report!r}")
        self.window, self.report = window, report
        self._draw = draw or _plain_map
        self._steps: deque[tuple[float, ...]] = deque(maxlen=window)
        self.add_state("times", RankTable(_NAME + _COLUMNS * window))

    def update(
        self,
        forward_s: float = 0.0,
        backward_s: float = 0.0,
        data_s: float = 0.0,
        optimizer_s: float = 0.0,
        between_s: float = 0.0,
        wait_s: float | None = None,
    ) -> None:
        """Add a step of this rank, in seconds, as in `StepTimes`."""
        self.update_steps([StepTimes(forward_s, backward_s, data_s, optimizer_s, between_s, wait_s)])

    def update_steps(self, steps: Iterable[Sequence[float | None]]) -> None:
        """Add several steps at once, each in the order of `StepTimes`."""
        self._steps.extend(_row(StepTimes(*step)) for step in steps)  # type: ignore[arg-type]
        if self._steps:
            row = np.full((self.window, _COLUMNS), np.nan)
            row[self.window - len(self._steps) :] = list(self._steps)
            self.times.update(np.concatenate([_packed(socket.gethostname()), row.reshape(-1)]))

    def reset(self) -> None:
        """Forget everything seen."""
        self._steps.clear()
        super().reset()

    def compute_from(self, states: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tags; {} on one rank and where not all ranks have a step in common."""
        rows = states["times"].table
        table = rows[:, _NAME:].reshape(-1, self.window, _COLUMNS)
        together = ~np.isnan(table).any(axis=(0, 2))
        if len(table) < 2 or not together.any():
            return {}
        times = Times.of(table[:, together])
        ranks = states["times"].ranks.tolist()
        drawn = {"performance/straggler_map": self._draw(times.own.sum(axis=2), ranks)}
        if self.report == "map":
            return drawn
        hosts = dict(zip(ranks, [_unpacked(row[:_NAME]) for row in rows], strict=True))
        return _numbers(times, ranks, hosts) | (drawn if self.report == "all" else {})


def _row(step: StepTimes) -> tuple[float, ...]:
    parts = step.data_s, step.forward_s, step.backward_s, step.optimizer_s, step.between_s
    if step.wait_s is None:
        return (*parts, 0.0, IN_BACKWARD)
    if math.isnan(step.wait_s):
        return (*parts, 0.0, UNKNOWN)
    return (*parts, -step.wait_s, MEASURED)


def _numbers(times: Times, ranks: Sequence[int], hosts: Mapping[int, str]) -> dict[str, Any]:
    judged, found = search(times, ranks)
    least, slowest = score(judged)
    tags: dict[str, Any] = {
        "performance/straggler_score": least,
        "performance/slowest_rank": ranks[slowest],
    }
    if times.known:
        tags["performance/collective_wait_time_ms"] = 1e3 * times.wait.mean()
    tags["performance/slow_ranks"] = len(found)
    if found:
        tags["performance/straggler"] = Text("; ".join(_sentences(found, hosts)))
    return tags


def _sentences(found: Sequence[Straggler], hosts: Mapping[int, str]) -> list[str]:
    several = len(set(hosts.values())) > 1
    sentences = []
    slow = {straggler.rank for straggler in found}
    for host in dict.fromkeys(hosts[s.rank] for s in found):
        on_host = [rank for rank, name in hosts.items() if name == host]
        if several and len(on_host) > 1 and slow >= set(on_host):
            sentences.append(f"all ranks of machine {host} are slow")
    return sentences + [_sentence(s, hosts[s.rank] if several else "") for s in found[:4]]


def _sentence(straggler: Straggler, host: str) -> str:
    where = f" on {host}" if host else ""
    often = "" if straggler.share == 1 else f" in {100 * straggler.share:.0f} % of the steps"
    lost = f"the other ranks wait {1e3 * straggler.lost:.1f} ms a step for it"
    if straggler.cause is None:
        return f"rank {straggler.rank}{where} is slow{often}, the cause is unknown: {lost}"
    part = "between the phases" if straggler.cause == "between" else f"in {straggler.cause}"
    own = f"{1e3 * straggler.own:.1f} ms against {1e3 * straggler.others:.1f} ms"
    return f"rank {straggler.rank}{where} is slow {part}{often}: {own}, {lost}"


def _packed(name: str) -> Floats:
    data = name.encode("ascii", "replace")[: 6 * _NAME].ljust(6 * _NAME, b"\0")
    numbers = [int.from_bytes(data[i : i + 6], "big") for i in range(0, 6 * _NAME, 6)]
    return np.array(numbers, dtype=np.float64) * _TINY


def _unpacked(numbers: Floats) -> str:
    parts = [int(number / _TINY).to_bytes(6, "big") for number in np.nan_to_num(numbers)]
    return b"".join(parts).rstrip(b"\0").decode("ascii", "replace")


def _plain_map(own: Floats, ranks: Sequence[int]) -> Image:
    return Image(heat_map(own))


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
        "Share of the slowest rank's step that it would take if nobody waited for it, by medians over steps.",
        healthy="near 1; below 0.75 one rank holds all the others up",
        limits=straggler_limits,
    ),
    _speed("performance/slowest_rank", "slowest rank", "Rank of the score.", unit="rank"),
    _speed(
        "performance/slow_ranks",
        "slow ranks",
        "Number of ranks for which the others surely wait; performance/straggler names them.",
        unit="ranks",
        healthy="0",
        bounds=LITTLE,
    ),
    _speed(
        "performance/collective_wait_time_ms",
        "wait for other ranks",
        "Time that a rank waits for others inside collectives, mean over ranks and steps.",
        unit="ms",
        healthy="small against the step",
    ),
    _speed(
        "performance/straggler",
        "straggler",
        "Names the slow rank, the part of the step that explains it, and what the job loses.",
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
