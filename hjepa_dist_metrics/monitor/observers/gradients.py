"""When the monitor looks at gradients and updates: before clipping, and around the optimizers' own steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import GradientNoise
from hjepa_dist_metrics.monitor.metric_registry import MetricRegistry
from hjepa_dist_metrics.monitor.observers.noise import NoiseWatch
from hjepa_dist_metrics.monitor.observers.updates import UpdateWatch
from hjepa_dist_metrics.parallel.sharding.gradient_hooks import CommHook
from hjepa_dist_metrics.settings.schema import GradientsConfig

Update = Callable[[], None]


class GradientWatch:
    """Feed the gradient and update metrics of a model, on the steps that log them.

    `is_due` says whether the coming step logs a family; `guard` runs an update and keeps its failure for the
    next sync.
    """

    def __init__(
        self,
        families: MetricRegistry,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        settings: GradientsConfig,
        is_due: Callable[[str], bool],
        guard: Callable[[Update], None],
    ) -> None:
        self._families, self._model, self._optimizers = families, model, optimizers
        self._settings, self._is_due, self._guard = settings, is_due, guard
        self._clips = False
        self._before_clipping: list[Update] = []
        self._noise: NoiseWatch | None = None
        if settings.noise:
            self.watch_noise()
        compares = settings.enabled and settings.updates
        self._updates = UpdateWatch(
            optimizers if compares else (),
            lambda: families.updates(model, optimizers),
            lambda: is_due("scalars"),
            guard,
        )

    def watch_noise(
        self, model: nn.Module | None = None, hook: CommHook | None = None, state: Any = None
    ) -> None:
        """Estimate the gradient's noise from now on; see `TrainingMonitor.watch_gradient_noise`."""
        if self._noise is not None:
            raise ConfigError("the gradient's noise is watched already: by the config, or by hand")
        noise = self._families.gradient_noise(
            lambda: GradientNoise(model or self._model, hook=hook, hook_state=state)
        )
        many = self._families.collection.context.world_size > 1
        self._noise = NoiseWatch(noise, many, lambda: self._is_due("scalars"), self._guard)

    def backward(self) -> AbstractContextManager[None]:
        """Measure the body, a backward, where that is needed."""
        return nullcontext() if self._noise is None else self._noise.backward()

    def before_clipping(self, observe: Update) -> None:
        """Call `observe` in every `clip_`, when the gradients are whole and not yet clipped."""
        self._before_clipping.append(observe)

    def after_backward(self) -> None:
        """Read the gradients, unless `clip_` does: there it is right under a GradScaler too."""
        if not self._clips:
            self.read()

    def read(self) -> None:
        """Read the gradients if the coming step logs them."""
        made = (
            ("scalars", self._families.gradient_flow),
            ("histograms", self._families.gradient_histograms),
        )
        if not self._settings.enabled:
            return
        flows = [make(self._model, self._settings) for family, make in made if self._is_due(family)]
        if flows:
            self._guard(lambda: flows[0].update(*flows[1:]))

    def clip_(self, max_norm: float) -> Tensor:
        """Read the gradients, then clip them; return the norm before."""
        self._clips = True
        self.read()
        for observe in self._before_clipping:
            self._guard(observe)
        return self._families.clipping(self._model, self._optimizers).clip_(max_norm)

    def step(self, samples: int) -> None:
        """End the run's step, of `samples` samples on this rank."""
        self._updates.finish()
        if self._noise is not None:
            self._noise.step(samples)

    def release(self) -> None:
        """Take the hooks off the optimizers."""
        self._updates.release()
