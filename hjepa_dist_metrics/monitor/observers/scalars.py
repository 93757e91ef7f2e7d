"""Numbers that every rank has alike: schedules, and the learning rates that the optimizers used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch.optim import Optimizer

from hjepa_dist_metrics.metrics import LearningRate, ReplicatedScalars
from hjepa_dist_metrics.monitor.observer import Observer, Scope


class Scalars(Observer):
    """Write the numbers that a loop hands over as `scalars`, by tag; ranks that differ are an error."""

    takes = ("scalars",)
    family = None

    def observe(self, scalars: Mapping[str, Any]) -> None:
        """Replace the values."""
        if scalars:
            make = partial(ReplicatedScalars, list(scalars))
            self.scope.metric("scalars", ReplicatedScalars, make).update(scalars)


class LearningRates(Observer):
    """Read the learning rates with which the optimizers step.

    They are read by a hook before the first optimizer's own step, since a scheduler may step before
    `TrainingMonitor.step`; there they are read only where no optimizer has stepped.
    """

    takes = ("samples",)

    def attach(self, scope: Scope) -> None:
        """Hook the optimizers."""
        super().attach(scope)
        self._read = False
        self._stages: Mapping[str, Any] | None = None
        inner = (getattr(optimizer, "optimizer", optimizer) for optimizer in scope.optimizers)
        real = [optimizer for optimizer in inner if isinstance(optimizer, Optimizer)]
        self._hooks = [optimizer.register_step_pre_hook(lambda *_: self._before()) for optimizer in real]

    def observe(self, samples: Any) -> None:
        """Read the rates, where no optimizer has stepped since the last step."""
        if not self._read:
            self._metric().update()
        self._read = False

    def state_dict(self) -> dict[str, Any]:
        """Return the course of the base rate so far."""
        return {"stages": self._metric().stages.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._metric().stages.load_state_dict(state["stages"])

    def close(self) -> None:
        """Take the hooks off the optimizers."""
        for hook in self._hooks:
            hook.remove()

    def _before(self) -> None:
        if not self._read and self.scope.is_due("scalars"):
            self._read = True
            self.scope.run(self._metric().update)

    def _metric(self) -> LearningRate:
        return self.scope.metric("learning_rate", LearningRate, lambda: LearningRate(self.scope.optimizers))
