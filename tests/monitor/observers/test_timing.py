"""Rates and times of a loop whose clock the test turns: accumulation, tokens, pauses."""

import pytest
import torch
from torch import nn

from hjepa_dist_metrics import TrainingMonitor
from tests.monitor.test_monitor import config, series

DATA, FORWARD, BACKWARD, OPTIMIZER, EVALUATION = 0.1, 0.2, 0.3, 0.05, 7.0


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def loader(self, batches):
        for _ in range(batches):
            self.now += DATA
            yield torch.ones(4, 3)


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr("hjepa_dist_metrics.monitor.observers.timing._clock", found)
    return found


def train(tmp_path, clock, steps, micro, evaluate_after=(), tokens=0, with_loader=True):
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=2)) as monitor:
        batches = clock.loader(steps * micro)
        batches = monitor.batches(batches) if with_loader else batches
        for step in range(steps):
            for _ in range(micro):
                x = next(batches)
                with monitor.forward():
                    loss = model(x).sum()
                    clock.now += FORWARD
                with monitor.backward():
                    loss.backward()
                    clock.now += BACKWARD
            with monitor.optimizer_step():
                optimizer.step()
                clock.now += OPTIMIZER
            monitor.step(samples=4 * micro, tokens=tokens)
            if step in evaluate_after:
                with monitor.pause():
                    clock.now += EVALUATION


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("evaluate_after", [(), (0, 2, 3)])
def test_rates_and_times(tmp_path, clock, micro, evaluate_after):
    train(tmp_path, clock, 6, micro, evaluate_after, tokens=50)
    seconds = micro * (DATA + FORWARD + BACKWARD) + OPTIMIZER
    expected = {
        "performance/samples_per_second": 4 * micro / seconds,
        "performance/samples_per_second_total": 4 * micro / seconds,
        "performance/tokens_per_second": 50 / seconds,
        "performance/step_time_ms": 1e3 * seconds,
        "performance/data_time_ms": 1e3 * micro * DATA,
        "performance/forward_time_ms": 1e3 * micro * FORWARD,
        "performance/backward_time_ms": 1e3 * micro * BACKWARD,
        "performance/optimizer_time_ms": 1e3 * OPTIMIZER,
        "performance/forward_backward_ratio": FORWARD / BACKWARD,
    }
    for tag, value in expected.items():
        for step, found in series(tmp_path, tag).items():
            assert found == pytest.approx(value, rel=1e-9), (tag, step)
        assert set(series(tmp_path, tag)) == {0, 2, 4, 5}
    totals = series(tmp_path, "performance/total_samples")
    assert totals == {step: 4 * micro * (step + 1) for step in (0, 2, 4, 5)}


def test_without_the_monitors_loader_no_wait_is_claimed(tmp_path, clock):
    train(tmp_path, clock, 2, 1, with_loader=False)
    assert not series(tmp_path, "performance/data_time_ms")
    assert not series(tmp_path, "performance/tokens_per_second")


def test_a_wait_for_data_is_timed_without_the_pauses_in_it(tmp_path, clock):
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=1)) as monitor:
        for _ in range(2):
            with monitor.data_loading():
                clock.now += DATA
                with monitor.pause():
                    clock.now += EVALUATION
            clock.now += FORWARD
            monitor.step(samples=4)
    assert series(tmp_path, "performance/data_time_ms") == pytest.approx({0: 1e3 * DATA, 1: 1e3 * DATA})
    rates = series(tmp_path, "performance/samples_per_second")
    assert rates == pytest.approx({0: 4 / (DATA + FORWARD), 1: 4 / (DATA + FORWARD)})
