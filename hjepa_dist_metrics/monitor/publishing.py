"""From merged values to files: second names, the sync's own cost, alerts, figures, and the latest numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hjepa_dist_metrics.logging.output import Output
from hjepa_dist_metrics.metrics.ssl.convergence import Convergence
from hjepa_dist_metrics.monitor.figure_renderer import FINISH_SECONDS, FigureRenderer
from hjepa_dist_metrics.monitor.health.health_log import HealthLog
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.sync import SyncReport
from hjepa_dist_metrics.values import Drawing, Scalar, Text, Value

# The quick reference's short names for numbers that have a longer one.
ALIASES = {
    "loss/total": "train/loss",
    "learning_rate/base_lr": "train/lr",
    "ema/momentum_current": "train/ema_momentum",
}


# From the tags of a run's first sync, pages by tag: how to read them, where the run runs.
Explain = Callable[[Collection[str]], Mapping[str, str]]


class Publisher:
    """Judge and write values; on the training thread, the sync's thread, or both at a time.

    `first` and `latest` are the first and the newest number of each tag, on every rank. `health_log` is None
    where alerts are switched off.
    """

    def __init__(
        self, sink: Output, context: ProcessContext, health_log: HealthLog | None, explain: Explain
    ) -> None:
        self.sink, self.context, self.health_log = sink, context, health_log
        self.first: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self._aliases = list(ALIASES.items())
        self._convergence = Convergence()
        self._objective = 0
        self._explain: Explain | None = explain  # until the first sync's values, which it explains
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
        """Return the names of the findings that last."""
        return set() if self.health_log is None else self.health_log.firing()

    def reset_losses(self) -> None:
        """Mark losses of the coming logs as those of another objective."""
        self._objective += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what the next values are compared with, for a checkpoint."""
        return {"convergence": self._convergence.state_dict(), "objective": self._objective}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._convergence.load_state_dict(state["convergence"])
        self._objective = int(state["objective"])

    def publish(self, step: int, values: dict[str, Value], report: SyncReport | None) -> None:
        """Write a sync's values, their short names, what the sync cost, and the alerts they raise."""
        values |= self._convergence.rates(step, values)
        if self._objective and "loss/total" in values:
            values["loss/objective"] = Scalar(float(self._objective))
        values |= {short: values[tag] for tag, short in self._aliases if tag in values}
        self.write(step, {**values, **_cost(report), **self._notes(values)})

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Judge values and write them; drawings are drawn later, beside the training."""
        numbers = {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}
        verdict = {} if self.health_log is None else self.health_log.update(step, numbers)
        numbers |= {tag: value.value for tag, value in verdict.items() if isinstance(value, Scalar)}
        with self._lock:
            self.latest = self.latest | numbers  # a new one: readers keep theirs
            self.first = numbers | self.first
        drawings = {tag: value for tag, value in values.items() if isinstance(value, Drawing)}
        self.sink.write(step, {tag: v for tag, v in values.items() if tag not in drawings} | verdict)
        if drawings:
            self._draw_later(step, drawings)

    def _notes(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the pages on the run, with the first values."""
        with self._lock:
            explain, self._explain = self._explain, None
            tags = {**self.latest, **values}
        if explain is None or not values:
            return {}
        return {tag: Text(page) for tag, page in explain(tags).items()}

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
