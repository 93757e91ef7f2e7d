import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from hjepa_dist_metrics import ConfigError, DesyncError, EMADynamics, MetricCollection
from tests.helpers.layouts import Net
from tests.helpers.ranks import run_ranks, try_ranks

pytestmark = pytest.mark.accuracy


def encoders(scale=0.1, dtype=torch.float32):
    torch.manual_seed(0)
    context = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).to(dtype)
    target = copy.deepcopy(context)
    with torch.no_grad():
        for tensor in [*target.parameters(), *target.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(scale * torch.randn_like(tensor))
    return context, target


def flat(module, buffers=True):
    """All weights, and floating-point buffers, in float64."""
    tensors = [*module.named_parameters(), *(module.named_buffers() if buffers else ())]
    parts = [t.detach().double().numpy().ravel() for _, t in sorted(tensors) if t.is_floating_point()]
    return np.concatenate(parts)


def read(metric):
    return {tag.removeprefix("ema/"): float(value) for tag, value in metric.compute().items()}


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [lambda m: m, Wrapper, lambda m: Wrapper(Wrapper(m))])
def test_equals_the_flat_vectors(wrap):
    context, target = encoders()
    metric = EMADynamics()
    metric.update(wrap(context), wrap(target), 0.9, 0.999)
    c, before, weights_before = flat(context), flat(target), flat(target, buffers=False)
    first = read(metric)
    assert "update_magnitude" not in first  # nothing to compare with yet
    with torch.no_grad():
        for slow, live in zip(target.parameters(), context.parameters(), strict=True):
            slow.lerp_(live, 0.1)
        for buffer in target.buffers():  # a batch norm's buffers follow the data
            buffer.add_(1)
    metric.update(wrap(context), wrap(target), 0.91, 0.999)
    t, weights = flat(target), flat(target, buffers=False)
    norm = np.linalg.norm
    move = norm(t - before) / norm(t)
    expected = {
        "momentum_current": 0.91,
        "momentum_target": 0.999,
        "parameter_divergence": norm(c - t),
        "relative_divergence": norm(c - t) / norm(t),
        "cosine": c @ t / norm(c) / norm(t),
        "update_magnitude": move,
        "target_weight_stability": 1 - move,
        "weight_distance": norm(flat(context, buffers=False) - weights) / norm(weights),
        "weight_move": norm(weights - weights_before) / norm(weights),
    }
    assert read(metric) == pytest.approx(expected, rel=1e-5)


def test_a_frozen_teacher_has_an_update_magnitude_of_exactly_zero():
    context, target = encoders()
    metric = EMADynamics()
    metric.remember(target)
    with torch.no_grad():
        context[0].weight.add_(1.0)
    metric.update(context, target, 0.9, 1.0)
    values = read(metric)
    assert values["update_magnitude"] == 0.0
    assert values["target_weight_stability"] == 1.0
    assert values["relative_divergence"] > 0


def test_remember_counts_from_there():
    context, target = encoders()
    metric = EMADynamics()
    metric.update(context, target, 0.9, 1.0)
    with torch.no_grad():
        target[0].weight.add_(5.0)
    metric.remember(target)
    before = flat(target)
    with torch.no_grad():
        target[2].bias.add_(0.25)
    metric.update(context, target, 0.9, 1.0)
    expected = np.linalg.norm(flat(target) - before) / np.linalg.norm(flat(target))
    assert read(metric)["update_magnitude"] == pytest.approx(expected, rel=1e-5)


def test_a_reset_keeps_what_the_next_move_is_measured_from():
    context, target = encoders()
    metric = EMADynamics()
    metric.update(context, target, 0.9, 1.0)
    metric.reset()
    assert metric.compute() == {}
    metric.update(context, target, 0.9, 1.0)
    assert read(metric)["update_magnitude"] == 0.0


