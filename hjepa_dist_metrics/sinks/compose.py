"""Several sinks behind one, none of which can hurt the others or the training."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from hjepa_dist_metrics.sinks.base import HParam, RunSink, Sink
from hjepa_dist_metrics.sinks.text import encodable_hparams, encodable_values
from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.sinks")

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Writes in a row of which a sink took nothing, after which it counts as broken.
_MOST_FRUITLESS = 10


class SinkGroup:
    """Fan out to sinks; one that raises is reported once, closed and dropped, the others go on.

    A sink whose `write` raises something else than an OSError gets the values one by one: those that it
    cannot write are left out, which is said once a tag, until ten writes in a row have brought it nothing.
    Monitoring never kills training: no method raises because a sink failed. `failures` keeps the messages
    that were reported.
    """

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self._sinks: list[Sink] = list(sinks)
        self.failures: list[str] = []
        self._disk_is_full = False
        self._left_out: set[tuple[str, str]] = set()
        self._fruitless: dict[str, int] = {}

    @classmethod
    def open(cls, factories: Mapping[str, Callable[[], Sink]]) -> SinkGroup:
        """Open each sink; `factories` maps a name (with its path) to what opens it.

        One that cannot be opened (no permission, disk full, package absent) is reported and left out.
        """
        group = cls()
        for name, factory in factories.items():
            try:
                group._sinks.append(factory())
            except Exception as error:
                group._report(name, "open", error)
        return group

    def __str__(self) -> str:
        return ", ".join(str(sink) for sink in self._sinks) or "no sink"

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Return the sinks that still work."""
        return tuple(self._sinks)

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Write one step's values to every sink."""
        clean = encodable_values(values)
        self._each("write", lambda sink: self._write(sink, step, clean, wall_time))

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Hand the run's settings to the sinks that take them."""
        clean = encodable_hparams(hparams)
        self._each(
            "write_hparams",
            lambda sink: sink.write_hparams(clean, metrics) if isinstance(sink, RunSink) else None,
        )

    def write_status(self, success: bool) -> None:
        """Hand the run's end to the sinks that take it."""
        self._each(
            "write_status",
            lambda sink: sink.write_status(success) if isinstance(sink, RunSink) else None,
        )

    def flush(self) -> None:
        """Flush every sink."""
        self._each("flush", lambda sink: sink.flush())

    def close(self) -> None:
        """Close every sink, also after one of them failed to."""
        self._each("close", lambda sink: sink.close())
        self._sinks.clear()

    def _write(self, sink: Sink, step: int, values: Mapping[str, Value], wall_time: float | None) -> None:
        try:
            sink.write(step, values, wall_time)
        except OSError:
            raise
        except Exception as error:
            if not self._write_one_by_one(sink, step, values, wall_time):
                fruitless = self._fruitless[str(sink)] = self._fruitless.get(str(sink), 0) + 1
                if fruitless >= _MOST_FRUITLESS:
                    raise
            logger.debug("%s did not take a step's values together: %s", sink, error)
        else:
            self._fruitless.pop(str(sink), None)

    def _write_one_by_one(
        self, sink: Sink, step: int, values: Mapping[str, Value], wall_time: float | None
    ) -> bool:
        """Return whether any value could be written."""
        written = False
        for tag, value in values.items():
            try:
                sink.write(step, {tag: value}, wall_time)
                written = True
            except OSError:
                raise
            except Exception as error:
                self._leave_out(str(sink), tag, error)
        return written

    def _leave_out(self, name: str, tag: str, error: Exception) -> None:
        if (name, tag) not in self._left_out:
            self._left_out.add((name, tag))
            logger.error("%s leaves out %r: %s: %s", name, tag, type(error).__name__, error)

    def _each(self, verb: str, call: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._drop(sink, verb, error)

    def _drop(self, sink: Sink, verb: str, error: Exception) -> None:
        self._sinks = [other for other in self._sinks if other is not sink]
        self._report(str(sink), verb, error)
        if verb == "close":
            return
        try:
            sink.close()
        except Exception as again:  # it failed already: the first error is the one that tells
            logger.debug("closing %s after its failure failed too: %s", sink, again)

    def _report(self, name: str, verb: str, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in _FULL:
            self._report_full_disk(name, error)
            return
        message = (
            f"logging to {name} failed in {verb} and is switched off for the rest of the run; "
            f"training and the other outputs go on ({type(error).__name__}: {error})"
        )
        self.failures.append(message)
        logger.error(message)

    def _report_full_disk(self, name: str, error: OSError) -> None:
        """Say it once for all files of the disk, which follow each other."""
        message = (
            f"the disk is full ({error.strerror}): logging to {name} is switched off for the rest of the "
            "run, and so are other files there; training goes on"
        )
        if self._disk_is_full:
            logger.debug(message)
            return
        self._disk_is_full = True
        self.failures.append(message)
        logger.error(message)
