"""Trackio: the same values in its local store, for its dashboard (extra `trackio`)."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hjepa_dist_metrics.errors import MissingExtraError
from hjepa_dist_metrics.sinks.base import ForkGuard, HParam, LeftOut
from hjepa_dist_metrics.sinks.wandb import filled_bins
from hjepa_dist_metrics.values import Histogram, Image, Notice, Scalar, Text, Value

_LEVELS = {"info": "INFO", "warning": "WARN", "failing": "ERROR"}


class TrackioSink:
    """Send values to one trackio run in `project`.

    With `resume` a run that exists goes on; steps up to its last one are not sent again, for trackio would
    keep both. Videos, graphs and embeddings are left out. What trackio measures of the machine by itself is
    switched off.
    """

    def __init__(self, project: str, name: str, resume: bool = False) -> None:
        try:
            import trackio
        except ImportError as error:
            raise MissingExtraError("trackio", "trackio", "Logging to trackio") from error
        self._trackio: Any = trackio
        self._name = f"trackio (project {project}, run {name})"
        self._guard, self._left_out = ForkGuard(), LeftOut()
        # Trackio keeps "the current run" in context variables: ours stays out of those of the caller.
        self._context = contextvars.copy_context()
        self.run: Any = self._call(
            lambda: trackio.init(
                project=project,
                name=name,
                resume="allow" if resume else "never",
                auto_log_cpu=False,
                auto_log_gpu=False,
                embed=False,
            )
        )
        last = self.run._initial_last_step if resume else None
        self._last_step = -1 if last is None else int(last)

    def __str__(self) -> str:
        return self._name

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Send one step's values; trackio stamps them itself."""
        if self._guard.in_child or self.run is None:
            return
        for value in values.values():
            if isinstance(value, Notice):
                self._alert(value, int(step))
        if step <= self._last_step:
            return
        sent = {
            tag: entry for tag, value in values.items() if (entry := self._encode(tag, value)) is not None
        }
        if sent:
            self._call(lambda: self.run.log(sent, step=int(step)))

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Make the settings the run's configuration."""
        if self.run is not None and not self._guard.in_child:
            self.run.config.update(dict(hparams))

    def write_status(self, success: bool) -> None:
        """Do nothing: trackio does not tell runs that failed."""

    def flush(self) -> None:
        """Do nothing: trackio's own thread writes what it gets at once."""

    def close(self) -> None:
        """Write everything out and end the run."""
        if self.run is not None and not self._guard.in_child:
            run, self.run = self.run, None
            self._call(run.finish)

    def _call(self, function: Callable[[], Any]) -> Any:
        return self._context.run(function)

    def _alert(self, value: Notice, step: int) -> None:
        level = getattr(self._trackio.AlertLevel, _LEVELS.get(value.level, "INFO"))
        self._call(lambda: self.run.alert(value.title, value.text, level, step))

    def _encode(self, tag: str, value: Value) -> Any:
        if isinstance(value, Scalar):
            return value.value
        if isinstance(value, Histogram):
            return self._trackio.Histogram(np_histogram=filled_bins(value))
        if isinstance(value, Image):
            return self._trackio.Image(_three_channels(value.pixels))
        if isinstance(value, Text):
            return self._trackio.Markdown(value.markdown)
        if not isinstance(value, Notice):
            self._left_out.report(self, tag, value)
        return None


def _three_channels(pixels: Any) -> Any:
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels
