"""Ranks that share the GPU over gloo, a rank on NCCL, and parameters that FSDP2 shards."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics import (
    Collapse,
    GradientClipping,
    GradientFlow,
    HierarchicalLoss,
    MetricCollection,
    ProcessContext,
    Scalar,
    TrainingMonitor,
)
from hjepa_dist_metrics.values import Value
from tests.cuda.device import REHEARSAL, backend, device, rehearsed, there
from tests.helpers.processes import free_port, run_disposable

ROWS, DIM = 96, 16


@pytest.fixture(autouse=True)
def rehearsal_in_all_processes(monkeypatch):
    """Let the processes of ranks, which are forked from a server, read what this one was started with."""
    monkeypatch.setenv(REHEARSAL, os.environ.get(REHEARSAL, "0"))


def rows() -> torch.Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(3)) * 2 + 1


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(DIM, 32), nn.Tanh(), nn.Linear(32, DIM))


def as_in(environment: str) -> None:
    os.environ[REHEARSAL] = environment


def numbers_of(values: Mapping[str, Value]) -> dict[str, float]:
    return {tag: float(value) for tag, value in values.items() if isinstance(value, Scalar)}


def metrics_of(share: torch.Tensor) -> dict[str, float]:
    collection = MetricCollection(
        {"collapse": Collapse(DIM), "loss": HierarchicalLoss(1, [1.0])}, sync_timeout=60
    )
    collection["collapse"].update(share)
    loss = share.square().mean()
    collection["loss"].update({"loss": loss, "loss_h0": loss}, len(share))
    inline = numbers_of(collection.compute())
    again = numbers_of(collection.compute_async().result(60))
    assert repr(inline) == repr(again)
    return inline


def train_under_ddp(rehearsal: str) -> tuple[dict[str, float], dict[str, float]]:
    """Train three steps on this rank's share of the rows; return merged metrics and what was logged."""
    as_in(rehearsal)
    context = ProcessContext.current(device=device())
    share = there(rows())[context.rank :: context.world_size]
    merged = metrics_of(share)
    model = DistributedDataParallel(net().to(device()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"log_dir": folder, "log_frequency": 1, "experiment_name": "ranks"}
        with TrainingMonitor(model, optimizer, settings, context=context) as monitor:
            for _ in range(3):
                with monitor.forward():
                    loss = (model(share) - share).square().mean()
                with monitor.backward():
                    loss.backward()
                monitor.clip_grad_norm_(0.5)
                with monitor.optimizer_step():
                    optimizer.step()
                optimizer.zero_grad()
                monitor.step(samples=len(share), losses=loss, features=share)
            monitor.flush()
            logged = monitor.latest
    return merged, {
        tag: v for tag, v in logged.items() if tag.startswith(("loss/", "gradient/", "collapse/"))
    }


def alone(rehearsal: str):
    return train_under_ddp(rehearsal)


@pytest.mark.parametrize("world", [2] if rehearsed() else [2, 4])
def test_ranks_that_share_the_device(gloo, world):
    rehearsal = os.environ.get(REHEARSAL, "0")
    (expected,) = gloo(1).run(alone, rehearsal, timeout=120.0)
    results = gloo(world).run(train_under_ddp, rehearsal, timeout=120.0)
    for merged, logged in results:
        assert merged == pytest.approx(expected[0], rel=1e-5, nan_ok=True)
        assert set(expected[1]) <= set(logged)
        for tag in ("loss/total", "gradient/global_norm_before_clip", "collapse/effective_rank"):
            assert logged[tag] == pytest.approx(expected[1][tag], rel=1e-4), tag
    assert all(repr(result) == repr(results[0]) for result in results)


def with_backend(rank: int, rehearsal: str, port: int, body: str):
    """Leave the gloo world of one that this process was started in, and join one on the device's backend."""
    as_in(rehearsal)
    dist.destroy_process_group()
    if not rehearsed():
        torch.cuda.set_device(device())
    dist.init_process_group(backend(), init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        return {"ddp": train_under_ddp, "fsdp": norms_under_fsdp}[body](rehearsal)
    finally:
        dist.destroy_process_group()


def test_one_rank_on_nccl(gloo):
    rehearsal = os.environ.get(REHEARSAL, "0")
    (expected,) = gloo(1).run(alone, rehearsal, timeout=120.0)
    found = run_disposable(1, with_backend, rehearsal, free_port(), "ddp", timeout=120.0)[0]
    assert found[0] == pytest.approx(expected[0], rel=1e-9, nan_ok=True)
    assert found[1]["loss/total"] == pytest.approx(expected[1]["loss/total"], rel=1e-6)


def norms_under_fsdp(rehearsal: str) -> dict[str, float]:
    """Return norms of gradients that FSDP2 shards over a mesh of one rank, and after clipping."""
    mesh = init_device_mesh(device().type, (1,), mesh_dim_names=("dp",))
    model = net().to(device())
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    share = there(rows())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"log_dir": folder, "log_frequency": 1, "experiment_name": "fsdp"}
        with TrainingMonitor(model, optimizer, settings) as monitor:
            (model(share) - share).square().mean().backward()
            flow, clipping = GradientFlow(model), GradientClipping(model)
            flow.update()
            norm = float(flow.compute()["gradients/global_norm"])
            before = float(clipping.clip_(0.25))
            after = float(clipping.clip_(math.inf))
            optimizer.step()
            monitor.step(samples=ROWS, losses=1.0, features=share)
    return {"flow": norm, "before": before, "after": after}


def test_fsdp2_on_one_device():
    plain = net()
    share = rows()
    (plain(share) - share).square().mean().backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in plain.parameters()))
    rehearsal = os.environ.get(REHEARSAL, "0")
    found = run_disposable(1, with_backend, rehearsal, free_port(), "fsdp", timeout=120.0)[0]
    # float32 products on the device may be TF32's
    assert found == pytest.approx({"flow": norm, "before": norm, "after": 0.25}, rel=5e-3)
