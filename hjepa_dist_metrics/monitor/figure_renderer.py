"""Drawing a run's figures beside the training: by a process of the lowest priority, asked by a thread."""

from __future__ import annotations

import atexit
import logging
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hjepa_dist_metrics.errors import MissingExtraError
from hjepa_dist_metrics.figures import worker
from hjepa_dist_metrics.sinks.base import ForkGuard
from hjepa_dist_metrics.sinks.signals import SignalFlush
from hjepa_dist_metrics.values import Drawing, Image, Value

logger = logging.getLogger("hjepa_dist_metrics.monitor")

FINISH_SECONDS = 60.0
SIGNAL_SECONDS = 5.0
_MOST_WAITING = 8
_POLL_SECONDS = 0.01

Write = Callable[[int, Mapping[str, Value], float], None]


@dataclass(frozen=True)
class _Set:
    """Hold the figures of one step, and when they were asked for."""

    step: int
    drawings: dict[str, Drawing]
    wall_time: float


class FigureRenderer:
    """Draw sets of figures in the order in which they come, and hand the pictures to `write`.

    `draw` returns at once. Matplotlib holds the interpreter's lock for most of a second or two: a process of
    its own, started with the first set, keeps that from the training's threads, and its priority keeps it
    from their processors. Where it cannot be started or dies, the thread draws. When the job is told to stop,
    what is under way has 5 s. A set that finds eight others waiting is left out, and that is said.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._sets: queue.SimpleQueue[_Set | None] = queue.SimpleQueue()
        self._asked = self._done = 0
        self._asking = threading.Lock()
        self._thread: threading.Thread | None = None
        self._helper: subprocess.Popen[bytes] | None = None
        self._falls_back = self._closed = self._hurries = False
        self._guard = ForkGuard()
        self._signals = SignalFlush(self._hurry)
        atexit.register(self.close)

    def draw(self, step: int, drawings: Mapping[str, Drawing]) -> None:
        """Draw later, and write at `step`, stamped with the time of the call."""
        if self._closed or self._guard.in_child:
            return
        with self._asking:
            if self._asked - self._done >= _MOST_WAITING:
                logger.warning("the figures of step %d are left out: too many wait to be drawn", step)
                return
            self._asked += 1
        self._sets.put(_Set(step, dict(drawings), time.time()))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hjepa-metrics-studio", daemon=True)
            self._thread.start()

    def drain(self, timeout: float) -> bool:
        """Wait until everything asked for is drawn; return False where that took longer than `timeout`."""
        deadline = time.monotonic() + timeout
        # Polled and not signalled: a signal's handler may run while this thread holds any lock there is.
        while self._done < self._asked and not self._guard.in_child:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def close(self, timeout: float = FINISH_SECONDS) -> None:
        """Draw what waits, end the process, and give the signals back."""
        if self._closed or self._guard.in_child:
            return
        if not self.drain(0.0 if self._hurries else timeout) and not self._hurries:
            missing = self._asked - self._done
            logger.error("%d sets of figures were not drawn within %g s: they are missing", missing, timeout)
        self._closed = True
        self._sets.put(None)
        self._signals.restore()
        atexit.unregister(self.close)
        self._stop_worker()

    def _hurry(self) -> None:
        self._hurries = True  # the job is told to stop: what is not drawn within seconds stays undrawn
        self.drain(SIGNAL_SECONDS)

    def _work(self) -> None:
        while (asked := self._sets.get()) is not None:
            try:
                pictures = self._pictures(asked.drawings)
                if pictures and not self._closed:
                    self._write(asked.step, pictures, asked.wall_time)
            except Exception as error:  # a thread has nobody to raise to
                logger.error("the figures of step %d failed: %s: %s", asked.step, type(error).__name__, error)
            finally:
                self._done += 1

    def _pictures(self, drawings: dict[str, Drawing]) -> dict[str, Value]:
        sketched = {tag: drawing for tag, drawing in drawings.items() if drawing.sketch is not None}
        answer = self._ask(_pickled(sketched))
        if answer is None:
            return draw(drawings)
        if isinstance(answer, str):
            logger.error("no figures are drawn: %s", answer)
            return {}
        for tag, picture in answer.items():
            if isinstance(picture, str):
                _report(tag, picture)
        images: dict[str, Value] = {tag: p for tag, p in answer.items() if isinstance(p, Image)}
        return images | draw({tag: d for tag, d in drawings.items() if d.sketch is None})

    def _ask(self, sketches: dict[str, bytes]) -> worker.Answer | None:
        """Return the helper's answer; None where there is no helper."""
        helper = self._start_worker()
        if helper is None or helper.stdin is None or helper.stdout is None:
            return None
        try:
            worker.send(helper.stdin, sketches)  # type: ignore[arg-type]
            return worker.receive(helper.stdout)  # type: ignore[arg-type, return-value]
        except (OSError, EOFError, ValueError) as error:
            if not self._closed:
                self._do_without(f"{type(error).__name__}: {error}")
            self._stop_worker()
            return None if not self._closed else {}

    def _start_worker(self) -> subprocess.Popen[bytes] | None:
        if self._helper is None and not self._falls_back:
            if not sys.executable or getattr(sys, "frozen", False):
                self._do_without("this program is no Python interpreter")
                return None
            try:
                pipe = subprocess.PIPE
                self._helper = subprocess.Popen(worker.command(), stdin=pipe, stdout=pipe)
            except OSError as error:
                self._do_without(f"{type(error).__name__}: {error}")
        return self._helper

    def _do_without(self, reason: str) -> None:
        self._falls_back = True
        logger.warning(
            "figures are drawn in the training's own process: the one for them failed (%s)", reason
        )

    def _stop_worker(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.kill()  # it holds nothing that could be lost
            helper.wait()
            for stream in (helper.stdin, helper.stdout):
                _close(stream)


def draw(drawings: Mapping[str, Drawing]) -> dict[str, Value]:
    """Return the pictures, drawn here and now; one that cannot be drawn is reported and left out."""
    images: dict[str, Value] = {}
    for tag, drawing in drawings.items():
        try:
            images[tag] = drawing.draw()
        except MissingExtraError as error:
            logger.error("no figures are drawn: %s", error)
            return {}
        except Exception as error:
            _report(tag, f"{type(error).__name__}: {error}")
    return images


def _pickled(drawings: Mapping[str, Drawing]) -> dict[str, bytes]:
    """Return the sketches as bytes; one that cannot be made is reported and left out."""
    ready: dict[str, bytes] = {}
    for tag, drawing in drawings.items():
        try:
            assert drawing.sketch is not None
            ready[tag] = pickle.dumps(drawing.sketch(), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            _report(tag, f"{type(error).__name__}: {error}")
    return ready


def _report(tag: str, reason: str) -> None:
    logger.error("the figure %s could not be drawn: %s", tag, reason)


def _close(stream: object) -> None:
    try:
        stream.close()  # type: ignore[attr-defined]
    except OSError as error:  # what was buffered finds no reader any more
        logger.debug("closing the pipe of the process that drew figures: %s", error)
