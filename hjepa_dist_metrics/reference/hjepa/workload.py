"""The reference H-JEPA as a workload of the trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hjepa_dist_metrics import HierarchicalLoss, MetricCollection, ProcessContext, TrainingMonitor
from hjepa_dist_metrics.parallel import all_reduce_sum
from hjepa_dist_metrics.reference.data import (
    GlobalBatchSampler,
    ImageItem,
    random_shift,
    stack_images,
)
from hjepa_dist_metrics.reference.groups import decay_groups
from hjepa_dist_metrics.reference.hjepa.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.hjepa.data import load_splits
from hjepa_dist_metrics.reference.hjepa.masking import MaskBatch, MultiBlockMaskGenerator
from hjepa_dist_metrics.reference.hjepa.model import HJEPA
from hjepa_dist_metrics.reference.hjepa.objective import HJEPAObjective, ObjectiveResult
from hjepa_dist_metrics.reference.hjepa.probe import held_out_points, knn_accuracy
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workload import MicroStep

_VALIDATION_BATCH = 128
_VALIDATION_EPOCH = -1


class HJEPAWorkload:
    """Serve images and masks by global sample index, train the model, probe its target encoder."""

    def __init__(
        self, model: ModelConfig, data: DataConfig, training: TrainingConfig, context: ProcessContext
    ) -> None:
        self.context, self.labels_per_class = context, data.labels_per_class
        self.splits = load_splits(data)
        self.sampler = GlobalBatchSampler(
            len(self.splits.train),
            data.batch_size,
            context.rank,
            context.world_size,
            training.seed,
            training.accumulation_steps,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        total_steps = training.epochs * self.steps_per_epoch
        # A map-style data set by what it does; torch's Dataset is only a base class to inherit from.
        images = cast("Dataset[ImageItem]", self.splits.train)
        self.loader = DataLoader(images, batch_sampler=self.sampler, num_workers=data.num_workers)
        self.max_shift, self.seed = data.max_shift, training.seed
        torch.manual_seed(training.seed)
        net = HJEPA(model, self.splits.image_size, self.splits.channels, total_steps)
        self.model: HJEPA = net.to(context.device)
        self.masks = MultiBlockMaskGenerator(
            net.grid,
            model.masking.num_target_blocks,
            model.masking.scale,
            model.masking.aspect_ratio,
            min_visible=model.masking.min_visible,
            seed=training.seed,
        )
        self.repeats_masks = model.masking.repeat
        self.level_weights = model.hierarchy_weights
        self.weight_decay = training.weight_decay
        self.objective = HJEPAObjective(
            model.objective,
            model.hierarchy_weights,
            lambda tensor: all_reduce_sum(tensor, context),
            context.world_size,
        )

    def attach(self, monitor: TrainingMonitor) -> None:
        """Add nothing: the monitor's own metrics are those of this model."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return weights with decay, and biases, norms and tokens without."""
        return decay_groups(self.model, self.weight_decay)

    def batches(self, epoch: int, start_step: int) -> Iterable[Any]:
        """Return this rank's micro-batches of the epoch."""
        self.sampler.set_epoch(epoch, start_step)
        return self.loader

    def forward(self, model: nn.Module, batch: Any, epoch: int) -> MicroStep:
        """Mask the images by their global index and compare predictions with targets."""
        index = batch["index"]
        images = random_shift(batch["image"], index, max_shift=self.max_shift, seed=self.seed, epoch=epoch)
        drawn = self._masks(index, epoch)
        result, output = self._objective(model, images, drawn.mask)
        observed = {
            "features": output["targets"],
            "labels": batch["label"],
            "ids": index.to(self.context.device, non_blocking=True),
            "context_features": output["context_features"],
            "context_valid": output["context_valid"],
            "predictions": output["predictions"],
            "targets": result.targets,
            "prediction_valid": output["masks_valid"],
            "mask": drawn.mask.reshape(-1, *self.masks.grid),
            "blocks": drawn.blocks,
            "images": images,
        }
        tokens = len(index) * self.model.get_num_patches()
        return MicroStep(result.loss, result.losses, result.count, tokens, observed)

    def _masks(self, index: Tensor, epoch: int) -> MaskBatch:
        """Return the masks on the host, where they are made."""
        if self.repeats_masks:
            index, epoch = torch.arange(len(index)), 0
        return self.masks.generate_blocks(index, epoch)

    def _objective(self, model: nn.Module, images: Tensor, mask: Tensor) -> tuple[ObjectiveResult, Any]:
        device = self.context.device
        # Counted on the host: on the device the host would have to wait for it.
        visible = int((~mask).sum(dim=1).max())
        mask = mask.to(device, non_blocking=True)
        output = model(images.to(device, non_blocking=True), mask, max_visible=visible)
        return self.objective(output), output

    def after_step(self, step: int) -> dict[str, Any]:
        """Move the teacher; return its momentum."""
        ema = self.model.config.ema
        return {
            "momentum": self.model.update_target_encoder(step),
            "momentum_target": ema.momentum_end,
        }

    def evaluate(self) -> dict[str, Any]:
        """Return the validation loss, a map of held-out images, and the probe's accuracy where these have
        classes.
        """
        self.model.eval()
        points = held_out_points(self._encode, self.splits, self.context)
        values = {"val/loss": self._validation_loss(), "embeddings/held_out": points}
        accuracy = knn_accuracy(
            self._encode,
            self.splits,
            self.model.config.embed_dim,
            labels_per_class=self.labels_per_class,
            context=self.context,
        )
        self.model.train()
        return values if accuracy is None else {**values, "val/knn_accuracy": accuracy}

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.extract_features(images.to(self.context.device))

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Return the loss over all validation images, with masks that stay the same over the run."""
        rank, world = self.context.rank, self.context.world_size
        loss = HierarchicalLoss(len(self.level_weights), self.level_weights)
        parts = max(1, -(-len(self.splits.val) // _VALIDATION_BATCH))
        for chunk in np.array_split(np.arange(len(self.splits.val)), parts):
            index = torch.from_numpy(chunk[rank::world])
            images = stack_images(self.splits.val, index)
            result, _ = self._objective(self.model, images, self._masks(index, _VALIDATION_EPOCH).mask)
            loss.update(result.losses, result.count)
        merged = MetricCollection({"loss": loss}, self.context).compute()
        return float(merged["loss/total"])
