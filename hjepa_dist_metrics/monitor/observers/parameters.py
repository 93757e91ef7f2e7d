"""The model's parameters as such: whether the optimizers hold them, and whether all ranks have the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hjepa_dist_metrics.metrics.optimization.coverage import (
    OptimizerCoverage,
    held_parameters,
    identifiable_parameters,
    unoptimized,
)
from hjepa_dist_metrics.metrics.optimization.replicas import ReplicaAgreement
from hjepa_dist_metrics.monitor.observer import Observer, Scope
from hjepa_dist_metrics.monitor.observers.teacher import Teacher


class Parameters(Observer):
    """Compare the model's parameters with those of the optimizers: at the first log, and when either changes.

    Which parameters have gradients is read before the first optimizer steps: later they may be gone.
    """

    takes = ("samples",)

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def attach(self, scope: Scope) -> None:
        """Hook the optimizers."""
        super().attach(scope)
        self._parameters: list[tuple[str, Tensor]] | None = None
        self._seen: tuple[int, ...] | None = None  # what the last comparison was made of
        self._compared: tuple[list[str], int | None] | None = None
        self._with_gradient: set[int] | None = None
        inner = (getattr(optimizer, "optimizer", optimizer) for optimizer in scope.optimizers)
        real = [optimizer for optimizer in inner if isinstance(optimizer, Optimizer)]
        self._hooks = [optimizer.register_step_pre_hook(lambda *_: self._before()) for optimizer in real]

    def observe(self, samples: Any) -> None:
        """Report what is known, and compare anew where parameters or groups have changed."""
        changed = self._shape() != self._seen
        if changed:
            self._seen = self._shape()
            self._compared = self._compare()
        self._with_gradient = None
        if self._compared is not None:
            missed, taught = self._compared
            metric = self.scope.metric("coverage", OptimizerCoverage, OptimizerCoverage)
            metric.update(missed, taught)

    def close(self) -> None:
        """Take the hooks off the optimizers."""
        for hook in self._hooks:
            hook.remove()

    def _before(self) -> None:
        if self._with_gradient is None and self.scope.is_due("scalars") and self._shape() != self._seen:
            self._with_gradient = self._gradients()

    def _gradients(self) -> set[int]:
        return {id(parameter) for _, parameter in self._all() if parameter.grad is not None}

    def _shape(self) -> tuple[int, ...]:
        """Return what tells a change: sizes of the groups, parameters that are trained, and the teacher."""
        groups = (
            len(group["params"]) for optimizer in self.scope.optimizers for group in optimizer.param_groups
        )
        trained = sum(parameter.requires_grad for _, parameter in self._all())
        return (trained, self._teacher.is_declared, *groups)

    def _all(self) -> list[tuple[str, Tensor]]:
        if self._parameters is None:
            self._parameters = identifiable_parameters(self.scope.model)
        return self._parameters

    def _compare(self) -> tuple[list[str], int | None] | None:
        """Return the names of parameters that no optimizer holds, and the number of the teacher's held."""
        pair = self._teacher.pair()
        students, teachers = (
            ({id(p) for p in encoder.parameters()} for encoder in pair) if pair else (set(), set())
        )
        held = held_parameters(self.scope.optimizers)
        own = [item for item in self._all() if id(item[1]) not in teachers - students]
        gradients = self._gradients() if self._with_gradient is None else self._with_gradient
        missed = unoptimized(own, held, gradients)
        if missed is None:
            return None
        return missed, len(held & (teachers - students)) if self._teacher.is_declared else None


class Replicas(Observer):
    """Compare the ranks' copies of the model, on steps that log scalars.

    Not where `gradients.enabled` is off: each rank may have parameters of its own there, as experts.
    """

    takes = ("samples",)

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run."""
        super().attach(scope)
        self._metric: ReplicaAgreement | None = None
        self._buffer_keys: list[int] = []  # of a checkpoint

    def observe(self, samples: Any) -> None:
        """Read the parameters and buffers after the step's update."""
        scope = self.scope
        if scope.context.world_size > 1 and scope.config.gradients.enabled:
            scope.metric("replicas", ReplicaAgreement, self._make).update(scope.step)

    def state_dict(self) -> dict[str, Any]:
        """Return what tells whether buffers change until the next log."""
        return {"buffers": self._buffer_keys if self._metric is None else self._metric.buffer_keys}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._buffer_keys = state["buffers"]
        if self._metric is not None:
            self._metric.buffer_keys = self._buffer_keys

    def _make(self) -> ReplicaAgreement:
        metric = ReplicaAgreement(self.scope.model, self.scope.layout)
        metric.buffer_keys, self._metric = self._buffer_keys, metric
        return metric
