"""The numbers of a run as its judge remembers them: a few points of each tag, in constant memory."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

RECENT = 16  # newest points of a tag
START = 5  # first points of a tag
HELD = 0.4  # of the run so far: what was held for as long is the run's own level
OUTLINE = 32  # points spread over the whole run, at most twice as many in between

Point = tuple[int, float]


class Series:
    """One tag's finite numbers: the first ones, the newest ones, an outline of all, and the extremes.

    Extremes are those of medians of three numbers in a row, so that one outlier makes none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.newest = math.nan
        self.start: list[Point] = []
        self.recent: deque[Point] = deque(maxlen=RECENT)
        self.outline: list[Point] = []
        self.highest: Point | None = None
        self.lowest: Point | None = None
        self._stride = 1

    def add(self, step: int, value: float) -> None:
        """Add a step's number; one that is not finite is kept as `newest` alone."""
        self.newest = value
        if not math.isfinite(value):
            return
        if len(self.start) < START:
            self.start.append((step, value))
        self.recent.append((step, value))
        if self.count % self._stride == 0:
            self._extend_outline((step, value))
        self.count += 1
        self._extend_extremes(step)

    def last(self, count: int = 3) -> list[float]:
        """Return the newest numbers, oldest first."""
        return [value for _, value in list(self.recent)[-count:]]

    def median(self, count: int = 3) -> float:
        """Return the median of the newest numbers, NaN where there are none."""
        return median(values) if (values := self.last(count)) else math.nan

    def start_median(self) -> float:
        """Return the median of the first numbers, NaN where there are none."""
        return median([value for _, value in self.start]) if self.start else math.nan

    def before(self, count: int) -> list[float]:
        """Return the recent numbers without the `count` newest ones."""
        return [value for _, value in self.recent][: max(len(self.recent) - count, 0)]

    def at(self, step: int) -> float:
        """Return the number whose step is nearest, NaN where there are none."""
        points = [*self.outline, *self.recent]
        return min(points, key=lambda point: abs(point[0] - step))[1] if points else math.nan

    def sustained(self, share: float, sign: float = 1.0) -> float:
        """Return the best level that the run has held for a share of its steps so far, NaN before that.

        The highest minimum of any window of that length, in `sign`: the lowest maximum for -1. A start that
        is left at once is no level, and one good log makes none.
        """
        points = (
            [*self.outline, *(p for p in self.recent if p[0] > self.outline[-1][0])] if self.count else []
        )
        width, best = share * self.steps, -math.inf
        window: deque[Point] = deque()  # rising; the first is the minimum
        for step, value in points:
            signed = sign * value
            while window and window[-1][1] >= signed:
                window.pop()
            window.append((step, signed))
            while window[0][0] < step - width:
                window.popleft()
            if step - points[0][0] >= width:
                best = max(best, window[0][1])
        return sign * best if math.isfinite(best) else math.nan

    @property
    def steps(self) -> int:
        """Return the steps from the first number to the newest."""
        return self.recent[-1][0] - self.start[0][0] if self.start else 0

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "count": self.count,
            "newest": self.newest,
            "stride": self._stride,
            "start": [list(point) for point in self.start],
            "recent": [list(point) for point in self.recent],
            "outline": [list(point) for point in self.outline],
            "extremes": [list(point) if point else None for point in (self.highest, self.lowest)],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Series:
        """Return the series that `state_dict` describes."""
        series = cls()
        series.count, series.newest = int(state["count"]), float(state["newest"])
        series._stride = int(state["stride"])
        series.start, series.outline = _points(state["start"]), _points(state["outline"])
        series.recent.extend(_points(state["recent"]))
        series.highest, series.lowest = (_points([p])[0] if p else None for p in state["extremes"])
        return series

    def _extend_outline(self, point: Point) -> None:
        self.outline.append(point)
        if len(self.outline) > 2 * OUTLINE:
            self.outline = self.outline[::2]
            self._stride *= 2

    def _extend_extremes(self, step: int) -> None:
        if self.count < 3:
            return
        (_, a), (_, b), (_, c) = self.recent[-3], self.recent[-2], self.recent[-1]
        middle = max(min(a, b), min(max(a, b), c))
        if self.highest is None or middle > self.highest[1]:
            self.highest = (step, middle)
        if self.lowest is None or middle < self.lowest[1]:
            self.lowest = (step, middle)


class History:
    """The series of the tags that are wanted, and which of them the newest log has."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self.step = 0
        self.fresh: set[str] = set()
        self._wanted = wanted
        self._is_wanted: dict[str, bool] = {}
        self._matching: dict[str, list[tuple[str, Series]]] = {}
        self._series: dict[str, Series] = {}

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a log."""
        self.step, self.fresh = step, set()
        for tag, value in numbers.items():
            wanted = self._is_wanted.get(tag)
            if wanted is None:
                wanted = self._is_wanted[tag] = self._wanted(tag)
            if wanted:
                self.fresh.add(tag)
                self._of(tag).add(step, value)

    def get(self, tag: str) -> Series | None:
        """Return a tag's series, None where it was never logged."""
        return self._series.get(tag)

    def value(self, tag: str, default: float = math.nan) -> float:
        """Return a tag's newest number."""
        series = self._series.get(tag)
        return default if series is None else series.newest

    def matching(self, pattern: str) -> list[tuple[str, Series]]:
        """Return the series whose whole tag matches a regular expression, by tag."""
        found = self._matching.get(pattern)
        if found is None:
            tags = sorted(tag for tag in self._series if re.fullmatch(pattern, tag))
            found = self._matching[pattern] = [(tag, self._series[tag]) for tag in tags]
        return found

    def forget(self, tags: Iterable[str]) -> None:
        """Start the series of tags anew, as where their meaning changes."""
        self._matching.clear()
        for tag in tags:
            self._series.pop(tag, None)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {"step": self.step, "series": {tag: s.state_dict() for tag, s in self._series.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.step = int(state["step"])
        self._matching.clear()
        self._series = {tag: Series.from_state(saved) for tag, saved in state["series"].items()}

    def _of(self, tag: str) -> Series:
        series = self._series.get(tag)
        if series is None:
            self._matching.clear()
            series = self._series[tag] = Series()
        return series


def rank_correlation(values: Sequence[float]) -> float:
    """Return Kendall's tau of numbers with their order: 1 where each is above all before it, 0 for noise."""
    pairs = [(b > a) - (b < a) for i, a in enumerate(values) for b in values[i + 1 :]]
    return sum(pairs) / len(pairs) if pairs else 0.0


def scatter(values: Sequence[float]) -> float:
    """Return the robust standard deviation of numbers about a line, from the steps between neighbours.

    1.05 median |d - median d|, which is the standard deviation of Gaussian noise.
    """
    steps = [b - a for a, b in pairwise(values)]
    if not steps:
        return 0.0
    usual = median(steps)
    return 1.05 * median([abs(step - usual) for step in steps])


def median(values: Sequence[float]) -> float:
    """Return the median of one number or more; a few times as fast as that of `statistics`."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def _points(rows: Iterable[Sequence[Any]]) -> list[Point]:
    return [(int(step), float(value)) for step, value in rows]
