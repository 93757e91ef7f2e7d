"""The language model as a workload that brings its own parallelism along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hjepa_dist_metrics import ConfigError, ParallelLayout, ProcessContext, TrainingMonitor
from hjepa_dist_metrics.parallel.collectives import all_reduce_sum
from hjepa_dist_metrics.reference.data import GlobalBatchSampler
from hjepa_dist_metrics.reference.groups import decay_groups
from hjepa_dist_metrics.reference.language.config import DataConfig, ModelConfig
from hjepa_dist_metrics.reference.language.model import Language
from hjepa_dist_metrics.reference.language.sums import sums
from hjepa_dist_metrics.reference.training import TrainingConfig
from hjepa_dist_metrics.reference.workload import MicroStep

_MICRO_BATCHES = 2  # of a pipeline


class LanguageWorkload:
    """Train on sums: in one process, on pipeline stages by data ranks, or with experts over ranks."""

    level_weights = None

    def __init__(
        self, model: ModelConfig, data: DataConfig, training: TrainingConfig, context: ProcessContext
    ) -> None:
        _require_possible(model, data, training, context)
        self.context, self.training = context, training
        self.mesh = _mesh(model, context)
        self.layout = _layout(model, self.mesh)
        stage = self.mesh.get_local_rank("pp") if self.mesh and model.stages > 1 else 0
        each = model.layers // model.stages
        expert_context = _along(self.mesh, "ep", context) if model.expert_ranks > 1 else _alone(context)
        share = model.experts // model.expert_ranks
        held = range(expert_context.rank * share, (expert_context.rank + 1) * share)
        layers = range(stage * each, (stage + 1) * each)
        net = Language(model, layers, held, expert_context, training.seed)
        self.model: Language = net.to(context.device)
        self._data = _along(self.mesh, "dp", context) if model.stages > 1 else context
        self._dense = self._data  # over which gradients are averaged; those of experts over fewer ranks
        self._expert_peers = _along(self.mesh, "dp", context) if model.expert_ranks > 1 else self._data
        self.sampler = GlobalBatchSampler(
            data.samples, data.batch_size, self._data.rank, self._data.world_size, training.seed
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self._schedule = self._make_schedule(model.stages, stage) if model.stages > 1 else None

    def _make_schedule(self, stages: int, stage: int) -> Any:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B

        assert self.mesh is not None
        own = PipelineStage(self.model, stage, stages, self.context.device, group=self.mesh.get_group("pp"))
        return Schedule1F1B(own, _MICRO_BATCHES, loss_fn=self.model.loss if self.model.is_last else _no_loss)

    def attach(self, monitor: TrainingMonitor) -> None:
        """Add nothing: the built-in observers suffice."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return weights with decay, and biases and norms without."""
        return decay_groups(self.model, self.training.weight_decay)

    def batches(self, epoch: int, start_step: int) -> Iterator[Tensor]:
        """Yield this rank's sums, by their numbers."""
        self.sampler.set_epoch(epoch, start_step)
        for share in self.sampler:
            yield torch.tensor(share, dtype=torch.int64)

    def micro_step(self, monitor: TrainingMonitor, batch: Tensor, epoch: int) -> MicroStep:
        """Run forward and backward, and average gradients over the ranks that hold copies."""
        text = sums(batch, self.training.seed).to(self.context.device)
        letters, targets = text[:, :-1], text[:, 1:]
        loss, features = self._run(monitor, letters, targets)
        self._average()
        # A pipeline's first step has one pass more, which finds out shapes.
        passes = 1 if self._schedule is None else _MICRO_BATCHES
        observations: dict[str, Any] = {"router_logits": self.model.router_logits(passes)}
        if features is not None:
            observations |= {"features": features, "ids": batch}
        losses = None if loss is None else {"loss": loss}
        return MicroStep(loss, losses, len(batch), targets.numel(), observations)

    def _run(
        self, monitor: TrainingMonitor, letters: Tensor, targets: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        if self._schedule is None:
            with monitor.forward():
                features = self.model(letters)
                loss = self.model.loss(features, targets)
            with monitor.backward():
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach(), features.detach()
        losses: list[Tensor] = []
        inputs = (letters,) if self.model.is_first else ()
        with monitor.backward():  # the schedule does both
            if self.model.is_last:
                features = self._schedule.step(*inputs, target=targets, losses=losses)
                return torch.stack([part.detach() for part in losses]).mean(), features.detach()
            self._schedule.step(*inputs)
        return None, None

    @torch.no_grad()
    def _average(self) -> None:
        """Average over data-parallel ranks; an expert has the gradients of all tokens that it was sent."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is None:  # an expert that no token chose, here or anywhere
                parameter.grad = torch.zeros_like(parameter)
            peers = self._expert_peers if ".experts." in name else self._dense
            parameter.grad.copy_(all_reduce_sum(parameter.grad, peers) / self._dense.world_size)

    def after_step(self, step: int) -> Mapping[str, Any]:
        """Return nothing more to observe."""
        return {}

    def evaluate(self) -> Mapping[str, Any]:
        """Return nothing: the training loss is the number to watch."""
        return {}


def _no_loss(*_: Tensor) -> Tensor:
    raise ConfigError("only the last pipeline stage has a loss")


def _mesh(model: ModelConfig, context: ProcessContext) -> DeviceMesh | None:
    size, name = (model.stages, "pp") if model.stages > 1 else (model.expert_ranks, "ep")
    if size == 1:
        return None
    shape = (size, context.world_size // size)
    return init_device_mesh(context.device.type, shape, mesh_dim_names=(name, "dp"))


def _layout(model: ModelConfig, mesh: DeviceMesh | None) -> ParallelLayout | None:
    if mesh is None:
        return None
    if model.stages > 1:
        return ParallelLayout(mesh, data="dp", pipeline="pp")
    return ParallelLayout(mesh, data="dp", expert={r"\.experts\.": "ep"})


def _along(mesh: DeviceMesh | None, name: str, context: ProcessContext) -> ProcessContext:
    assert mesh is not None
    return ProcessContext.current(mesh.get_group(name), device=context.device)


def _alone(context: ProcessContext) -> ProcessContext:
    return ProcessContext(0, 1, context.device, is_main=True)


def _require_possible(
    model: ModelConfig, data: DataConfig, training: TrainingConfig, context: ProcessContext
) -> None:
    size = max(model.stages, model.expert_ranks)
    if context.world_size % size or (size > 1 and context.world_size == 1):
        started = f"torchrun --nproc-per-node {2 * size} starts as many"
        raise ConfigError(f"expected a multiple of {size} ranks, got {context.world_size}: {started}")
    shares = context.world_size // model.stages * (_MICRO_BATCHES if model.stages > 1 else 1)
    if data.batch_size % shares:
        raise ConfigError(f"data.batch_size is {data.batch_size}; allowed: multiples of {shares}")
    if training.accumulation_steps > 1 or training.compile or training.checkpoint_dir:
        raise ConfigError(
            "the language run takes no accumulation_steps, compile or checkpoint_dir: each rank would "
            "save a part of the model"
        )
