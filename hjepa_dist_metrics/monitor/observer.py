"""An observer watches one thing of a training loop; a scope is what it sees of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

from torch import nn
from torch.optim import Optimizer

from hjepa_dist_metrics.metrics import DistributedMetric
from hjepa_dist_metrics.metrics.optimization.layouts.copy_check import Gather
from hjepa_dist_metrics.monitor.health.judge import Rule
from hjepa_dist_metrics.monitor.metric_registry import MetricRegistry
from hjepa_dist_metrics.monitor.schedule import Schedule
from hjepa_dist_metrics.parallel import ParallelLayout, ProcessContext
from hjepa_dist_metrics.settings import LoggingConfig

M = TypeVar("M", bound=DistributedMetric)


class Scope:
    """The model, its layout over ranks, the schedule and the metrics of the run that an observer watches."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        config: LoggingConfig,
        registry: MetricRegistry,
        schedule: Schedule,
        layout: ParallelLayout | None = None,
        gather: Gather | None = None,
    ) -> None:
        self.model, self.optimizers, self.config, self.layout = model, optimizers, config, layout
        # Gathers a row of numbers over the ranks that train, also where some have ended their run.
        self.gather = gather
        # Whether the loop is within `TrainingMonitor.pause`: an evaluation or a checkpoint.
        self.paused = False
        # Counts the time in its body as the monitor's own.
        self.own_time: Callable[[], AbstractContextManager[None]] = nullcontext
        self._registry, self._schedule = registry, schedule

    @property
    def context(self) -> ProcessContext:
        """Return the ranks whose metrics are merged."""
        return self._registry.collection.context

    @property
    def step(self) -> int:
        """Return the number of the coming step."""
        return self._schedule.step

    def is_due(self, family: str) -> bool:
        """Return whether the coming step logs a family."""
        return self._schedule.is_due(family)

    def is_due_next(self, family: str) -> bool:
        """Return whether the step after the coming one logs a family."""
        return self._schedule.is_due_next(family)

    def steps_between(self, family: str) -> int | None:
        """Return the steps between two logs of a family, None where it is off."""
        return self._schedule.steps_between(family)

    def metric(self, name: str, kind: type[M], make: Callable[[], M], family: str = "scalars") -> M:
        """Return the run's metric `name`, made at its first use and logged at the cadence of `family`."""
        return self._registry.ensure(name, kind, make, family)

    def run(self, update: Callable[[], None]) -> None:
        """Run an update outside `observe`; on many ranks its failure is raised by all at the next sync."""
        self._registry.run(update)


class Observer:
    """Watch one thing of a training loop.

    `observe` is called in each step that hands over an argument of `takes`, and that logs `family` (None: in
    every step), with those arguments of `takes` and `also` that were given. Names that `TrainingMonitor.step`
    does not have become arguments of it. Observers feed metrics that they make by `self.scope.metric`; what
    these compute is merged over ranks, written and judged like the built-in ones.

        class TokenEntropy(Observer):
            takes = ("logits",)

            def observe(self, logits):
                entropy = torch.distributions.Categorical(logits=logits.detach()).entropy()
                mean = self.scope.metric("entropy", WeightedMean, lambda: WeightedMean("text/entropy"))
                mean.update(entropy.mean(), entropy.numel())

        monitor.add_observer(TokenEntropy())
        monitor.step(samples=len(tokens), losses=loss, logits=logits)
    """

    takes: ClassVar[tuple[str, ...]] = ()
    also: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[str | None] = "scalars"
    scope: Scope

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run; called once, by `TrainingMonitor.add_observer`."""
        self.scope = scope

    def observe(self, *args: Any, **kwargs: Any) -> None:
        """Look at what a step hands over: local, with no collective and no wait for the device."""

    def before_log(self, due: Sequence[str]) -> None:
        """Bring metrics up to date before the families `due` are logged."""

    def rules(self) -> Mapping[str, Rule]:
        """Return what is to be judged of this observer's values, by the name of the alert."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside the metrics' states: plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""

    def close(self) -> None:
        """Take back hooks and threads: the run is over."""
