"""Settings of a run's logging: the section `logging` of its YAML file.

Every dataclass is frozen and checks itself: a bad value raises ConfigError naming key, value and what is
valid. `from_mapping` builds a LoggingConfig from any of the forms that a user may have.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from hjepa_dist_metrics.catalog import FINDINGS, GROUPS
from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.settings import outputs
from hjepa_dist_metrics.settings.cadence import Every
from hjepa_dist_metrics.settings.field_docs import explain_fields, field_docs
from hjepa_dist_metrics.settings.mapping import build, to_mapping
from hjepa_dist_metrics.settings.outputs import (
    OUTPUT_SECTIONS,
    JsonlConfig as JsonlConfig,
    MlflowConfig as MlflowConfig,
    PrometheusConfig as PrometheusConfig,
    TensorBoardConfig as TensorBoardConfig,
    TrackioConfig as TrackioConfig,
    WandbConfig as WandbConfig,
    WandbMode as WandbMode,
    WebhookConfig as WebhookConfig,
)
from hjepa_dist_metrics.settings.required import require
from hjepa_dist_metrics.settings.run_name import check_run_name

SyncMode = Literal["background", "inline"]
Projection = Literal["pca", "tsne", "umap"]
Detail = Literal["standard", "full"]
ProfileName = Literal["auto", "ssl", "supervised", "language"]

_OTHER_SECTIONS = frozenset({"model", "data", "training"})


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


@dataclass(frozen=True)
class Cadences:
    """Hold the steps between two values of each family; None is never."""

    scalars: int | None
    representations: int | None
    histograms: int | None
    figures: int | None
    system: int | None

    def every(self) -> dict[str, Every]:
        """Return a fresh `Every` for each family."""
        return {name: Every(steps=steps) for name, steps in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class CadenceConfig:
    """Steps between two values of each family: null derives it from `log_frequency`, 0 is never."""

    scalars: int | None = None
    """Loss, EMA, masking, gradients, learning rate, throughput: every `log_frequency` steps."""
    representations: int | None = None
    """Collapse, hierarchy and prediction metrics: every 10 * `log_frequency` steps."""
    histograms: int | None = None
    """Histograms: every 10 * `log_frequency` steps."""
    figures: int | None = None
    """Images and embeddings: every 50 * `log_frequency` steps."""
    system: int | None = None
    """Memory and utilisation: every 10 epochs; every 10 * `log_frequency` steps where epochs are unknown."""

    def __post_init__(self) -> None:
        for name, steps in dataclasses.asdict(self).items():
            require(
                steps is None or steps >= 0, f"cadence.{name}", steps, "null, 0 (never) or a number of steps"
            )

    def resolve(self, log_frequency: int, steps_per_epoch: int | None = None) -> Cadences:
        """Return the cadences in steps; at `log_frequency` 100 those are 100, 1000, 1000, 5000, 10 epochs."""
        derived = {
            "scalars": log_frequency,
            "representations": 10 * log_frequency,
            "histograms": 10 * log_frequency,
            "figures": 50 * log_frequency,
            "system": 10 * (steps_per_epoch or log_frequency),
        }
        set_here = dataclasses.asdict(self)
        merged = {
            name: steps if set_here[name] is None else set_here[name] for name, steps in derived.items()
        }
        return Cadences(**{name: steps or None for name, steps in merged.items()})


@dataclass(frozen=True)
class AlertsConfig:
    """The judge, which watches the merged values."""

    enabled: bool = True
    """Raise alerts on the console and under `alerts/`."""
    stop_on: list[str] = field(default_factory=list)
    """Findings, or groups of them such as collapse, that end the run, cleanly and on all ranks."""
    patience: int = 2
    """Logs in a row that must have evidence before a finding begins; nonfinite values need one."""
    patience_steps: int = 5
    """Steps for which the evidence must last."""
    recovery: int = 3
    """Logs in a row without evidence after which a finding ends."""
    webhook: WebhookConfig = field(default_factory=WebhookConfig)
    """Where findings that begin are posted."""

    def __post_init__(self) -> None:
        require(self.patience >= 1, "alerts.patience", self.patience, "1 or more")
        require(self.patience_steps >= 0, "alerts.patience_steps", self.patience_steps, "0 or more")
        require(self.recovery >= 1, "alerts.recovery", self.recovery, "1 or more")
        _require_known("alerts.stop_on", self.stop_on, [*GROUPS, *FINDINGS])


@dataclass(frozen=True)
class GradientsConfig:
    """What is measured of gradients and updates, with the scalars and the histograms."""

    enabled: bool = True
    """Measure gradient flow, and compare the ranks' parameters; switch off where each rank trains its own."""
    depth: int = 1
    """Parts of a parameter's name that make its module: 1 tells `context_encoder` from `predictor`."""
    patterns: dict[str, str] | None = None
    """Modules by name, each with a regular expression to find in parameters' names; null goes by `depth`."""
    per_parameter: bool = False
    """Write every parameter's numbers too: thousands of tags."""
    updates: bool = True
    """Compare the parameters before and after the optimizer's step on steps that log."""
    noise: bool = False
    """Estimate the gradient noise scale under DDP and FSDP2, and from micro-batches on one process."""

    def __post_init__(self) -> None:
        require(self.depth >= 1, "gradients.depth", self.depth, "1 or more")
        for name, pattern in (self.patterns or {}).items():
            require(_compiles(pattern), f"gradients.patterns.{name}", pattern, "a regular expression")


