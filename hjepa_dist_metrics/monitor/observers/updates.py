"""The parameters before and after the optimizers' own steps, where a step of the run is logged."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.optim import Optimizer

from hjepa_dist_metrics.metrics import Updates
from hjepa_dist_metrics.monitor.observer import Observer, Scope


class ParameterUpdates(Observer):
    """Hook the optimizers: copy before the first of them steps, compare when all have stepped.

    Of several optimizers one may sit a step out: the end of the run's step compares then.
    """

    takes = ("samples",)
    family = None

    def attach(self, scope: Scope) -> None:
        """Hook the optimizers."""
        super().attach(scope)
        inner = [getattr(optimizer, "optimizer", optimizer) for optimizer in scope.optimizers]
        self._optimizers = [optimizer for optimizer in inner if isinstance(optimizer, Optimizer)]
        self._to_step: set[int] | None = None  # the optimizers yet to step; None outside a comparison
        self._compared = False
        self._hooks = [
            hook
            for optimizer in self._optimizers
            for hook in (
                optimizer.register_step_pre_hook(self._begin),
                optimizer.register_step_post_hook(lambda stepped, *_: self._after(stepped)),
            )
        ]

    def observe(self, samples: Any) -> None:
        """End the run's step: compare what is not compared yet."""
        self._compare()
        self._compared = False

    def close(self) -> None:
        """Take the hooks off the optimizers."""
        for hook in self._hooks:
            hook.remove()

    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Look before the step; where the step calls a closure, after it, when the gradients are there."""
        place = next((i for i, value in enumerate(args[1:], start=1) if callable(value)), None)
        closure = kwargs.get("closure") if place is None else args[place]
        if closure is None:
            self._before()
            return None

        def look_after_closure() -> Any:
            loss = closure()
            self._before()
            return loss

        if place is None:
            return args, {**kwargs, "closure": look_after_closure}
        return (*args[:place], look_after_closure, *args[place + 1 :]), kwargs

    def _before(self) -> None:
        if self._to_step is None and not self._compared and self.scope.is_due("scalars"):
            self._to_step = {id(optimizer) for optimizer in self._optimizers}
            self.scope.run(lambda: self._metric().before())

    def _after(self, stepped: Optimizer) -> None:
        if self._to_step is not None:
            self._to_step.discard(id(stepped))
            if not self._to_step:
                self._compare()

    def _compare(self) -> None:
        if self._to_step is not None:
            self._to_step, self._compared = None, True
            self.scope.run(lambda: self._metric().update())

    def _metric(self) -> Updates:
        scope = self.scope
        make = partial(Updates, scope.model, scope.optimizers, context=scope.context, layout=scope.layout)
        return scope.metric("updates", Updates, make)
