"""The target encoder, which follows the context encoder by a moving average."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from hjepa_dist_metrics.errors import ConfigError
from hjepa_dist_metrics.metrics import EMADynamics
from hjepa_dist_metrics.metrics.ssl.ema import have_same_parameters
from hjepa_dist_metrics.monitor.observer import Observer
from hjepa_dist_metrics.parallel import unwrap
from hjepa_dist_metrics.parallel.sharding.parameter_shards import has_flat_parameters

logger = logging.getLogger("hjepa_dist_metrics.monitor")

# The context and the target encoder.
Encoders = tuple[nn.Module, nn.Module]


class Teacher(Observer):
    """Compare the encoders on steps that are logged, and the teacher with itself one step before.

    The pair is the one given, or the model's `context_encoder` and `target_encoder`. Of a loop that hands
    over no `momentum` only the momentum's tags are left out.
    """

    takes = ("samples",)
    also = ("momentum", "momentum_target")
    family = None

    def __init__(self, encoders: Encoders | None = None) -> None:
        self._given = encoders
        self._pair: Encoders | None = None
        self._has_steps = self._has_momentum = False

    def observe(self, samples: Any, momentum: float | None = None, momentum_target: float = 1.0) -> None:
        """Measure the encoders, whose update in this step has the momentum, where it is known."""
        self._has_steps = True
        self._has_momentum |= momentum is not None
        due = self.scope.is_due("scalars")
        if not (due or self.scope.is_due_next("scalars")):
            return
        pair = self.pair(required=momentum is not None)
        if pair is None:
            return
        dynamics = self.scope.metric("ema", EMADynamics, EMADynamics)
        if due:
            dynamics.update(*pair, momentum, momentum_target)
        else:
            dynamics.remember(pair[1])

    def pair(self, required: bool = False) -> Encoders | None:
        """Return the context and the target encoder; None where there are none that can be compared.

        With `required`, or where encoders were given, ConfigError says why not.
        """
        if self._pair is None:
            pair = self._given or _attributes(self.scope.model)
            if pair is None and required:
                raise ConfigError(
                    f"{type(unwrap(self.scope.model)).__name__} has no modules context_encoder and "
                    "target_encoder: give TrainingMonitor the pair as `encoders`"
                )
            if pair is not None and (required or self._are_comparable(pair)):
                self._pair = pair
        return self._pair

    def _are_comparable(self, pair: Encoders) -> bool:
        """Return whether there is something to compare without a momentum, which would say so."""
        if any(map(has_flat_parameters, pair)):  # a rank has no more than a part of each
            return False
        return self._given is not None or have_same_parameters(*pair)

    @property
    def is_declared(self) -> bool:
        """Return whether the loop says that there is a teacher: by `encoders`, or by a momentum so far."""
        return self._given is not None or self._has_momentum

    def close(self) -> None:
        """Say where encoders were given for nothing."""
        if self._given is not None and self._pair is None and self._has_steps:
            logger.warning(
                "the `encoders` given to TrainingMonitor were never compared: no step logged scalars, or "
                "FSDP1 has flattened their parameters. Set logging.cadence.scalars to a number of steps and "
                "hand `momentum` to `step`, or leave `encoders` out"
            )


def _attributes(model: nn.Module) -> Encoders | None:
    """Return the model's attributes of these names, where they are two modules."""
    inner = unwrap(model)
    context, target = (getattr(inner, f"{name}_encoder", None) for name in ("context", "target"))
    if isinstance(context, nn.Module) and isinstance(target, nn.Module) and context is not target:
        return context, target
    return None
