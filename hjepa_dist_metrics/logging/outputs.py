"""What opens the sinks that a run's configuration names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from hjepa_dist_metrics.errors import MissingExtraError
from hjepa_dist_metrics.settings.schema import LoggingConfig
from hjepa_dist_metrics.sinks import (
    JsonlSink,
    MlflowSink,
    PrometheusSink,
    Retrying,
    Sink,
    TensorBoardSink,
    TrackioSink,
    WandbSink,
    WebhookSink,
    jsonl_path,
    mlflow_dir,
    tensorboard_dir,
    wandb_dir,
)
from hjepa_dist_metrics.sinks.tensorboard.layout import MakeLayout
from hjepa_dist_metrics.sinks.tensorboard.sink import Names, own_name

Factories = dict[str, Callable[[], Sink]]


def configured_sinks(
    config: LoggingConfig, run_name: str, start_step: int, layout: MakeLayout, names: Names = own_name
) -> Factories:
    """Return what opens each configured sink, by a name for messages.

    `names` gives TensorBoard's names of a tag. Where a place is behind a network, its sink is opened by the
    thread that writes to it.
    """
    return {
        **_files(config, run_name, start_step, layout, names),
        **_trackers(config, run_name, start_step),
        **_watchers(config, run_name),
    }


def _files(
    config: LoggingConfig, run_name: str, start_step: int, layout: MakeLayout, names: Names
) -> Factories:
    factories: Factories = {}
    if config.tensorboard.enabled:
        directory = tensorboard_dir(config.log_dir, run_name)
        seconds = config.tensorboard.flush_secs
        factories[f"TensorBoard at {directory}"] = lambda: TensorBoardSink(
            directory, start_step, seconds, layout, names
        )
    if config.jsonl.enabled:
        path = jsonl_path(config.log_dir, run_name)
        factories[f"JSON lines at {path}"] = lambda: JsonlSink(path, start_step)
    return factories


def _trackers(config: LoggingConfig, run_name: str, start_step: int) -> Factories:
    factories: Factories = {}
    if config.wandb.enabled:
        factories["Weights & Biases"] = lambda: _open_wandb(config, run_name)
    if config.mlflow.enabled:
        factories["MLflow"] = lambda: _open_mlflow(config, run_name)
    if config.trackio.enabled:
        factories["trackio"] = lambda: TrackioSink(config.trackio.project, run_name, resume=start_step > 0)
    return factories


def _watchers(config: LoggingConfig, run_name: str) -> Factories:
    factories: Factories = {}
    if config.prometheus.enabled:
        host, port = config.prometheus.host, config.prometheus.port
        factories[f"Prometheus endpoint at {host}:{port}"] = lambda: PrometheusSink(run_name, host, port)
    url = config.alerts.webhook.secret_url()
    if url is not None:
        factories["webhook"] = lambda: WebhookSink(url, run_name, config.alerts.webhook.format)
    return factories


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


def _open_mlflow(config: LoggingConfig, run_name: str) -> Sink:
    if find_spec("mlflow") is None:  # said at once and not when the first values come
        raise MissingExtraError("mlflow", "mlflow", "Logging to MLflow")
    settings, directory = config.mlflow, mlflow_dir(config.log_dir)
    return Retrying(
        "MLflow", lambda: MlflowSink(directory, run_name, settings.experiment, settings.tracking_uri)
    )