@dataclass(frozen=True)
class ProbesConfig:
    """Classifiers of features, where the training loop hands `labels` to `TrainingMonitor.step`."""

    enabled: bool = True
    """Make a linear and a kNN probe of each stream of features that comes with labels."""
    num_classes: int | None = None
    """Classes: labels beyond are an error; null takes the labels that occur."""
    queue: int | None = None
    """Labelled rows that a probe keeps of all ranks; null takes 16384, fewer of more than 128 features."""

    def __post_init__(self) -> None:
        require(
            self.num_classes is None or self.num_classes >= 2,
            "probes.num_classes",
            self.num_classes,
            "null or 2 or more",
        )
        require(self.queue is None or self.queue >= 8, "probes.queue", self.queue, "null or 8 or more")


@dataclass(frozen=True)
class FiguresConfig:
    """Pictures of the run, at the cadence of figures (extra `figures`)."""

    enabled: bool = True
    """Draw figures where the training loop hands `images` to `TrainingMonitor.step`."""
    projection: Projection = "pca"
    """Map of predictions and targets: `pca`, or `tsne` or `umap`, which take seconds in the background."""

    def __post_init__(self) -> None:
        allowed = get_args(Projection)
        require(
            self.projection in allowed, "figures.projection", self.projection, "one of " + ", ".join(allowed)
        )


@dataclass(frozen=True)
class ActivationsConfig:
    """Size, outliers and dead units of the outputs of the model's blocks, with the representations."""

    enabled: bool = False
    """Measure each block's output on the steps that log, in which compiled models run eagerly."""
    modules: list[str] | None = None
    """Names of modules or regular expressions of whole names; null takes the blocks of the model."""
    gradients: bool = False
    """Measure the gradients of these outputs too."""
    per_block: bool = False
    """Write every block's numbers too: six tags a block."""

    def __post_init__(self) -> None:
        for pattern in self.modules or ():
            require(_compiles(pattern), "activations.modules", pattern, "names or regular expressions")


@dataclass(frozen=True)
class AttentionConfig:
    """Entropy, largest logit and sink of the model's attention heads, with the representations."""

    enabled: bool = False
    """Measure each attention head on the steps that log, in which compiled models run eagerly."""
    per_layer: bool = False
    """Write every layer's numbers too: three tags a layer."""


@dataclass(frozen=True)
class ExpertsConfig:
    """Load of experts, with the scalars, where the loop hands `router_logits` to `TrainingMonitor.step`."""

    per_layer: bool = False
    """Write every layer's numbers too: three tags a layer."""


