"""Settings of the places that a run's values and alerts go to."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import urlsplit

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings.required import require

WandbMode = Literal["online", "offline"]
WebhookFormat = Literal["json", "slack", "discord"]


@dataclass(frozen=True)
class TensorBoardConfig:
    """Event files for TensorBoard."""

    enabled: bool = True
    """Write event files to `<log_dir>/tensorboard/<experiment_name>/`."""
    flush_secs: float = 10.0
    """Seconds after which values must be on disk: what a SIGKILL can lose at most."""

    def __post_init__(self) -> None:
        require(self.flush_secs > 0, "tensorboard.flush_secs", self.flush_secs, "more than 0")


@dataclass(frozen=True)
class JsonlConfig:
    """JSON lines, one object a step."""

    enabled: bool = True
    """Write `<log_dir>/metrics/<experiment_name>.jsonl`."""


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases (extra `wandb`)."""

    enabled: bool = False
    """Send values to Weights & Biases as well."""
    project: str = "h-jepa"
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team; None is the default of the account."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""
    mode: WandbMode = "online"
    """`offline` keeps the run on disk for a later `wandb sync`."""


@dataclass(frozen=True)
class MlflowConfig:
    """An MLflow tracking server, or a local database (extra `mlflow`)."""

    enabled: bool = False
    """Send values to MLflow as well."""
    tracking_uri: str | None = None
    """`http://host:5000` or `sqlite:///mlflow.db`; null takes MLFLOW_TRACKING_URI or MLflow's default."""
    experiment: str = "h-jepa"
    """MLflow's experiment that the run belongs to."""


@dataclass(frozen=True)
class TrackioConfig:
    """Trackio, a local tracker with a dashboard (extra `trackio`)."""

    enabled: bool = False
    """Write to trackio as well: `trackio show` opens its dashboard, TRACKIO_DIR says where values lie."""
    project: str = "h-jepa"
    """Project that the run belongs to."""

    def __post_init__(self) -> None:
        require(bool(self.project.strip()), "trackio.project", self.project, "a name")


@dataclass(frozen=True)
class PrometheusConfig:
    """An endpoint `/metrics` of the main process, for Prometheus to scrape."""

    enabled: bool = False
    """Serve the newest numbers at `http://host:port/metrics`."""
    host: str = "127.0.0.1"
    """Address to serve on; `0.0.0.0` lets other machines scrape. There is no password."""
    port: int = 0
    """Port to serve on; 0 takes a free one, which is written to the log."""

    def __post_init__(self) -> None:
        require(bool(self.host), "prometheus.host", self.host, "an address")
        require(0 <= self.port < 65536, "prometheus.port", self.port, "0 (a free one) to 65535")


@dataclass(frozen=True)
class WebhookConfig:
    """A URL that alerts are posted to."""

    url: str | None = field(default=None, repr=False)
    """Where to post each alert that begins; null is nowhere. `$NAME` reads the environment variable NAME, so
    that the secret is in no file. It is written to no log."""
    format: WebhookFormat = "json"
    """Body of the post: `json`, or what `slack` or `discord` take."""

    def __post_init__(self) -> None:
        allowed = get_args(WebhookFormat)
        require(self.format in allowed, "alerts.webhook.format", self.format, "one of " + ", ".join(allowed))
        if self.url is not None and not self.url.startswith("$") and not _is_http(self.url):
            # It is a secret, also where it is wrong: the error does not quote it.
            raise ConfigError("logging.alerts.webhook.url is no http:// or https:// URL, and no $NAME")

    def secret_url(self) -> str | None:
        """Return the URL, read from the environment where it is `$NAME`; ConfigError where it is not set."""
        if self.url is None or not self.url.startswith("$"):
            return self.url
        url = os.environ.get(self.url[1:].strip("{}"), "")
        if not _is_http(url):
            raise ConfigError(
                f"logging.alerts.webhook.url is {self.url!r}, but that environment variable holds no "
                "http:// or https:// URL"
            )
        return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
    except ValueError:
        return False


OUTPUT_SECTIONS = (
    TensorBoardConfig,
    JsonlConfig,
    WandbConfig,
    MlflowConfig,
    TrackioConfig,
    PrometheusConfig,
    WebhookConfig,
)
