"""Compare the parameters before and after the optimizers' own steps, where a step of the run is logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer

from hjepa_dist_metrics.metrics import Updates

Update = Callable[[], None]


class UpdateWatch:
    """Hook the optimizers: copy before the first of them steps, compare when all have stepped.

    Of several optimizers one may sit a step out: `finish`, at the end of the run's step, compares then.
    `updates` makes or finds the metric, `is_due` says whether the coming step logs, `guard` runs an update
    and keeps its failure for the next sync.
    """

    def __init__(
        self,
        optimizers: Sequence[Any],
        updates: Callable[[], Updates],
        is_due: Callable[[], bool],
        guard: Callable[[Update], None],
    ) -> None:
        self._updates, self._is_due, self._guard = updates, is_due, guard
        inner = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]  # accelerate wraps
        self._optimizers = [optimizer for optimizer in inner if isinstance(optimizer, Optimizer)]
        self._waiting: set[int] | None = None  # the optimizers yet to step; None outside a comparison
        self._compared = False
        self._hooks = [
            hook
            for optimizer in self._optimizers
            for hook in (
                optimizer.register_step_pre_hook(lambda *_: self._before()),
                optimizer.register_step_post_hook(lambda stepped, *_: self._after(stepped)),
            )
        ]

    def finish(self) -> None:
        """End the run's step: compare now what is not compared yet."""
        self._compare()
        self._compared = False

    def release(self) -> None:
        """Take the hooks off the optimizers."""
        for hook in self._hooks:
            hook.remove()

    def _before(self) -> None:
        if self._waiting is None and not self._compared and self._is_due():
            self._waiting = {id(optimizer) for optimizer in self._optimizers}
            self._guard(lambda: self._updates().before())

    def _after(self, stepped: Optimizer) -> None:
        if self._waiting is not None:
            self._waiting.discard(id(stepped))
            if not self._waiting:
                self._compare()

    def _compare(self) -> None:
        if self._waiting is not None:
            self._waiting, self._compared = None, True
            self._guard(lambda: self._updates().update())