def test_equal_encoders():
    context, _ = encoders()
    metric = EMADynamics()
    metric.update(context, context, 0.5, 1.0)
    values = read(metric)
    assert (values["parameter_divergence"], values["cosine"]) == (0.0, 1.0)


def test_opposite_and_zero_weights():
    context, target = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        target.weight.copy_(-context.weight)
    metric = EMADynamics()
    metric.update(context, target, 0.5, 1.0)
    assert read(metric)["cosine"] == pytest.approx(-1.0)
    nn.init.zeros_(target.weight)
    metric.update(context, target, 0.5, 1.0)
    values = read(metric)
    assert (values["cosine"], values["relative_divergence"]) == (0.0, math.inf)


def test_bf16_weights_are_measured_in_float32():
    context, target = encoders(scale=0.01, dtype=torch.bfloat16)
    metric = EMADynamics()
    metric.update(context, target, 0.5, 1.0)
    expected = np.linalg.norm(flat(context) - flat(target))
    assert read(metric)["parameter_divergence"] == pytest.approx(expected, rel=1e-5)


def test_nan_weights_are_nan_values():
    context, target = encoders()
    metric = EMADynamics()
    metric.update(context, target, 0.5, 1.0)
    with torch.no_grad():
        target[0].weight[0, 0] = float("nan")
    metric.update(context, target, 0.5, 1.0)
    values = read(metric)
    assert math.isnan(values["parameter_divergence"])
    assert math.isnan(values["update_magnitude"])


def test_different_encoders_are_refused():
    with pytest.raises(ConfigError, match=r"same parameters; of only one of them: \['weight\[2, 2\]', 'wei"):
        EMADynamics().update(nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False), 0.5, 1.0)
    with pytest.raises(ConfigError, match="no parameters"):
        EMADynamics().update(nn.ReLU(), nn.ReLU(), 0.5, 1.0)


def test_ranks_average_their_buffers_and_must_agree_on_weights():
    made = [encoders() for _ in range(2 * 2)]  # here: threads would share torch's generator

    def body(context_of_rank, shift_weights):
        context, target = made[2 * shift_weights + context_of_rank.rank]
        with torch.no_grad():
            target[1].running_mean.add_(float(context_of_rank.rank))
            if shift_weights:
                target[0].weight.add_(0.1 * context_of_rank.rank)
        metric = EMADynamics()
        metric.update(context, target, 0.5, 1.0)
        distance = np.linalg.norm(flat(context) - flat(target))
        return distance, float(MetricCollection({"ema": metric}, context_of_rank).compute()[TAG])

    (d0, v0), (d1, v1) = run_ranks(2, lambda context: body(context, False))
    assert v0 == v1 == pytest.approx(math.sqrt((d0**2 + d1**2) / 2), rel=1e-5)
    for outcome in try_ranks(2, lambda context: body(context, True)):
        assert isinstance(outcome, DesyncError)
        assert "'ema.weights' must be the same on every rank" in str(outcome)


TAG = "ema/parameter_divergence"


def shifted_net(shift):
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(shift)
    return net


def measure_sharded():
    context, target = fully_shard(shifted_net(0.25)), fully_shard(shifted_net(0.0))
    metric = EMADynamics()
    metric.update(context, target, 0.5, 1.0)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(1.5)
    metric.update(context, target, 0.5, 1.0)
    return {tag: float(v) for tag, v in MetricCollection({"ema": metric}).compute().items()}


def test_sharded_encoders_are_measured_whole(gloo):
    context, target = flat(shifted_net(0.25)), flat(shifted_net(0.0))
    norm, now = np.linalg.norm, 1.5 * target
    for values in gloo(2).run(measure_sharded):
        assert values["ema/parameter_divergence"] == pytest.approx(norm(context - now), rel=1e-5)
        assert values["ema/update_magnitude"] == pytest.approx(norm(now - target) / norm(now), rel=1e-5)
        assert values["ema/cosine"] == pytest.approx(context @ now / norm(context) / norm(now), rel=1e-5)
