"""What is looked at inside of a Trainer's step: batches, losses, gradients before and after clipping."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hjepa_dist_metrics.integrations.accelerate.loop import ObservedAccelerator
from hjepa_dist_metrics.integrations.micro_batches import MicroBatches, batch_size, token_count
from hjepa_dist_metrics.integrations.overrides import Overrides
from hjepa_dist_metrics.monitor import TrainingMonitor

logger = logging.getLogger(__name__)

_IGNORED = -100  # the label of tokens that do not count, in all of transformers


class TrainerObservation:
    """Look at the methods that a Trainer calls in a step; its numbers and gradients stay as they are.

    The Trainer scales losses so that those of all micro-batches add up to the step's. This undoes the scale:
    a step's loss is the mean over the labels that count, where there is one a token, and else over the
    samples, of all ranks and micro-batches.
    """

    def __init__(self, trainer: Any, monitor: TrainingMonitor) -> None:
        self._trainer, self._monitor = trainer, monitor
        self._features = monitor.run.built_in.watched
        self._batches = MicroBatches()
        self._classes: list[Tensor] = []
        self._warned = False
        self._accelerator = ObservedAccelerator(trainer.accelerator, monitor, clips_all=True)
        self._overrides = overrides = Overrides()
        overrides.within(trainer, "get_batch_samples", monitor.data_loading)
        overrides.wrap(trainer, "training_step", self._training_step)
        overrides.wrap(trainer, "compute_loss", self._compute_loss)
        for name in ("evaluate", "_save_checkpoint"):
            overrides.within(trainer, name, monitor.pause)

    def take_step(self) -> dict[str, Any]:
        """Return what `TrainingMonitor.step` takes of the step that is over."""
        if not self._accelerator.clipped and not self._warned:
            self._warned = True
            logger.warning(
                "this Trainer does not clip by accelerator.clip_grad_norm_ (DeepSpeed and models on several "
                "meshes have ways of their own): gradient norms are not measured"
            )
        self._accelerator.clipped = False
        classes, self._classes = self._classes, []
        return {**self._batches.take(), "labels": torch.cat(classes) if classes else None}

    def close(self) -> None:
        """Leave the Trainer as it was."""
        self._overrides.restore()
        self._accelerator.close()

    def _training_step(
        self, method: Callable[..., Tensor], model: Any, inputs: Any, *args: Any, **more: Any
    ) -> Tensor:
        items = more.get("num_items_in_batch", args[0] if args else None)
        samples, tokens, labels = batch_size(inputs), token_count(inputs), _labels(inputs)
        self._monitor.observe_batch(inputs, epoch=int(self._trainer.state.epoch or 0))
        if labels is not None and labels.ndim == 1 and not labels.is_floating_point() and self._features:
            self._classes.append(labels)
        loss = method(model, inputs, *args, **more)
        parts = self._trainer.current_gradient_accumulation_steps
        if items is not None and self._is_normalized():
            count = self._share(items, parts)
        else:
            count = self._label_count(labels)
        self._batches.add(loss * parts, samples, count=count, tokens=tokens)
        return loss

    def _compute_loss(
        self, method: Callable[..., Any], model: Any, inputs: Any, *args: Any, **more: Any
    ) -> Any:
        if not model.training:  # an evaluation
            return method(model, inputs, *args, **more)
        with self._monitor.forward(), self._features.capturing(inputs):
            return method(model, inputs, *args, **more)

    def _is_normalized(self) -> bool:
        """Return whether losses are divided by the step's items, as `Trainer.training_step` decides it."""
        trainer = self._trainer
        if trainer.loss_is_scaled_for_ga is not None:
            return bool(trainer.loss_is_scaled_for_ga)
        return bool(trainer.model_accepts_loss_kwargs) or trainer.compute_loss_func is not None

    def _share(self, items: Any, parts: int) -> Any:
        """Return a micro-batch's equal part of the step's items on this rank.

        `items` are those of all micro-batches, and of all ranks where the Trainer averages over them.
        """
        trainer, ranks = self._trainer, 1
        if trainer.args.average_tokens_across_devices:
            ranks = max(1, trainer.accelerator.num_processes // trainer.get_tp_size())
        count = items.reshape(-1)[0] if isinstance(items, Tensor) else items
        return count / (ranks * parts)

    def _label_count(self, labels: Tensor | None) -> Any:
        """Return the number of labels that count, where there is one a token; None goes by samples."""
        if labels is None or labels.ndim < 2 or labels.is_floating_point():
            return None
        shifted = labels[..., 1:] if getattr(self._trainer, "_loss_shifts_labels", False) else labels
        return (shifted != _IGNORED).sum()


def _labels(inputs: Any) -> Tensor | None:
    labels = inputs.get("labels") if hasattr(inputs, "get") else None
    return labels if isinstance(labels, Tensor) else None
