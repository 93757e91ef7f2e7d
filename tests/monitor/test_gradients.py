"""Gradient flow in a monitored loop: read when it is due, before clipping, whether the loop clips or not."""

import math

import pytest

from hjepa_dist_metrics import ConfigError, GradientFlow, TrainingMonitor
from tests.monitor.test_monitor import batches, config, problem, series, train


def test_gradients_are_read_before_clipping(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=3)) as monitor:
        seen = train(monitor, model, optimizer, batches(7), max_norm=1e-3)
    expected = {step: norm for step, norm in enumerate(seen["norm"]) if step % 3 == 0}
    assert series(tmp_path, "gradients/global_norm") == pytest.approx(expected, rel=1e-6)
    both = series(tmp_path, "gradients/weight_total_norm"), series(tmp_path, "gradients/bias_total_norm")
    for step, norm in expected.items():
        assert math.hypot(both[0][step], both[1][step]) == pytest.approx(norm, rel=1e-6)


def test_gradients_are_read_in_a_loop_that_does_not_clip(tmp_path):
    model, optimizer = problem()
    norms = []
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        for x in batches(3):
            optimizer.zero_grad()
            with monitor.backward():
                model(x).square().mean().backward()
            norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters())))
            optimizer.step()
            monitor.step(samples=len(x))
    assert series(tmp_path, "gradients/global_norm") == pytest.approx(dict(enumerate(norms)), rel=1e-6)


def test_accumulated_gradients_are_those_of_the_last_micro_step(tmp_path):
    model, optimizer = problem()
    norms = []
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        for x in batches(3):
            optimizer.zero_grad()
            for part in x.chunk(2):
                with monitor.backward():
                    (model(part).square().mean() / 2).backward()
            norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters())))
            optimizer.step()
            monitor.step(samples=len(x))
    assert series(tmp_path, "gradients/global_norm") == pytest.approx(dict(enumerate(norms)), rel=1e-6)


def test_off_cadence_no_gradient_is_read(tmp_path, monkeypatch):
    reads = []
    update = GradientFlow.update
    monkeypatch.setattr(GradientFlow, "update", lambda flow: (reads.append(flow.report), update(flow)))
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=5)) as monitor:
        train(monitor, model, optimizer, batches(11))
    # steps 0, 5 and 10 log numbers, step 0 histograms too; at step 0 the loop is not known to clip yet
    assert reads == ["numbers", "histograms", "numbers", "histograms", "numbers", "numbers"]


def test_gradient_flow_can_be_switched_off_and_settings_are_checked(tmp_path):
    model, optimizer = problem()
    off = config(tmp_path, gradients={"enabled": False})
    with TrainingMonitor(model, optimizer, off) as monitor:
        train(monitor, model, optimizer, batches(2))
        assert not any(tag.startswith("gradients/") for tag in monitor.latest)
    with pytest.raises(ConfigError, match=r"logging.gradients.depth is 0"):
        TrainingMonitor(model, optimizer, config(tmp_path, gradients={"depth": 0}))
