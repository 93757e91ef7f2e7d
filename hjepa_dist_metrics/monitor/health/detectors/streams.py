"""The streams of features that a run logs, and the numbers of each that findings are read from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hjepa_dist_metrics.monitor.health.series import History, Series

WIDTHS = r"collapse/(?:.+_)?num_features"
# Coarser levels are means of tokens, alike by design; predictions rightly have a lower rank.
_NOT_JUDGED = re.compile(r"collapse/(?:level|prediction)\d+_")


@dataclass(frozen=True)
class Stream:
    """One stream of features: its tags begin with `prefix`."""

    prefix: str
    history: History

    def series(self, name: str) -> Series | None:
        """Return the series of one of the stream's numbers, None where it is not logged."""
        series = self.history.get(self.prefix + name)
        return series if series is not None and series.count else None

    def value(self, name: str) -> float:
        """Return the newest of one of the stream's numbers, NaN where it is not logged."""
        return self.history.value(self.prefix + name)

    @property
    def width(self) -> float:
        """Return the number of features."""
        return self.value("num_features")

    @property
    def rows(self) -> float:
        """Return the number of rows in the newest log."""
        return self.value("num_samples")

    @property
    def is_small(self) -> bool:
        """Return whether the newest log has far fewer rows than usual, so that ranks cannot be compared."""
        series = self.series("num_samples")
        return series is None or self.rows < max(0.5 * series.median(9), 4)


def streams(history: History) -> Iterator[Stream]:
    """Yield the streams of the newest log that are judged."""
    for tag, _ in history.matching(WIDTHS):
        if tag in history.fresh and not _NOT_JUDGED.match(tag):
            yield Stream(tag.removesuffix("num_features"), history)


def has_stopped(series: Series, sign: float = 1.0, count: int = 4) -> bool:
    """Return whether a number no longer gets better: the newest is not above those before, in `sign`."""
    values = [sign * value for value in series.last(count)]
    return len(values) < 2 or values[-1] <= min(values[:-1]) + 0.1 * abs(min(values[:-1]))
