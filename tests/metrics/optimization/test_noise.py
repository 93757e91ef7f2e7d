"""Noise of gradients whose mean and covariance are known: each sample's gradient is the sample itself."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard

from hjepa_dist_metrics import ConfigError, GradientNoise, MetricCollection
from hjepa_dist_metrics.metrics.optimization.noise import signal_and_noise

DIM = 64
MEAN, STD = 0.1, 0.5
SIGNAL, NOISE = DIM * MEAN**2, DIM * STD**2  # |G|^2 = 0.64 and tr(covariance) = 16: a noise scale of 25


class Dot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(DIM))

    def forward(self, x):
        return (x * self.weight).sum(dim=1).mean()


def samples(count, generator):
    return MEAN + STD * torch.randn(count, DIM, generator=generator)


def numbers(values):
    return {tag: float(value) for tag, value in values.items()}


def test_two_equations_and_two_unknowns():
    # |G|^2 = 2, S = 12: norms 2 + 12/4 = 5 and 2 + 12/24 = 2.5
    assert signal_and_noise(5.0, 1 / 4, 2.5, 1 / 24) == pytest.approx((2.0, 12.0))


def test_micro_batches_of_one_process():
    model, generator = Dot(), torch.Generator().manual_seed(0)
    noise = GradientNoise(model, decay=0.997)
    for _ in range(400):
        model.zero_grad()
        for part in range(4):
            (model(samples(4, generator)) / 4).backward()
            if part == 0:
                noise.small(4, scale=4)
        noise.large(16)
    values = numbers(noise.compute())
    assert values["gradients/noise_scale"] == pytest.approx(NOISE / SIGNAL, rel=0.15)
    assert values["gradients/snr"] == pytest.approx(1 / values["gradients/noise_scale"])


def measured(kind):
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(100 + rank)
    calls = []
    if kind == "fsdp2":
        model = fully_shard(Dot())
        noise = GradientNoise(model, decay=0.99)
    else:
        model = nn.parallel.DistributedDataParallel(Dot())

        def mine(state, bucket):
            calls.append(1)
            return allreduce_hook(state, bucket)

        noise = GradientNoise(model, decay=0.99, hook=mine if kind == "own_hook" else None)
    for _ in range(100):
        model.zero_grad()
        loss = model(samples(4, generator))
        with noise.measuring(4):
            loss.backward()
    reduced = model.module.weight.grad if kind != "fsdp2" else model.weight.grad.full_tensor()
    alike = [torch.empty_like(reduced) for _ in range(world)]
    dist.all_gather(alike, reduced.contiguous())
    same = all(torch.equal(alike[0], other) for other in alike)
    return numbers(MetricCollection({"n": noise}).compute()), len(calls), same


@pytest.mark.parametrize("kind", ["ddp", "own_hook", "fsdp2"])
def test_ranks_give_the_small_batches(gloo, kind):
    results = gloo(4).run(measured, kind)
    for values, calls, same in results:
        assert values["gradients/noise_scale"] == pytest.approx(NOISE / SIGNAL, rel=0.2)
        assert values == results[0][0]
        assert calls == (100 if kind == "own_hook" else 0)
        assert same


def test_a_nonfinite_step_does_not_spoil_the_mean():
    noise = GradientNoise(Dot(), decay=0.5)
    noise.update(5.0, 4, 2.5, 24)
    noise.update(math.inf, 4, math.nan, 24)
    assert numbers(noise.compute())["gradients/noise_scale"] == pytest.approx(6.0)


def test_no_signal_gives_no_number():
    noise = GradientNoise(Dot())
    assert noise.compute() == {}
    noise.update(1.0, 4, 2.0, 8)  # the larger batch has the larger norm: less than no noise
    assert noise.compute() == {}


def test_bad_arguments():
    with pytest.raises(ConfigError, match="decay"):
        GradientNoise(Dot(), decay=1.0)
    noise = GradientNoise(Dot())
    with pytest.raises(ConfigError, match="got 8 and 8"):
        noise.update(1.0, 8, 1.0, 8)
    with pytest.raises(ConfigError, match="no small batch"):
        noise.large(8)
    with pytest.raises(ConfigError, match="expected a model in DistributedDataParallel"), noise.measuring(4):
        pass


def nothing_reduced():
    noise = GradientNoise(nn.parallel.DistributedDataParallel(Dot()))
    with noise.measuring(4):
        pass


def test_measuring_without_a_reduction_is_an_error(gloo):
    with pytest.raises(AssertionError, match="no gradient was reduced"):
        gloo(2).run(nothing_reduced)
