"""MetricsCallback: a TrainingMonitor around the steps of a `transformers.Trainer`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hjepa_dist_metrics.errors import ConfigError, MissingExtraError
from hjepa_dist_metrics.integrations.settings import logging_config
from hjepa_dist_metrics.monitor import (
    LoggingConfig,
    MetricsLogger,
    OnAlert,
    TrainingMonitor,
    WatchFeatures,
)

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers", "huggingface", "MetricsCallback for the Trainer") from error

from hjepa_dist_metrics.integrations.huggingface import checkpoint, tags
from hjepa_dist_metrics.integrations.huggingface.caller import calling_trainer
from hjepa_dist_metrics.integrations.huggingface.observing import TrainerObservation

logger = logging.getLogger(__name__)


class MetricsCallback(TrainerCallback):  # type: ignore[misc]
    """Measure what a Trainer trains, on every rank alike; the main process writes.

    `config` is what `TrainingMonitor` takes. What it leaves out comes from the training arguments:
    `experiment_name` from `run_name`, or the name of `output_dir`, and `log_frequency` from `logging_steps`.
    `watch_features` names modules whose outputs are measured as features: see
    `TrainingMonitor.watch_features`. Where batches have "labels" [B], these make probes of them. `on_alert`
    is called with each alert that begins. `monitor` is the `TrainingMonitor` while `train` runs: add metrics,
    rules and observers of your own in a callback of your own that stands behind this one.

    A rule of `logging.alerts.stop_on` ends the training through `control.should_training_stop`. Checkpoints
    of the Trainer hold the metrics too, and `train(resume_from_checkpoint=...)` goes on in the same files.
    """

    def __init__(
        self,
        config: Any = None,
        *,
        watch_features: WatchFeatures = None,
        on_alert: OnAlert | None = None,
    ) -> None:
        self._given, self._watch, self._on_alert = config, watch_features, on_alert
        self._monitor: TrainingMonitor | None = None
        self._observation: TrainerObservation | None = None
        self._optimizer_phase: AbstractContextManager[None] | None = None
        self._last_run: Any = None  # the settings of the run that is over

    @property
    def monitor(self) -> TrainingMonitor:
        """Return the monitor of the training under way; ConfigError where there is none."""
        if self._monitor is None:
            raise ConfigError(
                "there is a monitor while Trainer.train runs only: read it in a callback's event"
            )
        return self._monitor

    # -- the Trainer's events ----------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the run, or go on with the one that the Trainer's checkpoint belongs to."""
        self._abandon()
        trainer, folder = calling_trainer()
        config = logging_config(self._given, _defaults(args, state))
        saved = None
        if state.global_step:
            saved = checkpoint.load(folder or checkpoint.folder(args, state))
            config = checkpoint.continued(config, saved)
        self._monitor = monitor = self._open(trainer, config, args, state)
        self._last_run = checkpoint.named(config, monitor.run_name)
        if saved is not None:
            monitor.load_state_dict(saved["monitor"])
        monitor.watch_features(self._watch)
        self._observation = TrainerObservation(trainer, monitor)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to time the optimizer's step."""
        self._optimizer_phase = self.monitor.optimizer_step()
        self._optimizer_phase.__enter__()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the optimizer's step."""
        if self._optimizer_phase is not None:
            self._optimizer_phase.__exit__(None, None, None)
            self._optimizer_phase = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Record the step, and end the training where a rule says so."""
        if self._observation is not None:
            self.monitor.step(**self._observation.take_step())
        return self._stop(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what is logged once an epoch."""
        self.monitor.end_epoch()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> Any:
        """Write an evaluation's metrics as `eval/...`, and its loss as `val/loss` too."""
        values = tags.of_evaluation(metrics or {})
        if self._monitor is not None:
            self._monitor.log(values)
            return self._stop(control)
        if self._last_run is not None:  # `trainer.evaluate()` after `trainer.train()`
            with MetricsLogger(config=self._last_run, resume=True) as writer:
                writer.log_metrics(values, max(state.global_step - 1, 0))
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        """Write what a trainer of another kind reports, rewards for instance, as `train/...`."""
        values = tags.of_log(logs or {})
        if self._monitor is not None and values:
            self._monitor.log(values)
            return self._stop(control)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the metrics into the Trainer's checkpoint, which has just been written."""
        if not state.is_hyper_param_search:
            checkpoint.save(self.monitor, checkpoint.folder(args, state), writes=args.should_save)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last steps and close the run."""
        monitor, self._monitor = self.monitor, None
        self._leave_trainer()
        with monitor:
            pass

    # -- inside ------------------------------------------------------------------------------------------

    def _open(self, trainer: Any, config: LoggingConfig, args: Any, state: Any) -> TrainingMonitor:
        return TrainingMonitor(
            trainer.model_wrapped,
            trainer.optimizer,
            config,
            resume=bool(state.global_step),
            start_step=state.global_step,
            steps_per_epoch=math.ceil(state.max_steps / max(1, state.num_train_epochs)),
            total_steps=state.max_steps,
            hparams=None if state.global_step else tags.hparams(args),
            on_alert=self._on_alert,
        )

    def _stop(self, control: Any) -> Any:
        if rule := self.monitor.should_stop:
            if not control.should_training_stop and self.monitor.context.is_main:
                logger.warning("the training stops: %s is in logging.alerts.stop_on and has fired", rule)
            control.should_training_stop = True
        return control

    def _abandon(self) -> None:
        """Close the run of a training that an error ended."""
        monitor, self._monitor, self._optimizer_phase = self._monitor, None, None
        self._leave_trainer()
        if monitor is not None:
            monitor.run.release()

    def _leave_trainer(self) -> None:
        if self._observation is not None:
            self._observation.close()
            self._observation = None


def _defaults(args: Any, state: Any) -> Mapping[str, Any]:
    """Return what the training arguments say about logging."""
    return {
        "experiment_name": args.run_name or Path(args.output_dir).name or "trainer",
        "log_frequency": max(1, int(state.logging_steps)),
    }
