"""Accelerate: this package as a tracker of an Accelerator, and any of its trackers as a sink.

accelerator = Accelerator(log_with=MetricsTracker("run", "results/logs"))
accelerator.init_trackers("project", config={"learning_rate": 1e-3})
accelerator.log({"train/loss": loss}, step=step)
accelerator.end_training()

MetricsLogger("run", "results/logs", sinks=[lambda: TrackerSink(accelerator.get_tracker("wandb"))])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.monitor import MetricsLogger
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.sinks import HParam
from hjepa_dist_metrics.values import Image, Scalar, Text, Value


class MetricsTracker(GeneralTracker):  # type: ignore[misc]
    """Log through a `MetricsLogger`; `options` are its arguments besides name and directory.

    It writes one record a call, from a thread. `tracker` is the logger, for histograms, images and everything
    else. Accelerate calls trackers on the main process only, so that the logger is by itself there. For what
    takes all ranks (`accumulate_metrics`, `log_system_metrics`, sharded parameters) call
    `start_on_all_ranks()` before `init_trackers`, keep the object, and use its `tracker` on every rank.
    """

    name = "hjepa_dist_metrics"
    requires_logging_directory = True
    main_process_only = False

    def __init__(
        self, run_name: str | None = None, logging_dir: str | Path | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.run_name, self.logging_dir, self.options = run_name, logging_dir, options
        self._logger: MetricsLogger | None = None

    def start(self) -> None:
        """Open the run on this process alone, unless it is open: `init_trackers` calls it where it writes."""
        if self._logger is None:
            alone = ProcessContext(0, 1, ProcessContext.current().device, is_main=True)
            self._logger = self._open(context=alone)

    def start_on_all_ranks(self) -> None:
        """Open the run on every rank, the main process with files. A collective call."""
        if self._logger is None:
            self._logger = self._open()

    def _open(self, **options: Any) -> MetricsLogger:
        return MetricsLogger(self.run_name, self.logging_dir, **{**options, **self.options})

    @property
    def tracker(self) -> MetricsLogger:
        """Return the logger; ConfigError where it is not open."""
        if self._logger is None:
            raise ConfigError(
                "the tracker is not open here: accelerator.init_trackers(project_name) opens it on "
                "the main process, start_on_all_ranks() on every rank"
            )
        return self._logger

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Record the run's settings, to compare runs by."""
        self.tracker.log_hparams(values)

    def log(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Write numbers, as `MetricsLogger.log_metrics` takes them, and texts; `prefix` may be given."""
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        numbers = {name: value for name, value in values.items() if name not in texts}
        self.tracker.log_metrics(numbers, step, **kwargs)
        for name, text in texts.items():
            self.tracker.log_text(name, text, step)

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Write pictures, for each name one or several."""
        for name, images in values.items():
            self.tracker.log_images(name, images, step)

    def finish(self) -> None:
        """Write everything out and close."""
        if self._logger is not None:
            self._logger.finish()


class TrackerSink:
    """Hand values to an accelerate tracker: numbers and texts in one call, images where it takes them.

    The tracker must be started already, as `accelerator.init_trackers` leaves it. Closing finishes it where
    `finish` is true; by default `accelerator.end_training` does.
    """

    def __init__(self, tracker: GeneralTracker, finish: bool = False) -> None:
        self._tracker: Any = tracker
        self._finish = finish

    def __str__(self) -> str:
        return f"accelerate tracker {getattr(self._tracker, 'name', type(self._tracker).__name__)!r}"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Hand one step's values over; trackers have no form for histograms and embeddings."""
        plain: dict[str, float | str] = {}
        for tag, value in values.items():
            if isinstance(value, Scalar):
                plain[tag] = value.value
            elif isinstance(value, Text):
                plain[tag] = value.markdown
        if plain:
            self._tracker.log(plain, step=step)
        pictures = {tag: _batch(value) for tag, value in values.items() if isinstance(value, Image)}
        if pictures and hasattr(self._tracker, "log_images"):
            self._tracker.log_images(pictures, step=step, **_image_options(self._tracker))

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Hand the run's settings over."""
        if hparams:
            self._tracker.store_init_configuration(dict(hparams))

    def write_status(self, success: bool) -> None:
        """Do nothing: trackers do not record how a run ended."""

    def flush(self) -> None:
        """Do nothing: trackers flush as they like."""

    def close(self) -> None:
        """Finish the tracker where that is asked for."""
        if self._finish:
            self._finish = False
            self._tracker.finish()


def _batch(image: Image) -> Any:
    """Return [1, H, W, 3], what accelerate's trackers take."""
    pixels = image.pixels
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))[None].copy()


def _image_options(tracker: Any) -> dict[str, str]:
    """Return what tells TensorBoard's tracker that channels come last; the others assume it."""
    return {"dataformats": "NHWC"} if getattr(tracker, "name", "") == "tensorboard" else {}
