"""Which metrics a step's observations feed, made when an observation first appears."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import (
    Collapse,
    DistributedMetric,
    GradientClipping,
    GradientFlow,
    GradientNoise,
    HierarchicalLoss,
    LearningRate,
    Memory,
    MetricCollection,
    ReplicatedScalars,
    Stragglers,
    Throughput,
    TotalSamples,
    TrainingStability,
    Updates,
    WeightedMean,
)
from hjepa_dist_metrics.metrics.optimization.gradients import Report
from hjepa_dist_metrics.metrics.optimization.stability import WINDOW
from hjepa_dist_metrics.metrics.optimization.tracked_parameters import optimizer_groups
from hjepa_dist_metrics.monitor.health.rule_state import memory_of, recall
from hjepa_dist_metrics.settings.schema import FiguresConfig, GradientsConfig

if TYPE_CHECKING:
    from hjepa_dist_metrics.monitor.observers.run_figures import Observed, RunFigures

M = TypeVar("M", bound=DistributedMetric)

# The cadence family of each metric; names that start alike share one.
_COLLAPSE = "collapse"
_REPRESENTATIONS = (_COLLAPSE, "hierarchy", "prediction")
_GRADIENT_HISTOGRAMS = "gradient_histograms"
_STRAGGLER_MAP = "straggler_map"
_MEMORY = "memory"
_FAMILIES = {_GRADIENT_HISTOGRAMS: "histograms", _STRAGGLER_MAP: "figures", _MEMORY: "system"}
# The figures' metric, which makes up the cadence family of this name.
FIGURES = "figures"
# Metrics of this family are logged by `end_epoch`.
EPOCH = "epoch"


class MetricRegistry:
    """Hold the monitor's collection and feed it; a metric appears with its first observation.

    A rank that observes less than the others, or nothing at all, adds nothing to what it lacks; ranks that
    observe the same thing in different shapes are a `DesyncError` at the next sync.
    `log_steps` are the steps between two logs of scalars.
    """

    def __init__(
        self,
        collection: MetricCollection,
        level_weights: Iterable[float] | None = None,
        log_steps: int | None = None,
    ) -> None:
        self.log_steps = log_steps
        self.collection = collection
        self.level_weights = None if level_weights is None else list(level_weights)
        self._custom: dict[str, str] = {}
        self._restored: dict[str, Any] = {}
        self._memories: dict[str, Any] = {}
        self._judged: dict[str, int] = {}

    def names(self, families: Iterable[str]) -> list[str]:
        """Return the metrics of the given cadence families."""
        wanted = set(families)
        return [name for name in self.collection if self.family(name) in wanted]

    def family(self, name: str) -> str:
        """Return the cadence family of a metric."""
        if name in self._custom:
            return self._custom[name]
        if name.startswith(EPOCH):
            return EPOCH
        if name in _FAMILIES:
            return _FAMILIES[name]
        return "representations" if name.startswith(_REPRESENTATIONS) else "scalars"

    def add(self, name: str, metric: DistributedMetric, family: str) -> None:
        """Add a user's metric under a cadence family."""
        self._custom[name] = family
        self._add(name, metric)

    def memories(self) -> dict[str, Any]:
        """Return what metrics remember beside their states, for a checkpoint."""
        return {n: memory_of(m.stages) for n, m in self.collection.items() if isinstance(m, LearningRate)}

    def restore(self, packed: Mapping[str, Any], syncs: int, memories: Mapping[str, Any]) -> None:
        """Continue from a collection's saved states; metrics that do not exist yet take theirs when made."""
        self._restored, self._memories = dict(packed), dict(memories)
        self.collection.resume_at(syncs)
        for name in [name for name in self._restored if name in self.collection]:
            self._load(name)

    def throughput(self) -> Throughput:
        """Return the throughput metric."""
        device = self.collection.context.device
        return self.ensure("throughput", Throughput, lambda: Throughput(device=device))

    def total_samples(self) -> TotalSamples:
        """Return the count of samples since the start."""
        return self.ensure("total_samples", TotalSamples, TotalSamples)

    def stragglers(self) -> Stragglers:
        """Return the comparison of the ranks' times."""
        return self.ensure("stragglers", Stragglers, lambda: Stragglers(report="numbers"))

    def straggler_map(self) -> Stragglers:
        """Return the picture of the ranks' times."""
        return self.ensure(_STRAGGLER_MAP, Stragglers, lambda: Stragglers(report="map"))

    def memory(self) -> Memory:
        """Return the memory and load of every rank."""
        return self.ensure(_MEMORY, Memory, lambda: Memory(self.collection.context.device))

    def learning_rate(self, optimizers: Sequence[Optimizer]) -> LearningRate:
        """Return the learning-rate metric."""
        return self.ensure("learning_rate", LearningRate, lambda: LearningRate(optimizers))

    def clipping(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> GradientClipping:
        """Return the model's clipping metric, by the optimizers' groups where there are several."""
        return self.ensure("clipping", GradientClipping, lambda: self._make_clipping(model, optimizers))

    def gradient_flow(self, model: nn.Module, config: GradientsConfig) -> GradientFlow:
        """Return the numbers of the gradients."""
        return self._flow("gradient_flow", "numbers", model, config)

    def gradient_histograms(self, model: nn.Module, config: GradientsConfig) -> GradientFlow:
        """Return the histograms of the gradients."""
        return self._flow(_GRADIENT_HISTOGRAMS, "histograms", model, config)

    def _flow(self, name: str, report: Report, model: nn.Module, config: GradientsConfig) -> GradientFlow:
        return self.ensure(
            name,
            GradientFlow,
            lambda: GradientFlow(
                model,
                config.depth,
                config.patterns,
                per_parameter=config.per_parameter,
                report=report,
                context=self.collection.context,
            ),
        )

    def updates(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> Updates:
        """Return the comparison of the parameters before and after the optimizers' steps."""
        context = self.collection.context
        return self.ensure("updates", Updates, lambda: Updates(model, optimizers, context=context))

    def gradient_noise(self, make: Callable[[], GradientNoise]) -> GradientNoise:
        """Return the estimate of the gradient's noise."""
        return self.ensure("gradient_noise", GradientNoise, make)

    def loss(self, losses: Mapping[str, Any]) -> HierarchicalLoss:
        """Return the loss metric for the keys of the first step's losses."""
        return self.ensure("loss", HierarchicalLoss, lambda: self._make_loss(losses))

    def epoch_loss(self) -> WeightedMean:
        """Return the mean loss of the epoch under way."""
        return self.ensure(f"{EPOCH}_loss", WeightedMean, lambda: WeightedMean("train_epoch/loss"))

    def scalars(self, tags: Iterable[str]) -> ReplicatedScalars:
        """Return the metric of numbers that every rank has alike."""
        return self.ensure("scalars", ReplicatedScalars, lambda: ReplicatedScalars(list(tags)))

    def collapse(
        self, name: str | None, features: Tensor, *, short: str | None = None, judged: bool = True
    ) -> Collapse:
        """Return the collapse metric of a stream of features; the alert looks at it where `judged`."""
        key = _COLLAPSE if name is None else f"{_COLLAPSE}_{name}"
        dim = features.shape[-1]
        metric = self.ensure(key, Collapse, lambda: Collapse(dim, name, short=short))
        if judged:
            self._judged[metric.prefix] = metric.dim
        return metric

    def figures(self, first: Observed, config: FiguresConfig) -> RunFigures:
        """Return what the figures are drawn from, made for the shapes of the first batch."""
        if FIGURES not in self.collection:
            from hjepa_dist_metrics.monitor.observers.run_figures import RunFigures

            self.add(FIGURES, RunFigures(first, config.projection), FIGURES)
        return cast("RunFigures", self.collection[FIGURES])

    def collapse_dims(self) -> dict[str, int]:
        """Return the width of each stream that the collapse alert judges, by its tag prefix."""
        return dict(self._judged)

    def stability(self) -> TrainingStability:
        """Return the metric of the loss's last steps: none between two logs goes unseen."""
        reach = WINDOW + (self.log_steps or 0)
        return self.ensure("stability", TrainingStability, lambda: TrainingStability(reach=reach))

    def _make_clipping(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> GradientClipping:
        groups = optimizer_groups(optimizers)
        many = groups if len(groups) > 1 else None
        return GradientClipping(model, groups=many, context=self.collection.context)

    def _make_loss(self, losses: Mapping[str, Any]) -> HierarchicalLoss:
        levels = sum(1 for key in losses if key.removeprefix("loss_h").isdigit())
        known = {"loss", "loss_unweighted", *(f"loss_h{i}" for i in range(levels))}
        extra = sorted(key for key in losses if key not in known)
        return HierarchicalLoss(levels, self.level_weights if levels else None, extra)

    def ensure(self, name: str, kind: type[M], make: Callable[[], M]) -> M:
        """Return the metric `name`, made at its first use; ConfigError where it is of another kind."""
        if name not in self.collection:
            self._add(name, make())
        metric = self.collection[name]
        if not isinstance(metric, kind):
            raise ConfigError(f"the metric {name!r} must be a {kind.__name__}, got {type(metric).__name__}")
        return metric

    def _add(self, name: str, metric: DistributedMetric) -> None:
        self.collection.add(name, metric)
        if name in self._restored:
            self._load(name)

    def _load(self, name: str) -> None:
        holder = self.collection.context.rank == 0
        metric = self.collection[name]
        metric.load_states(self._restored.pop(name), holder=holder)
        if isinstance(metric, LearningRate):
            recall(metric.stages, self._memories.get(name, {}))