@dataclass(frozen=True)
class LoggingConfig:
    """What a run writes, where, and how often."""

    experiment_name: str = "hjepa_default"
    """Name of the run and of its files; a second run gets the suffix `-2`."""
    log_dir: str = "results/logs"
    """Directory of all runs' files."""
    log_frequency: int = 100
    """Steps between two logs of scalars; the other cadences follow it."""
    log_interval: int | None = None
    """Steps between two logs of scalars, another name of `log_frequency`; null takes that."""
    histogram_interval: int | None = None
    """EPOCHS between two histograms of weights and gradients; null takes `cadence.histograms`, in steps."""
    sync: SyncMode = "background"
    """Merge over ranks on a thread (`background`) or in the training loop (`inline`)."""
    sync_timeout: float = 60.0
    """Seconds after which a rank that has not arrived at a sync is reported as missing."""
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig)
    """Event files."""
    jsonl: JsonlConfig = field(default_factory=JsonlConfig)
    """JSON lines."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    """An MLflow tracking server."""
    trackio: TrackioConfig = field(default_factory=TrackioConfig)
    """Trackio."""
    prometheus: PrometheusConfig = field(default_factory=PrometheusConfig)
    """An endpoint that Prometheus scrapes."""
    cadence: CadenceConfig = field(default_factory=CadenceConfig)
    """How often each family of metrics is written."""
    gradients: GradientsConfig = field(default_factory=GradientsConfig)
    """Gradient flow and updates."""
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    """Classifiers of features."""
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    """Activations of the model's blocks."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Attention of the model's heads."""
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    """Load of the experts of mixture layers."""
    figures: FiguresConfig = field(default_factory=FiguresConfig)
    """Pictures of the run."""
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    """Rules that watch the run."""
    profile: ProfileName = "auto"
    """Kind of training, for the dashboards and texts that it gets: `auto` tells it from what is measured."""
    detail: Detail = "standard"
    """Numbers in TensorBoard: `standard` leaves out what is read rarely (at most 200 tags for H-JEPA), `full`
    does not. JSON lines have all numbers; without them event files do."""
    dashboards: list[str] | Literal["default"] = "default"
    """Dashboards in TensorBoard: `default` is what fits the profile, a list names files of
    configs/dashboards/ (without `.yaml`) or paths, an empty list is none."""

    def __post_init__(self) -> None:
        check_run_name(self.experiment_name, "logging.experiment_name")
        require(bool(self.log_dir) and "\0" not in self.log_dir, "log_dir", self.log_dir, "a directory")
        require(self.log_frequency >= 1, "log_frequency", self.log_frequency, "1 or more")
        for key in ("log_interval", "histogram_interval"):
            interval = getattr(self, key)
            require(interval is None or interval >= 1, key, interval, "null or 1 or more")
        require(self.sync_timeout > 0, "sync_timeout", self.sync_timeout, "more than 0 (seconds)")
        require(self.sync in ("background", "inline"), "sync", self.sync, "'background' or 'inline'")
        details, profiles = get_args(Detail), get_args(ProfileName)
        require(self.detail in details, "detail", self.detail, "one of " + ", ".join(details))
        require(self.profile in profiles, "profile", self.profile, "one of " + ", ".join(profiles))

    def cadences(self, steps_per_epoch: int | None = None) -> Cadences:
        """Return the steps between two values of each family.

        ConfigError where an interval is in epochs and their steps are not known.
        """
        cadences = self.cadence.resolve(self.log_interval or self.log_frequency, steps_per_epoch)
        if self.histogram_interval is None:
            return cadences
        require(
            steps_per_epoch is not None,
            "histogram_interval",
            self.histogram_interval,
            "null, unless the monitor is told steps_per_epoch",
        )
        return dataclasses.replace(cadences, histograms=self.histogram_interval * (steps_per_epoch or 1))


_SECTIONS = (
    *OUTPUT_SECTIONS,
    CadenceConfig,
    AlertsConfig,
    GradientsConfig,
    ProbesConfig,
    ActivationsConfig,
    AttentionConfig,
    ExpertsConfig,
    FiguresConfig,
    LoggingConfig,
)
DOCS = {**field_docs(__file__), **field_docs(outputs.__file__)}
for _section in _SECTIONS:
    explain_fields(_section, DOCS)


def from_mapping(source: object = None) -> LoggingConfig:
    """Build a LoggingConfig from None (defaults), a LoggingConfig, a mapping, a dataclass or a namespace.

    The source is the logging section itself, or a whole run's configuration with a section `logging`; there
    `model`, `data` and `training` are left alone. Unknown keys and wrong types raise ConfigError with the
    key's path, the value, what is expected, and the nearest valid key.
    """
    if isinstance(source, LoggingConfig):
        return source
    if source is None:
        return LoggingConfig()
    section = to_mapping(source)
    if section is None:
        raise ConfigError(
            f"logging configuration is {source!r} ({type(source).__name__}); "
            "expected a mapping, a LoggingConfig, or a run's configuration with a section 'logging'"
        )
    if "logging" in section:
        return from_mapping(section["logging"])
    if _OTHER_SECTIONS & set(section):
        return LoggingConfig()
    return build(LoggingConfig, section, "logging")


def to_dict(config: LoggingConfig) -> dict[str, Any]:
    """Return the settings as plain nested dicts, as YAML has them."""
    return dataclasses.asdict(config)


def _require_known(key: str, names: Iterable[str], known: Collection[str]) -> None:
    for name in names:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        require(name in known, key, name, f"{', '.join(known)}{hint}")
