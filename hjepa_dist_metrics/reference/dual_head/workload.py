"""The dual-head job as a workload of the trainer: patches over ranks, heads side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hjepa_dist_metrics import (
    GradientCosines,
    HeadGradients,
    HeadLosses,
    HeadParameters,
    MetricCollection,
    ProcessContext,
    TrainingMonitor,
    WeightedMean,
)
from hjepa_dist_metrics.metrics import generalization_gaps
from hjepa_dist_metrics.parallel import all_reduce_sum
from hjepa_dist_metrics.reference.data import GlobalBatchSampler
from hjepa_dist_metrics.reference.dual_head.config import PATCHES_PER_FRAME, DataConfig, ModelConfig
from hjepa_dist_metrics.reference.dual_head.heads import Head, rgb_head, semantic_head
from hjepa_dist_metrics.reference.dual_head.model import HEAD_SUFFIX, PatchField
from hjepa_dist_metrics.reference.dual_head.video import Patches, join_patches, load_videos, to_image
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workload import MicroStep

_EVALUATION_BATCH = 256


class DualHeadWorkload:
    """Train a patch field with any number of heads; rank r takes every W-th patch, from r on.

    `splits` are "train" and "val". The first head is the one that the others are compared with.
    """

    level_weights = None

    def __init__(
        self,
        splits: Mapping[str, Patches],
        heads: Sequence[Head],
        model: ModelConfig,
        data: DataConfig,
        training: TrainingConfig,
        context: ProcessContext,
    ) -> None:
        self.context, self.heads = context, list(heads)
        self.splits = {name: patches.to(context.device) for name, patches in splits.items()}
        self.targets = {
            head.name: {split: target.to(context.device) for split, target in head.targets.items()}
            for head in self.heads
        }
        train = self.splits["train"]
        self.sampler = GlobalBatchSampler(
            len(train),
            data.batch_size,
            context.rank,
            context.world_size,
            training.seed,
            training.accumulation_steps,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        torch.manual_seed(training.seed)
        height, width = train.pixels.shape[2:]
        videos = int(max(patches.video.max() for patches in self.splits.values())) + 1
        makers = {head.name: head.module for head in self.heads}
        self.model = PatchField(model, videos, (height, width), makers).to(context.device)
        self.weight_decay, self.compiled = training.weight_decay, training.compile
        self._cosines: GradientCosines | None = None
        self._monitor: TrainingMonitor | None = None
        self._weights: dict[str, float] | None = None
        self._make_metrics()

    def _make_metrics(self) -> None:
        names = [head.loss_name for head in self.heads]
        self.losses = [HeadLosses(names), HeadLosses(names, "Train_Batch", breakdown=False)]
        scores = [head.score[0] for head in self.heads if head.score]
        self.scores = {
            name: [WeightedMean(f"Train/{name}"), WeightedMean(f"Train_Batch/{name}")] for name in scores
        }

    def attach(self, monitor: TrainingMonitor) -> None:
        """Add the metrics of the heads, by epoch and by batch, and the rules that watch them."""
        self._monitor = monitor
        for family, index in (("epoch", 0), ("scalars", 1)):
            monitor.add_metric(f"{family}_heads", self.losses[index], family)
            for name, means in self.scores.items():
                monitor.add_metric(f"{family}_{name}", means[index], family)
        first, *others = [head.name + HEAD_SUFFIX for head in self.heads]
        parts = self.model.parts()
        gradients = HeadGradients(monitor.model, parts, [(first, other) for other in others])
        parameters = HeadParameters(monitor.model, {name: parts[name] for name in (first, *others)})
        # A graph of torch.compile is gone after one backward pass.
        if len(self.heads) > 1 and not self.compiled:
            names = [head.name for head in self.heads]
            self._cosines = GradientCosines(self.model.decoder, names, "Train/Gradients")
            monitor.add_metric("cosines", self._cosines, "scalars")
        monitor.add_metric("epoch_gradients", gradients, "epoch")
        monitor.add_metric("parameters", parameters, "system")
        monitor.before_clipping(gradients.update)
        monitor.before_clipping(lambda: parameters.update() if monitor.due("system") else None)
        monitor.add_alias({"learning_rate/base_lr": "Train/learning_rate"})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return weights with decay and biases without."""
        groups = {True: self.weight_decay, False: 0.0}
        return [
            {"params": [p for p in self.model.parameters() if (p.ndim > 1) == decays], "weight_decay": decay}
            for decays, decay in groups.items()
        ]

    def batches(self, epoch: int, start_step: int) -> Iterable[Tensor]:
        """Yield the numbers of this rank's patches, int64 [B], for each micro-batch of the epoch."""
        self.sampler.set_epoch(epoch, start_step)
        return (torch.tensor(share, device=self.context.device) for share in self.sampler)

    def forward(self, model: nn.Module, batch: Tensor, epoch: int) -> MicroStep:
        """Return the weighted sum of the heads' losses, means over the patches of all ranks."""
        outputs = self._outputs(model, "train", batch)
        weights = self._weights_at(epoch)
        local = {head.loss_name: self._distance(head, outputs, batch) for head in self.heads}
        # Averaging gradients over ranks gives the mean over all patches only where shares are equal.
        count = torch.tensor([float(len(batch))], device=self.context.device)
        share = len(batch) * self.context.world_size / all_reduce_sum(count, self.context)[0]
        # A head in its warm-up has the weight 0 and a gradient of zeros: every parameter takes part.
        loss = torch.stack([weights[name] * value for name, value in local.items()]).sum() * share
        shown = {name: value.detach() * (weights[name] > 0) for name, value in local.items()}
        self._compare_gradients(local, weights, len(batch))
        self._observe(shown, weights, outputs, batch)
        total = torch.stack([weights[name] * value for name, value in shown.items()]).sum()
        return MicroStep(loss, {"loss": total}, len(batch))

    def _compare_gradients(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], count: int
    ) -> None:
        """Compare the heads' gradients on steps that log, once all heads have a weight."""
        due = self._monitor is not None and self._monitor.due("scalars")
        if self._cosines is not None and due and all(weights.values()):
            self._cosines.update({head.name: losses[head.loss_name] for head in self.heads}, count)

    def _weights_at(self, epoch: int) -> dict[str, float]:
        weights = {head.loss_name: head.weight_at(epoch) for head in self.heads}
        if self._monitor is not None and self._weights not in (None, weights):
            self._monitor.reset_loss_history()
        self._weights = weights
        return weights

    def _outputs(self, model: nn.Module, split: str, index: Tensor) -> dict[str, Tensor]:
        patches = self.splits[split]
        outputs: dict[str, Tensor] = model(patches.video[index], patches.time[index], patches.place[index])
        return outputs

    def _distance(self, head: Head, outputs: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        target = self.targets[head.name]["train"][batch]
        return head.distance(outputs[head.name].float(), target).mean()

    def _observe(
        self,
        losses: Mapping[str, Tensor],
        weights: Mapping[str, float],
        outputs: Mapping[str, Tensor],
        batch: Tensor,
    ) -> None:
        for metric in self.losses:
            metric.update(losses, weights, len(batch))
        for head in self.heads:
            if head.score:
                name, function = head.score
                score = function(outputs[head.name].detach(), self.targets[head.name]["train"][batch]).mean()
                for mean in self.scores[name]:
                    mean.update(score, len(batch))

    def after_step(self, step: int) -> dict[str, Any]:
        """Do nothing."""
        return {}

    def evaluate(self) -> dict[str, Any]:
        """Return every head's quality on both splits by frame, and the gaps between them."""
        self.model.eval()
        metrics = {
            f"{split}_{head.name}": head.quality(split, patches.num_frames, PATCHES_PER_FRAME)
            for split, patches in self.splits.items()
            for head in self.heads
        }
        for split in self.splits:
            self._evaluate_split(split, metrics)
        self.model.train()
        values: dict[str, Any] = MetricCollection(metrics, self.context).compute()
        names = dict.fromkeys(metric.name for metric in metrics.values())
        return values | generalization_gaps(values, names) | self._pictures()

    @torch.no_grad()
    def _pictures(self) -> dict[str, Any]:
        """Return the frame in the middle of each split, true above and painted below, of heads that paint."""
        pictures = {}
        for split, patches in self.splits.items():
            start = patches.num_frames // 2 * PATCHES_PER_FRAME
            index = torch.arange(start, start + PATCHES_PER_FRAME, device=self.context.device)
            outputs = self._outputs(self.model, split, index)
            for head in self.heads:
                true = self.targets[head.name][split][index]
                if true.ndim == 4:
                    pair = [join_patches(true), join_patches(outputs[head.name])]
                    pictures[f"Eval/Image/{split}_{head.name}"] = to_image(torch.cat(pair, dim=1))
        return pictures

    @torch.no_grad()
    def _evaluate_split(self, split: str, metrics: Mapping[str, Any]) -> None:
        patches = self.splits[split]
        mine = torch.arange(len(patches), device=self.context.device)
        mine = mine[self.context.rank :: self.context.world_size]
        for index in torch.split(mine, _EVALUATION_BATCH):
            outputs = self._outputs(self.model, split, index)
            for head in self.heads:
                target = self.targets[head.name][split][index]
                metrics[f"{split}_{head.name}"].update(outputs[head.name], target, patches.frame[index])


def build(
    model: ModelConfig, data: DataConfig, training: TrainingConfig, context: ProcessContext
) -> DualHeadWorkload:
    """Return the job with its two heads over the videos of the two photographs."""
    splits = load_videos(data)
    heads = [rgb_head(splits), semantic_head(splits, model.semantic)]
    return DualHeadWorkload(splits, heads, model, data, training, context)
