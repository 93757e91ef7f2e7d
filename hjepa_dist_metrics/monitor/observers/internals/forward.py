"""Metrics that look into the forward passes of the steps that log, by hooks that are there in these alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from hjepa_dist_metrics.metrics.internals.hooks import Hooks
from hjepa_dist_metrics.monitor.observer import Observer, Scope

NUMBERS, FIGURES = "representations", "figures"


class ForwardObserver(Observer):
    """Put hooks on the model before a step that logs representations or figures, and take them off after it.

    All forward passes of such a step count, of micro-batches too, but for those within `pause` and those of
    a model in evaluation mode without gradients, and but for a pipeline's first step, in which there is a
    pass more that finds out shapes.
    """

    takes = ("samples",)
    family = None

    def attach(self, scope: Scope) -> None:
        """Begin to observe a run."""
        super().attach(scope)
        self._hooks = Hooks()
        if scope.layout is None or scope.layout.pipeline is None:
            self._begin(scope.is_due)

    def observe(self, samples: Any) -> None:
        """Take the hooks off after a step, and put them on before the next where that one logs."""
        self._hooks.remove()
        self._begin(self.scope.is_due_next)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, whose next step may log other families."""
        self._hooks.remove()
        self._begin(self.scope.is_due)

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.remove()

    @property
    def watches(self) -> bool:
        """Return whether hooks are on the model."""
        return self._hooks.installed

    def run(self, update: Callable[[], None]) -> None:
        """Run an update of a forward pass, if it is one of the training's."""
        evaluates = not self.scope.model.training and not torch.is_grad_enabled()
        if not self.scope.paused and not evaluates:
            with self.scope.own_time():
                self.scope.run(update)

    @abstractmethod
    def hooks(self, families: Sequence[str]) -> Iterator[Any]:
        """Add hooks that feed the metrics of the families, and yield their handles."""

    def _begin(self, is_due: Callable[[str], bool]) -> None:
        known = (NUMBERS, FIGURES) if self.scope.config.figures.enabled else (NUMBERS,)
        families = [family for family in known if is_due(family)]
        if families:
            self._hooks.install(lambda: self.hooks(families))
