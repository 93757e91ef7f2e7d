"""The gradient's noise through a monitored loop, on a problem whose noise scale is known: 25 samples.

Each sample's gradient is the sample itself, of the mean MEAN and the deviation STD in each of DIM numbers.
"""

import logging

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from hjepa_dist_metrics import ConfigError, TrainingMonitor
from tests.metrics.optimization.test_noise import NOISE, SIGNAL, Dot, samples
from tests.monitor.test_monitor import config

SCALE = NOISE / SIGNAL
STEPS, SMALL = 120, 4
QUIET = {"enabled": False}  # nothing else is read of the gradients


def settings(tmp_path, **gradients):
    options = {"alerts": {"enabled": False}, "tensorboard": {"enabled": False}, "jsonl": {"enabled": False}}
    return config(tmp_path, sync="inline", gradients={**QUIET, "noise": True, **gradients}, **options)


def smooth(monitor):
    """Weigh all steps alike, nearly: their number is small and the tolerance too."""
    monitor.run.collection["gradient_noise"].decay = 0.99


def train(monitor, model, optimizer, generator, micro=1, clip=None, scaler=None, sync=None):
    for _ in range(STEPS):
        optimizer.zero_grad()
        for part in range(micro):
            if sync is not None:
                sync(part == micro - 1)
            with monitor.forward():
                loss = model(samples(SMALL, generator)) / micro
            with monitor.backward():
                (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip is not None:
            monitor.clip_grad_norm_(clip)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        monitor.step(samples=SMALL * micro)
    return dict(monitor.latest)


@pytest.mark.parametrize(("clip", "scaled"), [(None, False), (0.1, False), (0.1, True)])
def test_micro_batches_of_one_process(tmp_path, clip, scaled):
    model = Dot()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    with TrainingMonitor(model, optimizer, settings(tmp_path)) as monitor:
        smooth(monitor)
        generator = torch.Generator().manual_seed(0)
        latest = train(monitor, model, optimizer, generator, micro=8, clip=clip, scaler=scaler)
    assert latest["gradients/noise_scale"] == pytest.approx(SCALE, rel=0.2)
    assert latest["gradients/snr"] == pytest.approx(1 / latest["gradients/noise_scale"])


def test_without_accumulation_one_process_can_tell_nothing(tmp_path):
    model = Dot()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with TrainingMonitor(model, optimizer, settings(tmp_path)) as monitor:
        latest = train(monitor, model, optimizer, torch.Generator().manual_seed(0))
    assert not any(tag.startswith("gradients/") for tag in latest)


def train_on_ranks(log_dir, kind):
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(100 + rank)
    calls = []

    def mine(state, bucket):
        calls.append(1)
        return allreduce_hook(state, bucket)

    micro, sync = (2, None) if kind.endswith("accumulation") else (1, None)
    if kind.startswith("fsdp2"):
        model = fully_shard(Dot())
        sync = model.set_requires_gradient_sync if micro > 1 else None
    elif kind == "hsdp":
        model = fully_shard(Dot(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "shard")))
    else:
        model = DistributedDataParallel(Dot())
        if micro > 1:

            def sync(on):
                model.require_backward_grad_sync = on  # what no_sync does

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    own = kind == "own_hook"
    with TrainingMonitor(model, optimizer, settings(log_dir, noise=not own)) as monitor:
        if own:
            monitor.watch_gradient_noise(hook=mine)
        smooth(monitor)
        latest = train(monitor, model, optimizer, generator, micro=micro, clip=0.1, sync=sync)
    return {tag: v for tag, v in latest.items() if tag.startswith("gradients/")}, len(calls)


KINDS = ["ddp", "own_hook", "ddp_accumulation", "fsdp2", "fsdp2_accumulation", "hsdp"]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_give_the_small_batches(gloo, tmp_path, kind):
    results = gloo(4).run(train_on_ranks, str(tmp_path), kind)
    for values, calls in results:
        assert set(values) == {"gradients/noise_scale", "gradients/snr"}
        assert values["gradients/noise_scale"] == pytest.approx(SCALE, rel=0.2)
        assert values == results[0][0]
        assert calls == (STEPS if kind == "own_hook" else 0)


def reduce_twice(log_dir):
    model = DistributedDataParallel(Dot())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logger = logging.getLogger("hjepa_dist_metrics.monitor.observers.noise")
    logger.addHandler(handler)
    with TrainingMonitor(model, optimizer, settings(log_dir)) as monitor:
        latest = train(monitor, model, optimizer, torch.Generator().manual_seed(0), micro=2)
    logger.removeHandler(handler)
    return "gradients/noise_scale" in latest, told


def test_reductions_of_every_micro_batch_are_not_mistaken_for_one(gloo, tmp_path):
    for measured, told in gloo(2).run(reduce_twice, str(tmp_path)):
        assert not measured
        assert len(told) == 1
        assert "2 reductions in one step" in told[0]


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)


def refusal(log_dir, kind):
    model = TwoLayers()
    if kind == "tensor_parallel":
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(model, mesh["tp"], {"first": ColwiseParallel(), "second": ColwiseParallel()})
        fully_shard(model, mesh=mesh["dp"])
    elif kind == "mixed":
        fully_shard(model.first)
    try:
        TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), settings(log_dir))
    except ConfigError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("plain", "expected a model in DistributedDataParallel or fully_shard"),
        ("mixed", "2 parameters are reduced elsewhere, 'second.weight' for one"),
        ("tensor_parallel", "tensor parallel too"),
    ],
)
def test_models_whose_noise_cannot_be_seen_are_an_error_on_every_rank(gloo, tmp_path, kind, message):
    for text in gloo(2).run(refusal, str(tmp_path), kind):
        assert message in text


def test_it_is_watched_once(tmp_path):
    model = Dot()
    with (
        TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.0), settings(tmp_path)) as monitor,
        pytest.raises(ConfigError, match="watched already"),
    ):
        monitor.watch_gradient_noise()
