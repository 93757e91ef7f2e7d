"""Gradient flow in a monitored loop: read when it is due, before clipping, whether the loop clips or not."""

import math

import pytest
import torch

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

    def look(flow, *also):
        reads.append([flow.report, *(other.report for other in also)])
        update(flow, *also)

    monkeypatch.setattr(GradientFlow, "update", look)
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=5)) as monitor:
        train(monitor, model, optimizer, batches(11))
    # steps 0, 5 and 10 log numbers, step 0 histograms too; at step 0 the loop is not known to clip yet
    assert reads == [["numbers", "histograms"], ["numbers", "histograms"], ["numbers"], ["numbers"]]


def test_gradient_flow_can_be_switched_off_and_settings_are_checked(tmp_path):
    model, optimizer = problem()
    off = config(tmp_path, gradients={"enabled": False})
    with TrainingMonitor(model, optimizer, off) as monitor:
        train(monitor, model, optimizer, batches(2))
        monitor.flush()
        assert "gradient/global_norm_before_clip" in monitor.latest
        assert not any(tag.startswith("gradients/") for tag in monitor.latest)
    with pytest.raises(ConfigError, match=r"logging.gradients.depth is 0"):
        TrainingMonitor(model, optimizer, config(tmp_path, gradients={"depth": 0}))


def test_modules_by_the_users_patterns(tmp_path):
    model, optimizer = problem()
    patterns = {"matrices": "weight$", "vectors": "bias"}
    with TrainingMonitor(model, optimizer, config(tmp_path, gradients={"patterns": patterns})) as monitor:
        seen = train(monitor, model, optimizer, batches(2))
    both = [series(tmp_path, f"gradients/{name}_total_norm")[1] for name in patterns]
    assert math.hypot(*both) == pytest.approx(seen["norm"][1], rel=1e-6)
    for bad, message in (
        ({"a": "("}, r"logging.gradients.patterns.a is '\('; allowed: a regular expression"),
        ({"a": 3}, "expected a mapping of str to str or null"),
        ("weight", "expected a mapping of str to str or null"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrainingMonitor(model, optimizer, config(tmp_path, gradients={"patterns": bad}))


def test_updates_are_compared_on_the_steps_that_log(tmp_path):
    model, optimizer = problem()
    taken = []
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=2)) as monitor:
        for x in batches(5):
            optimizer.zero_grad()
            with monitor.backward():
                model(x).square().mean().backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            moved = [(p.detach() - q).double() for p, q in zip(model.parameters(), before, strict=True)]
            taken.append(math.sqrt(sum(float(m.square().sum()) for m in moved)))
            monitor.step(samples=len(x))
    assert series(tmp_path, "update/group0_norm") == pytest.approx({i: taken[i] for i in (0, 2, 4)}, rel=1e-5)
    assert set(series(tmp_path, "learning_rate/avg_param_update")) == {0, 2, 4}
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_updates_can_be_switched_off(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, gradients={"updates": False})) as monitor:
        train(monitor, model, optimizer, batches(2))
        monitor.flush()
        assert "gradients/global_norm" in monitor.latest
        assert "update/group0_norm" not in monitor.latest


def test_totals_and_memory_are_written(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(
        model, optimizer, config(tmp_path, log_frequency=2, cadence={"system": 4})
    ) as monitor:
        train(monitor, model, optimizer, batches(6))
    assert series(tmp_path, "performance/total_samples") == {0: 8, 2: 24, 4: 40, 5: 48}
    assert set(series(tmp_path, "system/ram_gb")) == {0, 2, 4, 5}  # with the scalars, to see it grow


def test_utilization_is_written_after_counting(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path)) as monitor:
        x = batches(1)[0]
        # 2 * 8 * 6 * 6 forward, the same for the weight's gradient
        counted = monitor.count_flops(lambda: model(x).square().mean().backward(), len(x), peak_flops=1e9)
        assert counted == 2 * 2 * 6 * 6
        train(monitor, model, optimizer, batches(3))
    rates = series(tmp_path, "performance/samples_per_second")
    for step, used in series(tmp_path, "performance/mfu").items():
        assert used == pytest.approx(rates[step] * counted / 1e9)
    assert series(tmp_path, "performance/mfu")


@pytest.mark.parametrize("known", [None, 1e-3])
def test_a_clipping_of_the_loops_own_is_measured_and_left_as_it_is(tmp_path, known):
    model, optimizer = problem()
    norms = []
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=2)) as monitor:
        for x in batches(5):
            optimizer.zero_grad()
            with monitor.backward():
                model(x).square().mean().backward()
            with monitor.clipping(known):
                norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)))
            optimizer.step()
            monitor.step(samples=len(x))
    expected = {step: norms[step] for step in (0, 2, 4)}
    assert series(tmp_path, "gradients/global_norm") == pytest.approx(expected, rel=1e-5)
    assert series(tmp_path, "gradient/global_norm_before_clip") == pytest.approx(expected, rel=1e-5)
    after = series(tmp_path, "gradient/global_norm_after_clip")
    assert after == pytest.approx(dict.fromkeys(expected, 1e-3), rel=1e-2)
    assert series(tmp_path, "gradient/clipping_percentage")[4] == 100.0


def test_gradients_that_were_clipped_before_they_are_observed_are_a_finding(tmp_path):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(tmp_path, log_frequency=2)) as monitor:
        for x in batches(20):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            monitor.observe_gradients()
            optimizer.step()
            monitor.step(samples=len(x))
        monitor.flush()
        findings = {finding.name: finding for finding in monitor.health().findings}
    assert "observe_gradients() before the clipping" in findings["clipped_unseen"].advice
