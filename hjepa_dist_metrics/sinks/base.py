"""What a sink is: a place that a run's values go to."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

HParam: TypeAlias = bool | int | float | str


class Sink(Protocol):
    """Take the values of one step at a time; `str(sink)` names it and its path in error messages.

    It is called from one thread. A class attribute `local = True` says that it only writes local files: such
    sinks share a thread and are waited for; any other has a thread and a queue of its own. An OSError says
    that the place has failed, any other exception that a value has no form there.
    """

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Write tag -> value at `step`; `wall_time` in seconds since the epoch, by default now."""
        ...

    def flush(self) -> None:
        """Make everything written so far readable by other processes."""
        ...

    def close(self) -> None:
        """Flush and release; a second call does nothing."""
        ...


@runtime_checkable
class RunSink(Protocol):
    """What a sink may offer besides: facts about the whole run, for a table that compares runs."""

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Record the run's settings, and the tags to compare runs by."""
        ...

    def write_status(self, success: bool) -> None:
        """Record how the run ended."""
        ...


class ForkGuard:
    """Tell the process that opened a file from its forked children, which must not write to it.

    A data loader's worker inherits the open sink: its writes would duplicate or corrupt the parent's.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def in_child(self) -> bool:
        """Return whether this is another process than the one that made the guard."""
        return os.getpid() != self._pid


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
