"""A detector looks for one finding in the history of a run's numbers."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History, Series

# The total loss, by the tags that one loop or another has.
TOTAL_LOSSES = ("loss/total", "Train/Loss/total_loss")

# Evidence, the most telling first; none where all is well, None where the history cannot tell.
Detect = Callable[[History], "list[Evidence] | None"]


@dataclass(frozen=True)
class Detector:
    """Look for the finding `name` in logs that have one of `tags`, regular expressions of whole tags.

    `reads` are further tags that are remembered for it. `detect` is a function of the history alone, so that
    training and a replay of its logs come to the same findings.
    """

    name: str
    detect: Detect
    tags: tuple[str, ...]
    reads: tuple[str, ...] = ()

    def judges(self, tags: Iterable[str]) -> bool:
        """Return whether one of the tags of a log is among those to judge by."""
        return any(map(any_of(self.tags).fullmatch, tags))


@functools.lru_cache(maxsize=256)
def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return the regular expression of all tags that one of several stands for."""
    return re.compile("|".join(patterns))


def first_of(history: History, tags: Iterable[str]) -> tuple[str, Series] | None:
    """Return the first of several tags that was logged."""
    for tag in tags:
        series = history.get(tag)
        if series is not None:
            return tag, series
    return None
