"""What is looked at inside of a Lightning step: losses, features, gradients before and after clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.integrations.lightning.library import LightningModule
from hjepa_dist_metrics.integrations.lightning.phases import Phases
from hjepa_dist_metrics.integrations.micro_batches import MicroBatches, batch_size, token_count
from hjepa_dist_metrics.integrations.overrides import Overrides
from hjepa_dist_metrics.monitor import TrainingMonitor

_OF_THE_BATCH = ("samples", "tokens", "count")


class ModuleObservation:
    """Follow a LightningModule through its batches, under automatic and manual optimization.

    A step of the run is a batch in which an optimizer stepped, with the batches accumulated before it. What
    `training_step` returns besides "loss" goes where its name is known: losses by name ("loss_h0",
    "loss_variance"), and the arguments of `TrainingMonitor.step` ("features", "mask", "momentum", ...), of
    which the last batch of a step is taken.
    """

    def __init__(self, trainer: Any, module: Any, monitor: TrainingMonitor) -> None:
        self._trainer, self._module, self._monitor = trainer, module, monitor
        self._features = monitor.run.built_in.watched
        self.phases = Phases(monitor)
        self._batches = MicroBatches()
        self._backpropagated: list[Tensor] = []
        self._labels: list[Tensor] = []  # of the batches whose features are watched
        self._stepped = False
        self._measured = False  # the gradients of the step under way
        self._measuring = False
        self._overrides = Overrides()
        self._overrides.wrap(module, "configure_gradient_clipping", self._configured_clipping)
        self._overrides.wrap(module, "clip_gradients", self._clip)
        self._overrides.within(trainer, "save_checkpoint", monitor.pause)
        self.phases.loading()

    def begin_batch(self, batch: Any) -> None:
        """Look at the forward pass of a batch."""
        self.phases.forward()
        self._features.start(batch)

    def begin_backward(self, loss: Tensor) -> None:
        """Look at a backward pass."""
        self._features.stop()
        self._backpropagated.append(loss.detach())
        self._measured = False
        self.phases.backward()

    def begin_optimizer(self) -> None:
        """Look at an optimizer's step, whose gradients are clipped by now under manual optimization."""
        self._stepped = True
        if not self._module.automatic_optimization:
            if not self._measured:
                self._measure(lambda: None, math.inf)
            self.phases.optimizer()

    def end_batch(self, outputs: Any, batch: Any) -> bool:
        """Record the step where the batch ends one; return whether it does."""
        self._features.stop()
        self.phases.leave()
        returned = outputs if isinstance(outputs, Mapping) else {}
        self._add(returned, batch)
        stepped, self._stepped = self._stepped, False
        if stepped:
            self._monitor.step(**self._step_arguments(returned))
        self.phases.loading()
        return stepped

    def close(self) -> None:
        """Leave trainer and module as they were."""
        self.phases.leave()
        self._overrides.restore()

    # -- inside ------------------------------------------------------------------------------------------

    def _add(self, returned: Mapping[str, Any], batch: Any) -> None:
        samples = returned.get("samples", batch_size(batch))
        tokens = returned.get("tokens", token_count(batch))
        losses = self._losses(returned)
        if losses:
            self._batches.add(losses, samples, count=returned.get("count"), tokens=tokens)
        if self._features and isinstance(labels := returned.get("labels"), Tensor):
            self._labels.append(labels)
        self._backpropagated.clear()

    def _losses(self, returned: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch's losses: Lightning divides the one of a step by the batches accumulated."""
        if "loss" in returned:
            parts = self._trainer.accumulate_grad_batches if self._module.automatic_optimization else 1
            total = returned["loss"] * parts
        elif self._backpropagated:
            total = sum(self._backpropagated)
        else:
            return {}
        named = {k: v for k, v in returned.items() if k.startswith("loss_") and _is_scalar(v)}
        return {"loss": total, **named}

    def _step_arguments(self, returned: Mapping[str, Any]) -> dict[str, Any]:
        taken = self._monitor.run.observers.arguments - {"losses", *_OF_THE_BATCH}
        handed = {name: value for name, value in returned.items() if name in taken}
        labels, self._labels = self._labels, []
        if labels:
            handed["labels"] = torch.cat(labels)
        return {**self._batches.take(), **handed}

    def _configured_clipping(self, method: Callable[..., None], *args: Any, **more: Any) -> None:
        hook = type(self._module).configure_gradient_clipping
        nothing = hook is LightningModule.configure_gradient_clipping and not more.get("gradient_clip_val")
        self._measure(lambda: method(*args, **more), math.inf if nothing else None)
        self.phases.optimizer()

    def _clip(self, method: Callable[..., None], *args: Any, **more: Any) -> None:
        self._measure(lambda: method(*args, **more))

    def _measure(self, clip: Callable[[], None], max_norm: float | None = None) -> None:
        """Measure the gradients before and after `clip`; once, where one clipping calls another."""
        has_any = any(parameter.grad is not None for parameter in self._module.parameters())
        if self._measuring or not has_any:
            clip()
            return
        self._measuring = self._measured = True
        try:
            with self._monitor.clipping(max_norm):
                clip()
        finally:
            self._measuring = False


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
