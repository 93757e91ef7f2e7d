"""A small network trained by the schedules of torch.distributed.pipelining, or by one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
)

from hjepa_dist_metrics import DesyncError, ParallelLayout, TrainingMonitor

WIDTH, LAYERS, BATCH, MICRO = 6, 4, 8, 2


class Part(nn.Module):
    """Hold some of the layers, under the names of the whole network."""

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(i): nn.Linear(WIDTH, WIDTH) for i in layers})
        for name, parameter in self.named_parameters():
            generator = torch.Generator().manual_seed(sum(name.encode()))
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = x + torch.tanh(layer(x))
        return x


def loss_of(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(BATCH, WIDTH, generator=generator), torch.randn(BATCH, WIDTH, generator=generator)


def settings(log_dir: str, **more: Any) -> dict[str, Any]:
    plain = {"tensorboard": {"enabled": False}, "figures": {"enabled": False}, "dashboards": []}
    cadence = {"log_frequency": 1, "cadence": {"representations": 1, "histograms": 1}}
    return {"experiment_name": "run", "log_dir": log_dir} | cadence | plain | more


def observe(monitor: TrainingMonitor, loss: Tensor | None, features: Tensor | None, samples: int) -> None:
    monitor.step(samples=samples, losses=loss, features=features)


def train_alone(log_dir: str, steps: int, max_norm: float) -> list[dict[str, float]]:
    model = Part(range(LAYERS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    history = []
    with TrainingMonitor(model, optimizer, settings(log_dir, sync="inline")) as monitor:
        for step in range(steps):
            x, target = batch(step)
            output = model(x)
            loss = loss_of(output, target)
            loss.backward()
            monitor.clip_grad_norm_(max_norm)
            optimizer.step()
            optimizer.zero_grad()
            observe(monitor, loss.detach(), output.detach(), BATCH)
            history.append(dict(monitor.latest))
    return history


class Pipeline:
    """Hold this rank's stages and their schedule on a mesh with the dimensions "pp" and "dp"."""

    def __init__(self, kind: str, mesh: DeviceMesh) -> None:
        self.rank, size = mesh.get_local_rank("pp"), mesh.size(0)
        interleaved = kind == "interleaved"
        count = 2 * size if interleaved else size
        own = [self.rank, self.rank + size] if interleaved else [self.rank]
        each = LAYERS // count
        self.parts = [Part(range(i * each, (i + 1) * each)) for i in own]
        wrapped: list[nn.Module] = [_wrap(part, kind, mesh) for part in self.parts]
        self.model = wrapped[0] if len(wrapped) == 1 else nn.ModuleList(wrapped)
        group = mesh.get_group("pp")
        device = torch.device("cpu")
        stages = [
            PipelineStage(module, index, count, device, group=group)
            for module, index in zip(wrapped, own, strict=True)
        ]
        if interleaved:
            self.schedule: Any = ScheduleInterleaved1F1B(stages, MICRO, loss_fn=loss_of)
        else:
            schedule = ScheduleGPipe if kind == "gpipe" else Schedule1F1B
            self.schedule = schedule(stages[0], MICRO, loss_fn=loss_of)
        self.is_first, self.is_last = self.rank == 0, self.rank == size - 1
        self._kind, self._mesh = kind, mesh

    def step(self, x: Tensor, target: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Run forward and backward; return loss and output where this rank has them."""
        losses: list[Tensor] = []
        inputs = (x,) if self.is_first else ()
        if self.is_last:
            output = self.schedule.step(*inputs, target=target, losses=losses)
        else:
            output = self.schedule.step(*inputs)
        self._average()
        if not self.is_last:
            return None, None
        return torch.stack([loss.detach() for loss in losses]).mean(), output.detach()

    def _average(self) -> None:
        """Average over data-parallel ranks what neither DDP nor FSDP2 does."""
        if self._kind == "fsdp":
            return
        group = self._mesh.get_group("dp")
        for part in self.parts:
            for parameter in part.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad, group=group)
                parameter.grad /= dist.get_world_size(group)


def _wrap(part: nn.Module, kind: str, mesh: DeviceMesh) -> nn.Module:
    return fully_shard(part, mesh=mesh["dp"]) if kind == "fsdp" else part


def train_undeclared(log_dir: str, clips: bool) -> str:
    """Train on stages without a word about them; return the error of the first step."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    pipeline = Pipeline("gpipe", mesh)
    optimizer = torch.optim.AdamW(pipeline.model.parameters(), lr=0.01)
    x, target = (t.chunk(2)[mesh.get_local_rank("dp")] for t in batch(0))
    monitor = TrainingMonitor(pipeline.model, optimizer, settings(log_dir))
    before = [parameter.detach().clone() for parameter in pipeline.model.parameters()]
    try:
        with monitor.backward():
            pipeline.step(x, target)
        if clips:
            monitor.clip_grad_norm_(1.0)
    except DesyncError as error:
        assert all(torch.equal(p, q) for p, q in zip(before, pipeline.model.parameters(), strict=True))
        return str(error)
    finally:
        monitor.run.release()
    return "no error"


def train_in_stages(kind: str, log_dir: str, steps: int, max_norm: float) -> list[dict[str, float]]:
    """Train as `train_alone` does, on 2 stages by 2 data-parallel ranks; rank 0 has no loss."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    pipeline = Pipeline(kind, mesh)
    optimizer = torch.optim.AdamW(pipeline.model.parameters(), lr=0.01)
    layout = ParallelLayout(mesh, data="dp", pipeline="pp")
    history = []
    with TrainingMonitor(
        pipeline.model, optimizer, settings(log_dir, sync="inline"), layout=layout
    ) as monitor:
        for step in range(steps):
            x, target = (t.chunk(2)[mesh.get_local_rank("dp")] for t in batch(step))
            with monitor.backward():
                loss, output = pipeline.step(x, target)
            monitor.clip_grad_norm_(max_norm)
            optimizer.step()
            optimizer.zero_grad()
            observe(monitor, loss, output, len(x))
            history.append(dict(monitor.latest))
    return history
