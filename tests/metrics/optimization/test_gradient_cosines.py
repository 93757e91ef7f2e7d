"""Cosines of losses' gradients against gradients computed apart, exact and by sketch."""

import copy
import math

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import ConfigError, GradientCosines, MetricCollection
from tests.helpers.ranks import run_ranks

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


torch.manual_seed(1)
MODEL = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3))


def network():
    """Return a copy of the same model, also where ranks are threads that would share a seed."""
    return copy.deepcopy(MODEL)


def losses(outputs):
    return {
        "up": outputs[:, 0].square().mean(),
        "down": -outputs[:, 0].square().mean() + 0.3 * outputs[:, 1].mean(),
        "aside": outputs[:, 2].tanh().mean(),
    }


def direct(model):
    """Return the cosine of every pair, from one backward pass each, in float64."""
    found = {}
    for name in ("up", "down", "aside"):
        model.zero_grad()
        losses(model(X))[name].backward()
        found[name] = torch.cat([p.grad.double().reshape(-1) for p in model.parameters()])
    pairs = (("up", "down"), ("up", "aside"), ("down", "aside"))
    return {
        f"gradients/{a}_to_{b}_cosine": float(torch.cosine_similarity(found[a], found[b], dim=0))
        for a, b in pairs
    }


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_cosines_are_those_of_the_whole_batch(world_size):
    def body(context):
        model = network()
        metric = GradientCosines(model, ["up", "down", "aside"])
        own = X[context.rank :: context.world_size]
        for batch in own.split(5):
            found = losses(model(batch))
            metric.update(found, len(batch))
            sum(found.values()).backward()  # the graph is still there
        assert metric.is_exact
        return {tag: v.value for tag, v in MetricCollection({"c": metric}, context).compute().items()}

    expected = direct(network())
    assert expected["gradients/up_to_down_cosine"] < -0.5
    for got in run_ranks(world_size, body):
        assert got == pytest.approx(expected, abs=1e-5)


def test_a_sketch_is_near_and_the_same_at_every_number_of_ranks():
    def body(context):
        model = network()
        metric = GradientCosines(model, ["up", "down", "aside"], size=256)
        assert not metric.is_exact
        own = X[context.rank :: context.world_size]
        metric.update(losses(model(own)), len(own))
        return {tag: v.value for tag, v in MetricCollection({"c": metric}, context).compute().items()}

    (one,) = run_ranks(1, body)
    assert one == pytest.approx(direct(network()), abs=4 / math.sqrt(256))
    assert one != pytest.approx(direct(network()), abs=1e-6)
    for got in run_ranks(2, body):
        assert got == pytest.approx(one, abs=1e-5)


def test_the_training_goes_on_as_without_it():
    gradients = []
    for watched in (False, True):
        model = network()
        metric = GradientCosines(model, ["up", "down", "aside"])
        found = losses(model(X))
        if watched:
            metric.update(found, len(X))
        sum(found.values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_losses_of_any_size(scale):
    model, plain = network().double(), {}
    for factor in (1.0, scale):
        metric = GradientCosines(model, ["up", "down", "aside"])
        metric.update({name: loss * factor for name, loss in losses(model(X.double())).items()}, len(X))
        values = {tag: value.value for tag, value in metric.compute().items()}
        plain = plain or values
        assert values == pytest.approx(plain, rel=1e-9)


def test_a_loss_without_a_gradient_has_no_cosine():
    shared, head = nn.Linear(6, 2), nn.Linear(2, 1)
    metric = GradientCosines(shared, ["a", "b", "c"])
    y = shared(X)
    alone = head(X[:, :2]).mean()  # does not use what is shared
    metric.update({"a": y.mean(), "b": y.square().mean(), "c": alone})
    assert set(metric.compute()) == {"gradients/a_to_b_cosine"}
    metric.update({"a": y.mean() * math.nan, "b": y.square().mean(), "c": alone})
    assert math.isnan(metric.compute()["gradients/a_to_b_cosine"].value)


def test_what_does_not_fit_is_said():
    model = network()
    with pytest.raises(ConfigError, match="two losses or more"):
        GradientCosines(model, ["a", "a"])
    with pytest.raises(ConfigError, match="got none"):
        GradientCosines(nn.Linear(2, 2).requires_grad_(False), ["a", "b"])
    metric = GradientCosines(model, ["a", "b"])
    with pytest.raises(ConfigError, match=r"losses of \['a', 'b'\], got \['a'\]"):
        metric.update({"a": model(X).mean()})
    with pytest.raises(ConfigError, match="'b' has no graph"):
        metric.update({"a": model(X).mean(), "b": model(X).mean().detach()})
