"""Off cadence nothing waits for the device, and reading never does: watched without a GPU."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import (
    GradientClipping,
    GradientCosines,
    GradientFlow,
    GradientNoise,
    TrainingMonitor,
    Updates,
)
from tests.helpers.contract import EXAMPLES
from tests.helpers.waiting import DEVICE, no_waiting, on_device
from tests.monitor.test_monitor import config

IMAGES, TOKENS, DIM = 4, 9, 8


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.context_encoder = nn.Sequential(nn.Linear(DIM, DIM), nn.Linear(DIM, DIM))
        self.target_encoder = copy.deepcopy(self.context_encoder).requires_grad_(False)

    def forward(self, x):
        return self.context_encoder(x)


def optimizers_of(model):
    first, second = model.context_encoder
    groups = [{"params": [first.weight], "name": "decay"}, {"params": [first.bias], "lr": 0.1}]
    return [torch.optim.SGD(groups, lr=0.2), torch.optim.AdamW(second.parameters(), foreach=False)]


def observations(x):
    tokens = x.new_zeros(IMAGES, TOKENS, DIM)
    return {
        "features": [tokens, tokens[:, :4]],
        "context_features": tokens,
        "predictions": [tokens],
        "targets": [tokens],
        "mask": tokens[:, :, 0] > 0,
        "momentum": 0.9,
        "scalars": {"temperature": 0.5},
        "images": x.new_zeros(IMAGES, 3, 12, 12),
        "ids": torch.arange(IMAGES),
        "labels": torch.zeros(IMAGES, dtype=torch.int64, device=x.device),
    }


def train(monitor, model, optimizers, steps, micro=2):
    x = torch.zeros(IMAGES, TOKENS, DIM, device=DEVICE)
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with no_waiting():
            for _ in range(micro):
                with monitor.forward():
                    loss = model(x).square().mean() / micro
                with monitor.backward():
                    loss.backward()
            monitor.observe_gradients()
            monitor.clip_grad_norm_(1.0)
            with monitor.optimizer_step():
                for optimizer in optimizers:
                    optimizer.step()
            monitor.step(samples=IMAGES, losses={"loss": loss, "loss_h0": loss}, **observations(x))


def test_a_step_off_cadence(tmp_path):
    model = Model().to(DEVICE)
    optimizers = optimizers_of(model)
    never = dict.fromkeys(("scalars", "representations", "histograms", "figures", "system"), 0)
    settings = config(tmp_path, cadence=never, gradients={"noise": True})
    with TrainingMonitor(model, optimizers, settings) as monitor:
        train(monitor, model, optimizers, 3)
        seen = set(monitor.run.collection)
    assert {"clipping", "loss", "masking", "stability"} <= seen
    assert not {"gradient_flow", "updates", "collapse", "ema"} & seen


def test_observing_on_cadence_before_the_sync(tmp_path, monkeypatch):
    """What is read of gradients, updates and features where a step logs is local too; only the sync reads."""
    model = Model().to(DEVICE)
    optimizers = optimizers_of(model)
    cadence = dict.fromkeys(("scalars", "representations", "histograms"), 1)
    settings = config(tmp_path, gradients={"noise": True}, cadence=cadence, figures={"enabled": False})
    monitor = TrainingMonitor(model, optimizers, settings)
    no_sync = types.SimpleNamespace(result=lambda: None)
    monkeypatch.setattr(monitor.run.collection, "compute_uneven", lambda *args, **kwargs: no_sync)
    with monitor:
        train(monitor, model, optimizers, 3)
        seen = set(monitor.run.collection)
    assert {
        "gradient_flow",
        "gradient_histograms",
        "updates",
        "gradient_noise",
        "collapse",
        "probes_target",
    } <= seen


def test_reading_gradients():
    model = Model().to(DEVICE)
    optimizers = optimizers_of(model)
    model(torch.zeros(2, DIM, device=DEVICE)).sum().backward()
    flow, clipping, updates = GradientFlow(model), GradientClipping(model), Updates(model, optimizers)
    noise = GradientNoise(model)
    with no_waiting():
        for _ in range(2):
            flow.update()
            noise.small(2, 2)
            noise.large(4)
            clipping.clip_(1.0)
            updates.before()
            updates.update()


@pytest.mark.parametrize("size", [8, 1 << 16])
def test_comparing_gradients_of_losses(size):
    model = Model().to(DEVICE)
    metric = GradientCosines(model.context_encoder, ["a", "b"], size=size)
    y = model(torch.zeros(2, DIM, device=DEVICE))
    with no_waiting():
        for _ in range(2):
            metric.update({"a": y.mean(), "b": y.square().mean()}, 2)


# The losses of its example are of a model on the host.
ELSEWHERE = {GradientCosines}


@pytest.mark.parametrize(
    "kind", [kind for kind in EXAMPLES if kind not in ELSEWHERE], ids=lambda kind: kind.__name__
)
def test_every_metrics_update(kind):
    example = EXAMPLES[kind]
    metric = example.make()
    update = metric.update

    def there(*args, **kwargs):
        args, kwargs = on_device((args, kwargs))
        with no_waiting():
            update(*args, **kwargs)

    metric.update = there
    for piece in (slice(0, 4), slice(4, 9)):
        example.feed(metric, piece)
