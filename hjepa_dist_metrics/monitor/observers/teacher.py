"""The target encoder, which follows the context encoder by a moving average."""

from __future__ import annotations

from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import EMADynamics
from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.parallel import unwrap

# The context and the target encoder.
Encoders = tuple[nn.Module, nn.Module]


class Teacher(Observer):
    """Compare the encoders on steps that are logged, and the teacher with itself one step before."""

    takes = ("momentum",)
    also = ("momentum_target",)
    family = None

    def __init__(self, encoders: Encoders | None = None) -> None:
        self._encoders = encoders

    def observe(self, momentum: float, momentum_target: float) -> None:
        """Measure the encoders, whose update in this step has the momentum."""
        due = self.scope.is_due("scalars")
        if not (due or self.scope.is_due_next("scalars")):
            return
        context, target = self.encoders()
        dynamics = self.scope.metric("ema", EMADynamics, EMADynamics)
        if due:
            dynamics.update(context, target, momentum, momentum_target)
        else:
            dynamics.remember(target)

    def encoders(self) -> Encoders:
        """Return the context and the target encoder: as given, or the model's attributes of these names."""
        if self._encoders is None:
            model = unwrap(self.scope.model)
            context, target = (getattr(model, f"{name}_encoder", None) for name in ("context", "target"))
            if not (isinstance(context, nn.Module) and isinstance(target, nn.Module)):
                raise ConfigError(
                    f"{type(model).__name__} has no modules context_encoder and target_encoder: give "
                    "TrainingMonitor the pair as `encoders`"
                )
            self._encoders = (context, target)
        return self._encoders
