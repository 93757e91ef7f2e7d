"""What the monitor looks at: one file for each kind of observation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.monitor.observers.batches import Batches
from hjepa_dist_metrics.monitor.observers.figures import Figures
from hjepa_dist_metrics.monitor.observers.gradients import Gradients
from hjepa_dist_metrics.monitor.observers.internals.activations import Activations
from hjepa_dist_metrics.monitor.observers.internals.attention import Attention
from hjepa_dist_metrics.monitor.observers.internals.experts import Experts
from hjepa_dist_metrics.monitor.observers.losses import Losses
from hjepa_dist_metrics.monitor.observers.masks import MaskGeometry
from hjepa_dist_metrics.monitor.observers.noise import Noise
from hjepa_dist_metrics.monitor.observers.parameters import Parameters, Replicas
from hjepa_dist_metrics.monitor.observers.probing.probes import Probes
from hjepa_dist_metrics.monitor.observers.probing.watched_features import WatchedFeatures
from hjepa_dist_metrics.monitor.observers.representations import Representations
from hjepa_dist_metrics.monitor.observers.scalars import LearningRates, Scalars
from hjepa_dist_metrics.monitor.observers.teacher import Encoders, Teacher
from hjepa_dist_metrics.monitor.observers.timing import Timing
from hjepa_dist_metrics.monitor.observers.updates import ParameterUpdates
from hjepa_dist_metrics.settings import LoggingConfig


class BuiltIn(NamedTuple):
    """The observers that every monitor has; a loop calls some of them around the phases of its steps."""

    timing: Timing
    batches: Batches
    gradients: Gradients
    noise: Noise
    losses: Losses
    probes: Probes
    watched: WatchedFeatures
    others: tuple[Observer, ...]

    @classmethod
    def of(
        cls, config: LoggingConfig, level_weights: Iterable[float] | None, encoders: Encoders | None
    ) -> BuiltIn:
        """Return fresh observers."""
        others: list[Observer] = [LearningRates(), Scalars(), MaskGeometry()]
        if config.gradients.enabled and config.gradients.updates:
            others.append(ParameterUpdates())
        teacher = Teacher(encoders)
        others += [teacher, Parameters(teacher), Replicas(), Representations(), Figures()]
        others.append(Experts())
        if config.activations.enabled:
            others.append(Activations())
        if config.attention.enabled:
            others.append(Attention())
        noise = Noise(start=config.gradients.noise)
        probes = Probes()
        return cls(
            Timing(),
            Batches(),
            Gradients(),
            noise,
            Losses(level_weights),
            probes,
            WatchedFeatures(probes),
            tuple(others),
        )

    @property
    def all(self) -> tuple[Observer, ...]:
        """Return all observers, in the order in which they look at a step."""
        first = (self.gradients, self.noise, self.timing, self.batches)
        last = (self.probes, self.watched)
        return (*first, *self.others[:1], self.losses, *self.others[1:], *last)
