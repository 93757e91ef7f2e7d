"""A detector looks for one finding in the history of a run's numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hjepa_dist_metrics.monitor.health.findings import Evidence
from hjepa_dist_metrics.monitor.health.series import History, Series

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

    def wants(self, tag: str) -> bool:
        """Return whether the detector reads a tag."""
        return any(re.fullmatch(pattern, tag) for pattern in (*self.tags, *self.reads))

    def is_due(self, history: History) -> bool:
        """Return whether the newest log has a tag to judge by."""
        return any(_matches(pattern, tag) for tag in history.fresh for pattern in self.tags)


_cache: dict[tuple[str, str], bool] = {}


def _matches(pattern: str, tag: str) -> bool:
    key = (pattern, tag)
    found = _cache.get(key)
    if found is None:
        found = _cache[key] = re.fullmatch(pattern, tag) is not None
    return found


def matching(history: History, pattern: str) -> list[tuple[str, Series]]:
    """Return the series whose whole tag matches a regular expression, by tag."""
    return [
        (tag, series)
        for tag in sorted(history.tags())
        if _matches(pattern, tag) and (series := history.get(tag)) is not None
    ]


def first_of(history: History, tags: Iterable[str]) -> tuple[str, Series] | None:
    """Return the first of several tags that was logged."""
    for tag in tags:
        series = history.get(tag)
        if series is not None:
            return tag, series
    return None
