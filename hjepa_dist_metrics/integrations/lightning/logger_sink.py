"""A logger of Lightning as an output of this package, for loops that have no Trainer.

MetricsLogger("run", "results/logs", sinks=[lambda: LoggerSink(CSVLogger("results/csv"))])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hjepa_dist_metrics.integrations.lightning.library import Logger
from hjepa_dist_metrics.sinks.base import HParam
from hjepa_dist_metrics.values import Image, Scalar, Value


class LoggerSink:
    """Hand numbers to a logger of Lightning, and images where it has a `log_image`, as that of W&B.

    Loggers have no common form for texts, histograms and embeddings. Closing finalizes the logger where
    `finish` is true; by default whoever made it does.
    """

    def __init__(self, logger: Logger, finish: bool = False) -> None:
        self._logger: Any = logger
        self._finish, self._status = finish, "success"

    def __str__(self) -> str:
        return f"Lightning's {type(self._logger).__name__}"

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Hand one step's values over."""
        numbers = {tag: value.value for tag, value in values.items() if isinstance(value, Scalar)}
        if numbers:
            self._logger.log_metrics(numbers, step=step)
        if hasattr(self._logger, "log_image"):
            for tag, value in values.items():
                if isinstance(value, Image):
                    self._logger.log_image(key=tag, images=[value.pixels], step=step)

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Hand the run's settings over."""
        if hparams:
            self._logger.log_hyperparams(dict(hparams))

    def write_status(self, success: bool) -> None:
        """Remember how the run ended, which a logger is given when it is finalized."""
        self._status = "success" if success else "failed"

    def flush(self) -> None:
        """Write what the logger holds."""
        self._logger.save()

    def close(self) -> None:
        """Write what is left, and finalize the logger where that is asked for."""
        self._logger.save()
        if self._finish:
            self._finish = False
            self._logger.finalize(self._status)
