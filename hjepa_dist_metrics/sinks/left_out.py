"""Say once what a place has no form for."""

from __future__ import annotations

import logging

from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")


class LeftOut:
    """Report each kind of value that a place leaves out, once."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def report(self, place: object, tag: str, value: Value) -> None:
        """Say that `place` takes no such values, the first time for a kind."""
        kind = type(value).__name__
        if kind not in self._kinds:
            self._kinds.add(kind)
            logger.info("%s has no place for values of kind %s, such as %r", place, kind, tag)
