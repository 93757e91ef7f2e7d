"""Where a run's values go: files on the main process, nowhere on the others, behind the same object."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.logging.broadcast_decision import announce
from hjepa_dist_metrics.logging.outputs import configured_sinks
from hjepa_dist_metrics.logging.profile import choose_layout
from hjepa_dist_metrics.parallel import ProcessContext
from hjepa_dist_metrics.parallel.launcher import lost_processes
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.sinks import (
    BackgroundSink,
    HParam,
    Sink,
    SinkGroup,
    claim_run_name,
    last_logged_step,
)
from hjepa_dist_metrics.sinks.tensorboard.sink import Names, own_name
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
_LONGEST_REASON = 600  # an announcement takes 4,096 bytes

Output = BackgroundSink | NullSink


def agree_on_run(
    config: LoggingConfig, context: ProcessContext, resume: bool, start_step: int | None
) -> tuple[str, int]:
    """Return the run's name and its first step, the same on every rank. A collective call.

    The main process claims the name. The first step is `start_step`; by default 0, or what follows the last
    logged step where the run is resumed. Where it cannot claim, every rank raises the same ConfigError.
    """
    if context.is_main and context.world_size == 1 and (advice := lost_processes()):
        logger.warning(advice)
    claimed = _claim_or_reason(config, resume, start_step) if context.is_main else None
    said = announce(claimed, context, config.sync_timeout, f"the run {config.experiment_name!r}")
    run_name, first, wrong = json.loads(said) if said else (config.experiment_name, start_step or 0, "")
    if wrong:
        raise ConfigError(wrong)
    return str(run_name), int(first)


def _claim_or_reason(config: LoggingConfig, resume: bool, start_step: int | None) -> str:
    """Return JSON of name, first step, and why that failed: the other ranks wait for an answer."""
    try:
        return json.dumps([*_claim(config, resume, start_step), ""])
    except Exception as error:
        reason = f"the run {config.experiment_name!r} cannot be opened in {config.log_dir}: "
        return json.dumps(["", 0, (reason + f"{type(error).__name__}: {error}")[:_LONGEST_REASON]])


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
    names: Names = own_name,
) -> Output:
    """Open the configured sinks and `more`, behind a writing thread, on the main process; else a null sink.

    `names` gives the names under which TensorBoard shows the scalars of a tag.

    Dashboards and the webhook's URL are read on every rank, so that a wrong one is the same ConfigError
    everywhere.
    """
    layout = choose_layout(config, num_levels or _DEFAULT_LEVELS)
    config.alerts.webhook.secret_url()
    if not context.is_main:
        return NullSink()
    factories = {**configured_sinks(config, run_name, start_step, layout, names)}
    factories |= {f"output {number}": make for number, make in enumerate(more)}
    return BackgroundSink(SinkGroup.open(factories))
