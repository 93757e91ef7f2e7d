"""From merged values to files: second names, the sync's own cost, alerts, figures, and the latest numbers."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from hjepa_dist_metrics import catalog
from hjepa_dist_metrics.logging.output import Output
from hjepa_dist_metrics.monitor.figure_renderer import FINISH_SECONDS, FigureRenderer
from hjepa_dist_metrics.monitor.health.alerts import AlertBook
from hjepa_dist_metrics.monitor.health.rule_state import memory_of, recall
from hjepa_dist_metrics.monitor.health.rules import Convergence
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.sync import SyncReport
from hjepa_dist_metrics.values import Drawing, Scalar, Text, Value

logger = logging.getLogger("hjepa_dist_metrics.monitor")

# The quick reference's short names for numbers that have a longer one.
ALIASES = {
    "loss/total": "train/loss",
    "learning_rate/base_lr": "train/lr",
    "ema/momentum_current": "train/ema_momentum",
}


class Publisher:
    """Judge and write values; on the training thread, the sync's thread, or both at a time.

    `first` and `latest` are the first and the newest number of each tag, on every rank. `alert_book` is None
    where alerts are switched off.
    """

    def __init__(
        self, sink: Output, context: ProcessContext, alert_book: AlertBook | None, explain: bool
    ) -> None:
        self.sink, self.context, self.alert_book = sink, context, alert_book
        self.first: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self._aliases = list(ALIASES.items())
        self._convergence = Convergence()
        # Written with the first values.
        self._notes: dict[str, Value] = {"notes/how_to_read": Text(catalog.how_to_read())} if explain else {}
        # The last steps judged, and the rules' states written there.
        self._told: deque[tuple[int, dict[str, float]]] = deque(maxlen=8)
        self._lock = threading.Lock()
        self._studio = FigureRenderer(sink.write) if context.is_main else None

    def finish_drawing(self) -> None:
        """Wait for the figures that are being drawn, for at most a minute."""
        if self._studio is not None:
            self._studio.drain(FINISH_SECONDS)

    def close(self) -> None:
        """Wait for the figures that are being drawn, for at most a minute, and draw no more."""
        if self._studio is not None:
            self._studio.close()

    def add_alias(self, names: Mapping[str, str]) -> None:
        """Write numbers under second tags too: `names` maps a tag to its other one."""
        self._aliases = [*self._aliases, *names.items()]

    def firing(self) -> set[str]:
        """Return the alert rules that fire now."""
        with self._lock:
            return set() if self.alert_book is None else self.alert_book.firing()

    def state_dict(self) -> dict[str, Any]:
        """Return what the next values are compared with, for a checkpoint."""
        return {"convergence": memory_of(self._convergence)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        recall(self._convergence, state["convergence"])

    def publish(self, step: int, values: dict[str, Value], report: SyncReport | None) -> None:
        """Write a sync's values, their short names, what the sync cost, and the alerts they raise."""
        values |= self._convergence.rates(step, values)
        values |= {short: values[tag] for tag, short in self._aliases if tag in values}
        self.write(step, {**values, **_cost(report)})

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Judge values and write them; drawings are drawn later, beside the training."""
        numbers = {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}
        alerts = self._judge(step, numbers)
        with self._lock:
            self.latest = self.latest | numbers  # a new one: readers keep theirs
            self.first = numbers | self.first
            notes, self._notes = self._notes, {}
        drawings = {tag: value for tag, value in values.items() if isinstance(value, Drawing)}
        self.sink.write(step, {tag: v for tag, v in values.items() if tag not in drawings} | alerts | notes)
        if drawings:
            self._draw_later(step, drawings)

    def _judge(self, step: int, numbers: dict[str, float]) -> dict[str, Value]:
        """Return the rules' states, and the log where one began; adds the states to `numbers`."""
        if self.alert_book is None:
            return {}
        with self._lock:  # a sync's thread and the training thread may judge at the same time
            begun = self.alert_book.evaluate(step, numbers)
            states = self.alert_book.scalars()
            # An epoch's end and the end of the run may be one step: a state is written there once.
            known = dict(self._told).get(step, {})
            self._told.append((step, {**known, **states}))
            log = self.alert_book.markdown()
        numbers |= states
        for alert in begun if self.context.is_main else ():
            logger.warning("alert: %s", alert)
        self.alert_book.notify(begun)
        values: dict[str, Value] = {t: Scalar(v) for t, v in states.items() if known.get(t) != v}
        return {**values, "alerts/log": Text(log)} if begun else values

    def _draw_later(self, step: int, drawings: dict[str, Drawing]) -> None:
        if self._studio is None:
            return
        from hjepa_dist_metrics.monitor.observers.run_figures import resolution

        numbers = dict(self.latest)
        self._studio.draw(step, drawings | resolution(numbers))


def _cost(report: SyncReport | None) -> dict[str, Value]:
    """Return what a sync cost; nothing where there was nobody to sync with."""
    if report is None or not report.rounds:
        return {}
    cost: dict[str, Value] = {
        "sync/rounds": Scalar(float(report.rounds)),
        "sync/bytes": Scalar(float(report.sent_bytes)),
        "sync/seconds": Scalar(report.seconds),
        "sync/wait_seconds": Scalar(report.waited),
    }
    if report.slowest_rank is not None:
        cost["sync/slowest_rank"] = Scalar(float(report.slowest_rank))
    return cost
