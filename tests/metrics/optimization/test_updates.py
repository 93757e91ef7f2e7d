"""Updates, moments and weights against NumPy, on one process and in every layout."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, MetricCollection, Updates
from tests.helpers.layouts import CASES, backward, held_parameters, reference

pytestmark = pytest.mark.accuracy

RATE = 0.05


def adam(parameters):
    # a large eps keeps elements with a tiny gradient from amplifying the rounding of other layouts
    return torch.optim.AdamW(parameters, lr=RATE, eps=1e-2)


def numbers(values):
    return {tag: float(value) for tag, value in values.items()}


def flat(tensors):
    return np.concatenate([t.detach().double().numpy().ravel() for t in tensors])


def expected_of(net):
    """Make AdamW's first step by hand: m = 0.1 g and v = 0.001 g^2, both corrected to g and g^2."""
    trained = [p for p in net.parameters() if p.grad is not None]
    weights, gradients = flat(trained), flat([p.grad for p in trained])
    after = weights * (1 - RATE * 1e-2) - RATE * gradients / (np.abs(gradients) + 1e-2)
    update = np.linalg.norm(after - weights)
    return {
        "update/group0_norm": update,
        "update/group0_ratio": update / np.linalg.norm(weights),
        "update/group0_exp_avg_norm": 0.1 * np.linalg.norm(gradients),
        "update/group0_exp_avg_sq_mean": 0.001 * np.mean(gradients**2),
        "weights/group0_norm": np.linalg.norm(weights),
        "weights/group0_mean": weights.mean(),
        "weights/group0_std": weights.std(ddof=1),
        "learning_rate/avg_param_update": RATE
        * sum(np.linalg.norm(flat([p.grad])) for p in trained)
        / math.sqrt(len(weights)),
    }


def updates_in(layout):
    model = backward(layout)
    optimizer = adam([p for _, p in held_parameters(model) if p.requires_grad])
    updates = Updates(model, optimizer)
    updates.before()
    optimizer.step()
    updates.update()
    return numbers(MetricCollection({"u": updates}).compute())


@pytest.mark.parametrize(("layout", "ranks"), CASES)
def test_every_layout_gives_the_numbers_of_one_process(gloo, layout, ranks):
    expected = expected_of(reference())
    for values in gloo(ranks).run(updates_in, layout):
        assert values == pytest.approx(expected, rel=2e-4, abs=1e-9)


def problem():
    generator = torch.Generator().manual_seed(0)
    a, b = (
        nn.Parameter(torch.randn(5, generator=generator)),
        nn.Parameter(torch.randn(3, generator=generator)),
    )
    model = nn.Module()
    model.a, model.b, model.frozen = a, b, nn.Parameter(torch.ones(2), requires_grad=False)
    a.grad, b.grad = torch.ones(5), torch.full((3,), 2.0)
    return model


def test_groups_and_optimizers_are_told_apart():
    model = problem()
    one = torch.optim.SGD([{"params": [model.a], "name": "decay"}], lr=0.1)
    two = torch.optim.SGD([model.b], lr=0.01)
    before = model.a.detach().double().norm(), model.b.detach().double().norm()
    updates = Updates(model, [one, two])
    with updates.around():
        one.step()
        two.step()
    values = numbers(updates.compute())
    assert values["update/decay_norm"] == pytest.approx(0.1 * math.sqrt(5), rel=1e-6)
    assert values["update/group1_norm"] == pytest.approx(0.02 * math.sqrt(3), rel=1e-5)
    assert values["update/decay_ratio"] == pytest.approx(0.1 * math.sqrt(5) / float(before[0]), rel=1e-6)
    assert values["weights/group1_norm"] == pytest.approx(float(before[1]), rel=1e-6)
    assert not any("exp_avg" in tag or "other" in tag for tag in values)
    # (0.1 sqrt(5) + 0.01 * 2 sqrt(3)) / sqrt(8)
    expected = (0.1 * math.sqrt(5) + 0.02 * math.sqrt(3)) / math.sqrt(8)
    assert values["learning_rate/avg_param_update"] == pytest.approx(expected, rel=1e-6)


def test_a_large_model_is_sampled_within_the_bound():
    model = nn.Module()
    model.big = nn.Parameter(torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)))
    model.small = nn.Parameter(torch.ones(10))
    model.big.grad, model.small.grad = torch.full_like(model.big, 0.5), torch.ones(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    updates = Updates(model, optimizer, max_elements=300_000)
    updates.before()
    copied = sum(block.numel() for copy in updates._before for block in copy.values)
    assert copied <= 300_000
    optimizer.step()
    updates.update()
    values = numbers(updates.compute())
    assert values["update/group0_norm"] == pytest.approx(math.sqrt(1e6 * 0.05**2 + 10 * 0.1**2), rel=1e-5)
    assert values["weights/group0_norm"] == pytest.approx(1000.0, rel=5e-3)  # of 250,000 normal numbers


def test_nothing_before_a_step_and_an_error_without_a_before():
    model = problem()
    updates = Updates(model, torch.optim.SGD([model.a, model.b], lr=0.1))
    assert updates.compute() == {}
    with pytest.raises(ConfigError, match="call before"):
        updates.update()
    with pytest.raises(ConfigError, match="max_elements=0"):
        Updates(model, torch.optim.SGD([model.a], lr=0.1), max_elements=0)


def test_zero_weights_have_a_ratio_of_zero():
    model = problem()
    with torch.no_grad():
        model.a.zero_()
    optimizer = torch.optim.SGD([model.a], lr=0.1)
    updates = Updates(model, optimizer)
    with updates.around():
        optimizer.step()
    assert numbers(updates.compute())["update/group0_ratio"] == 0.0


@pytest.mark.parametrize("spread", [1e-4, 0.0])
def test_a_large_mean_costs_no_digits_of_the_weights_std(spread):
    net = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        net.weight.copy_(1.0 + spread * torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))
    weights = net.weight.detach().double().numpy().ravel()
    updates = Updates(net, torch.optim.SGD(net.parameters(), lr=0.0))
    net.weight.grad = torch.zeros_like(net.weight)
    with updates.around():
        pass
    values = numbers(updates.compute())
    assert values["weights/group0_std"] == pytest.approx(weights.std(ddof=1), rel=1e-6)
    assert values["weights/group0_mean"] == pytest.approx(weights.mean(), rel=1e-9)
