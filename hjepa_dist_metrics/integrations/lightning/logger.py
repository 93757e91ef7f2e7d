"""This package as a logger of Lightning: what modules and callbacks log goes to its outputs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hjepa_dist_metrics import monitor
from hjepa_dist_metrics.integrations.lightning.library import Logger, rank_zero_only
from hjepa_dist_metrics.parallel import ProcessContext


class MetricsLogger(Logger):  # type: ignore[misc]
    """Write what Lightning logs to TensorBoard, JSON lines and the outputs that `config` switches on.

    Numbers are written as Lightning reduces them: `self.log(..., sync_dist=True)` is its mean over ranks,
    while `MetricsCallback` writes means that are exact where ranks have samples unevenly. `experiment` is the
    package's own `MetricsLogger`, on the main process, for histograms, images and everything else. With
    `resume` the run goes on in the same files.
    """

    def __init__(
        self,
        name: str = "lightning",
        log_dir: str | Path = "results/logs",
        *,
        config: Any = None,
        resume: bool = False,
    ) -> None:
        super().__init__()
        self._name, self._log_dir, self._config, self._resume = name, str(log_dir), config, resume
        self._experiment: monitor.MetricsLogger | None = None

    @property
    def experiment(self) -> monitor.MetricsLogger:
        """Return the logger that writes; it is opened at its first use, and again after a training's end."""
        if self._experiment is None:
            alone = ProcessContext(0, 1, ProcessContext.current().device, is_main=_is_main())
            self._experiment = monitor.MetricsLogger(
                self._name, self._log_dir, self._config, resume=self._resume, context=alone
            )
            self._name, self._resume = self._experiment.run_name, True
        return self._experiment

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self._name

    @property
    def version(self) -> str:
        """Return nothing: a second run of a name has a name of its own."""
        return ""

    @property
    def save_dir(self) -> str:
        """Return the directory of all runs, where Lightning puts checkpoints under the run's name."""
        return self._log_dir

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write numbers at a step."""
        if _is_main():
            self.experiment.log_metrics(metrics, step)

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the run's settings, to compare runs by."""
        if _is_main():
            self.experiment.log_hparams(vars(params) if isinstance(params, Namespace) else params)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Write the model's graph on its `example_input_array`."""
        inputs = getattr(model, "example_input_array", None) if input_array is None else input_array
        if inputs is not None and _is_main():
            self.experiment.log_graph(model, inputs)

    def finalize(self, status: str) -> None:
        """Write everything out, record how the run ended, and close."""
        if self._experiment is not None:
            self._experiment.finish(success=status == "success")
            self._experiment = None


def _is_main() -> bool:
    return bool(rank_zero_only.rank == 0)
