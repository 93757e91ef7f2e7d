"""MetricsCallback: a TrainingMonitor around the batches of a Lightning trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.integrations.lightning.library import Callback
from hjepa_dist_metrics.integrations.lightning.logged import LoggedValues
from hjepa_dist_metrics.integrations.lightning.observing import ModuleObservation
from hjepa_dist_metrics.integrations.micro_batches import batch_size
from hjepa_dist_metrics.integrations.settings import logging_config
from hjepa_dist_metrics.monitor import LoggingConfig, OnAlert, TrainingMonitor, WatchFeatures
from hjepa_dist_metrics.sinks import HParam

logger = logging.getLogger(__name__)


class MetricsCallback(Callback):  # type: ignore[misc]
    """Measure what a Lightning trainer trains, on every rank alike; the main process writes.

    `config` is what `TrainingMonitor` takes; a run without `experiment_name` is called "lightning", and
    `log_frequency` is the trainer's `log_every_n_steps` by default. `watch_features` names submodules whose
    outputs are measured as features: see `TrainingMonitor.watch_features`. What `training_step` returns
    besides the loss, "labels" for probes among it, is handed over where its name is known: see
    `ModuleObservation`. Numbers that `self.log` gets in a validation are written as `val/...`, exact over
    ranks that have samples unevenly; with `exact_means` those of the training too, under their own names.
    `on_alert` is called with each alert that begins. `monitor` is the `TrainingMonitor` while `fit` runs.

    A rule of `logging.alerts.stop_on` sets `trainer.should_stop`. Checkpoints of the trainer hold the metrics
    too, and `fit(ckpt_path=...)` goes on in the same files.
    """

    def __init__(
        self,
        config: Any = None,
        *,
        watch_features: WatchFeatures = None,
        exact_means: bool = False,
        on_alert: OnAlert | None = None,
    ) -> None:
        self._given, self._watch, self._exact = config, watch_features, exact_means
        self._on_alert = on_alert
        self._loaded: dict[str, Any] = {}  # of the checkpoint that fit goes on from
        self._final: dict[str, Any] = {}  # of the run that is over
        self._monitor: TrainingMonitor | None = None

    @property
    def monitor(self) -> TrainingMonitor:
        """Return the monitor of the training under way; ConfigError where there is none."""
        if self._monitor is None:
            raise ConfigError("there is a monitor while Trainer.fit runs only: read it in a hook")
        return self._monitor

    # -- the trainer's hooks -----------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the run, or go on with the one that the checkpoint belongs to."""
        saved, self._loaded = self._loaded, {}
        config = logging_config(self._given, _defaults(trainer))
        if saved:
            config = replace(config, experiment_name=saved["run_name"])
        self._monitor = monitor = self._open(trainer, pl_module, config, saved)
        if saved:
            monitor.load_state_dict(saved["monitor"])
        self._logged = LoggedValues(pl_module, monitor, training=self._exact)
        monitor.watch_features(self._watch, pl_module)
        self._observation = ModuleObservation(trainer, pl_module, monitor)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin a batch."""
        self._logged.batch_size = batch_size(batch)
        self._observation.begin_batch(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Begin a backward pass."""
        self._observation.begin_backward(loss)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """End a backward pass."""
        self._observation.phases.leave()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Begin an optimizer's step."""
        self._observation.begin_optimizer()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step, and end the training where a rule says so."""
        if self._observation.end_batch(outputs, batch):
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what is logged once an epoch."""
        self.monitor.end_epoch()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin a validation inside of the training."""
        if self._monitor is not None:
            self._observation.phases.pause()
            self._logged.validating = True

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the size of a batch."""
        if self._monitor is not None:
            self._logged.batch_size = batch_size(batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what the validation logged."""
        if self._monitor is not None:
            self._logged.validating = False
            self._monitor.log(self._logged.validated())
            self._observation.phases.resume()
            self._stop(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the last steps and close the run."""
        if self._monitor is None:
            return
        self._leave()
        self._monitor.finish()
        self._final = self._state()
        with self.monitor:
            self._monitor = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run of a training that an error ends, with what has been written."""
        if self._monitor is not None:
            self._leave()
            monitor, self._monitor = self._monitor, None
            monitor.__exit__(type(exception), exception, None)

    # -- checkpoints -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics for a checkpoint. A collective call, as Lightning's own of this is."""
        return self._state() if self._monitor is not None else self._final

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's metrics until the training starts."""
        self._loaded = state_dict

    # -- inside ------------------------------------------------------------------------------------------

    def _open(
        self, trainer: Any, module: Any, config: LoggingConfig, saved: Mapping[str, Any]
    ) -> TrainingMonitor:
        return TrainingMonitor(
            trainer.model,
            trainer.optimizers,
            config,
            resume=bool(saved),
            start_step=saved["monitor"]["step_number"] if saved else None,
            steps_per_epoch=_steps_per_epoch(trainer),
            hparams=None if saved else _hparams(module),
            on_alert=self._on_alert,
        )

    def _state(self) -> dict[str, Any]:
        self.monitor.flush()
        return {"run_name": self.monitor.run_name, "monitor": self.monitor.state_dict()}

    def _stop(self, trainer: Any) -> None:
        if rule := self.monitor.should_stop:
            if not trainer.should_stop and self.monitor.context.is_main:
                logger.warning("the training stops: %s is in logging.alerts.stop_on and has fired", rule)
            trainer.should_stop = True

    def _leave(self) -> None:
        self._observation.close()
        self._logged.close()


def _defaults(trainer: Any) -> Mapping[str, Any]:
    """Return what the trainer's arguments say about logging."""
    return {"experiment_name": "lightning", "log_frequency": max(1, int(trainer.log_every_n_steps))}


def _steps_per_epoch(trainer: Any) -> int | None:
    batches = trainer.num_training_batches
    return None if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)


def _hparams(module: Any) -> dict[str, HParam]:
    return {k: v for k, v in dict(module.hparams).items() if isinstance(v, (bool, int, float, str))}
