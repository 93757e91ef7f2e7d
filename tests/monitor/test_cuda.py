"""On a GPU the monitored loop never waits for the device off cadence; numbers are those of the host."""

import math

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import GradientClipping, GradientFlow, TrainingMonitor
from hjepa_dist_metrics.metrics.kernels.elements import read_elements
from tests.monitor.test_monitor import config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def strict():
    """Make every wait for the device an error, and leave the setting as it was."""
    before = torch.cuda.get_sync_debug_mode()

    def switch(on: bool) -> None:
        torch.cuda.set_sync_debug_mode("error" if on else before)

    yield switch
    torch.cuda.set_sync_debug_mode(before)


def test_a_step_off_cadence_does_not_wait_for_the_device(tmp_path, strict):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(16, 64, device="cuda")
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=1000, sync="inline")) as monitor:
        for step in range(8):
            strict(step > 0)  # step 0 logs
            with monitor.forward():
                loss = model(x).square().mean()
            with monitor.backward():
                loss.backward()
            monitor.clip_grad_norm_(1.0)
            with monitor.optimizer_step():
                optimizer.step()
            optimizer.zero_grad()
            monitor.step(samples=16, losses=loss, features=x)
            strict(False)


def test_reading_gradients_does_not_wait_for_the_device(strict):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)).cuda()
    model(torch.randn(4, 64, device="cuda")).square().sum().backward()
    flow, clipping = GradientFlow(model), GradientClipping(model)
    flow.update()
    clipping.clip_(1.0)
    strict(True)
    flow.update()
    clipping.clip_(1.0)
    strict(False)
    squares = sum(float(p.grad.double().square().sum()) for p in model.parameters())
    assert math.isclose(float(flow.compute()["gradients/global_norm"]), math.sqrt(squares), rel_tol=1e-5)


def test_the_devices_kernels_agree_with_the_hosts():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(300_001, generator=generator) * 1e-3, torch.zeros(5), torch.randn(7, 9)]
    there = [t.cuda() for t in tensors]
    host = read_elements(tensors, [0, 1, 0], 2, torch.device("cpu"), counting=True)
    device = read_elements(there, [0, 1, 0], 2, torch.device("cuda", 0), counting=True)
    torch.testing.assert_close(device.each.sums.cpu(), host.each.sums, rtol=1e-5, atol=1e-9)
    assert device.each.largest.tolist() == host.each.largest.tolist()
    assert torch.equal(device.counts.cpu(), host.counts)
