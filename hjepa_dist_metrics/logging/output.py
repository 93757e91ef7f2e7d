"""Where a run's values go: files on the main process, nowhere on the others, behind the same object."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from hjepa_dist_metrics.catalog.dashboards import load_dashboards
from hjepa_dist_metrics.logging.broadcast_decision import announce
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.sinks import (
    BackgroundSink,
    HParam,
    JsonlSink,
    Sink,
    SinkGroup,
    TensorBoardSink,
    WandbSink,
    claim_run_name,
    jsonl_path,
    last_logged_step,
    tensorboard_dir,
    wandb_dir,
)
from hjepa_dist_metrics.values import Value

logger = logging.getLogger("hjepa_dist_metrics.monitor")


class NullSink:
    """Take values and do nothing: what every process but the main one writes to."""

    failures: tuple[str, ...] = ()

    def write(self, step: int, values: Mapping[str, Value], wall_time: float | None = None) -> None:
        """Drop the values."""

    def write_later(self, step: int, make: Callable[[], Mapping[str, Value]], size: int = 0) -> None:
        """Drop the values without making them."""

    def write_hparams(self, hparams: Mapping[str, HParam], metrics: Sequence[str] = ()) -> None:
        """Drop the settings."""

    def write_status(self, success: bool) -> None:
        """Drop the end."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


_DEFAULT_LEVELS = 3

Output = BackgroundSink | NullSink


def agree_on_run(
    config: LoggingConfig, context: ProcessContext, resume: bool, start_step: int | None
) -> tuple[str, int]:
    """Return the run's name and its first step, the same on every rank. A collective call.

    The main process claims the name. The first step is `start_step`; by default 0, or what follows the last
    logged step where the run is resumed.
    """
    claimed = None
    if context.is_main:
        claimed = json.dumps(_claim(config, resume, start_step))
    said = announce(claimed, context, config.sync_timeout, f"the run {config.experiment_name!r}")
    run_name, first = json.loads(said) if said else (config.experiment_name, start_step or 0)
    return str(run_name), int(first)


def _claim(config: LoggingConfig, resume: bool, start_step: int | None) -> tuple[str, int]:
    run_name = claim_run_name(config.log_dir, config.experiment_name, resume)
    if run_name != config.experiment_name:
        taken = f"a run {config.experiment_name!r} exists in {config.log_dir}"
        logger.warning("%s: this one is %r (to go on with the old one, resume it)", taken, run_name)
    if start_step is not None:
        return run_name, start_step
    last = last_logged_step(config.log_dir, run_name) if resume else None
    return run_name, 0 if last is None else last + 1


def open_output(
    config: LoggingConfig,
    context: ProcessContext,
    run_name: str,
    start_step: int,
    num_levels: int | None = None,
    more: Iterable[Callable[[], Sink]] = (),
) -> Output:
    """Open the configured sinks and `more`, behind a writing thread, on the main process; else a null sink.

    Dashboards are read on every rank, so that a wrong name is the same ConfigError everywhere.
    """
    layout = load_dashboards(config.dashboards, num_levels or _DEFAULT_LEVELS)
    if not context.is_main:
        return NullSink()
    factories: dict[str, Callable[[], Sink]] = {}
    if config.tensorboard.enabled:
        directory = tensorboard_dir(config.log_dir, run_name)
        factories[f"TensorBoard at {directory}"] = lambda: TensorBoardSink(
            directory,
            start_step=start_step,
            flush_secs=config.tensorboard.flush_secs,
            layout=layout,
        )
    if config.jsonl.enabled:
        path = jsonl_path(config.log_dir, run_name)
        factories[f"JSON lines at {path}"] = lambda: JsonlSink(path, start_step=start_step)
    if config.wandb.enabled:
        factories["Weights & Biases"] = lambda: _open_wandb(config, run_name)
    factories |= {f"output {number}": make for number, make in enumerate(more)}
    return BackgroundSink(SinkGroup.open(factories))


def _open_wandb(config: LoggingConfig, run_name: str) -> Sink:
    settings = config.wandb
    return WandbSink(
        wandb_dir(config.log_dir),
        run_name,
        settings.project,
        entity=settings.entity,
        tags=settings.tags,
        mode=settings.mode,
    )
