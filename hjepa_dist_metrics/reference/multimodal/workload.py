"""Several modalities of the same samples as a workload of the trainer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hjepa_dist_metrics import (
    EpochLoss,
    MetricCollection,
    MetricsError,
    ModalityAlignment,
    ModalityEmbeddings,
    NamedMeans,
    ProcessContext,
    TrainingMonitor,
)
from hjepa_dist_metrics.figures.gather import gather_rows
from hjepa_dist_metrics.logging.graph import trace_graph
from hjepa_dist_metrics.logging.parameters import weight_histograms
from hjepa_dist_metrics.reference.data import GlobalBatchSampler
from hjepa_dist_metrics.reference.groups import decay_groups
from hjepa_dist_metrics.reference.multimodal.config import ModelConfig
from hjepa_dist_metrics.reference.multimodal.data import VALIDATION_EPOCH
from hjepa_dist_metrics.reference.multimodal.modality import GLOBAL, PairedData
from hjepa_dist_metrics.reference.multimodal.model import SCALE, MultimodalModel, Positional
from hjepa_dist_metrics.reference.multimodal.objective import TOTAL, ContrastiveObjective
from hjepa_dist_metrics.reference.multimodal.retrieval import same_class, showpieces, validation_losses
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workload import MicroStep

logger = logging.getLogger("hjepa_dist_metrics.reference")

SECOND_NAMES = {
    "learning_rate/base_lr": "optimization/lr",
    "gradient/global_norm_before_clip": "optimization/grad_norm",
}


class Batch(NamedTuple):
    """Hold this rank's share of a micro-batch: global indices, inputs by modality, every rank's size."""

    indices: Tensor
    inputs: Mapping[str, Tensor]
    sizes: list[int]


class MultimodalWorkload:
    """Embed any set of modalities in one space, by contrastive losses over the global batch."""

    level_weights = None

    def __init__(
        self,
        model: ModelConfig,
        data: PairedData,
        batch_size: int,
        training: TrainingConfig,
        context: ProcessContext,
    ) -> None:
        self.context, self.data, self.training, self.batch_size = context, data, training, batch_size
        self.sampler = GlobalBatchSampler(
            data.num_train,
            batch_size,
            context.rank,
            context.world_size,
            training.seed,
            training.accumulation_steps,
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        torch.manual_seed(training.seed)
        net = MultimodalModel(data.modalities, model.embed_dim, model.temperature)
        self.model: MultimodalModel = net.to(context.device)
        alone = dataclasses.replace(context, rank=0, world_size=1, group=None, channel=None)
        self.objective, self.objective_alone = (
            ContrastiveObjective(data.names, where, model.pair_weight, model.global_weight)
            for where in (context, alone)
        )
        self.losses = NamedMeans()
        self.epoch_loss = EpochLoss(self.steps_per_epoch)
        self.spread = ModalityEmbeddings([*data.names, GLOBAL], model.embed_dim)
        self.dim = model.embed_dim

    def attach(self, monitor: TrainingMonitor) -> None:
        """Add losses by term, embedding statistics and second names, and write the model's graph."""
        self.monitor = monitor
        monitor.add_metric("modality_losses", self.losses)
        monitor.add_metric("modality_embeddings", self.spread)
        monitor.add_metric("epoch_train_loss", self.epoch_loss, "epoch")
        monitor.add_alias(SECOND_NAMES)
        if monitor.step_number == 0:
            self._write_graph(monitor)

    def _write_graph(self, monitor: TrainingMonitor) -> None:
        """Write the model's graph; an encoder that cannot be traced costs the picture and not the run."""
        inputs = self._to_device(self.data.inputs(torch.arange(2), VALIDATION_EPOCH))
        try:
            graph = trace_graph(Positional(self.model), tuple(inputs[name] for name in self.data.names))
        except MetricsError as error:
            logger.warning("no graph: %s", error)
        else:
            monitor.log({"graph": graph}, 0)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return weights with decay, and biases, norms and the scale without."""
        return decay_groups(self.model, self.training.weight_decay)

    def batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """Yield this rank's micro-batches of the epoch."""
        self.sampler.set_epoch(epoch, start_step)
        for number, share in enumerate(self.sampler):
            index = torch.tensor(share, dtype=torch.int64)
            sizes = self.sampler.sizes(number % self.training.accumulation_steps)
            yield Batch(index, self.data.inputs(index, epoch), sizes)

    def forward(self, model: nn.Module, batch: Batch, epoch: int) -> MicroStep:
        """Embed the samples and contrast them with those of all ranks."""
        embeddings = dict(model(self._to_device(batch.inputs)))
        scale = embeddings.pop(SCALE)
        result = self.objective(embeddings, scale, batch.sizes)
        total, step = result.losses[TOTAL], self.monitor.step_number
        named = {f"loss/train/{name}": loss for name, loss in result.losses.items()}
        self.losses.update(named, result.count)
        self.epoch_loss.update(total, result.count, step % self.steps_per_epoch)
        if self.monitor.due("scalars"):
            self.spread.update(embeddings)
        return MicroStep(result.loss, {"loss": total}, result.count)

    def after_step(self, step: int) -> dict[str, float]:
        """Write the weights' histograms on the steps that log those of the gradients."""
        if self.monitor.due("histograms"):
            self.monitor.log(weight_histograms(self.model), step)
        return {}

    def evaluate(self) -> Mapping[str, Any]:
        """Return losses, alignment and retrieval of held-out samples, and on figure steps things to see."""
        own = torch.arange(self.context.rank, self.data.num_val, self.context.world_size)
        mine, scale = self._embed(own)
        alignment = ModalityAlignment(self.data.names, self.dim, sample=min(self.data.num_val, 256))
        alignment.update({name: mine[name] for name in self.data.names}, ids=own)
        values: dict[str, Any] = MetricCollection({"alignment": alignment}, self.context).compute()
        everything = self._everywhere(own, mine)
        losses = validation_losses(self.objective_alone, everything, scale, self.batch_size)
        values |= {f"loss/val/{name}": loss for name, loss in losses.items()}
        values["val/loss"] = losses[TOTAL]
        if self.data.labels is not None:
            found = same_class(everything, self.data.labels[self.data.num_train :], self.data.names)
            values |= {f"val/same_class_{name}": share for name, share in found.items()}
        if self._shows():
            values |= dict(showpieces(self.data, everything))
        return values

    def _shows(self) -> bool:
        """Return whether to show samples now: before the run, at its end, and when figures are due."""
        done, total = self.monitor.step_number, self.training.epochs * self.steps_per_epoch
        over = done >= min(total, self.training.max_steps or total)
        return done == 0 or over or self.monitor.due("figures")

    @torch.no_grad()
    def _embed(self, own: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return the embeddings of held-out samples by name, on the host, and the scale."""
        self.model.eval()
        inputs = self.data.inputs(own + self.data.num_train, VALIDATION_EPOCH)
        embedded = self.model(self._to_device(inputs))
        self.model.train()
        scale = embedded.pop(SCALE).cpu()
        return {name: rows.float().cpu() for name, rows in embedded.items()}, scale

    def _everywhere(self, own: Tensor, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return every rank's embeddings in the order of the samples."""
        order = np.argsort(gather_rows(own.double().numpy()[:, None], self.context)[:, 0])
        rows = {name: gather_rows(values.double().numpy(), self.context) for name, values in mine.items()}
        return {name: torch.from_numpy(found[order]).float() for name, found in rows.items()}

    def _to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: rows.to(self.context.device, non_blocking=True) for name, rows in inputs.items()}
