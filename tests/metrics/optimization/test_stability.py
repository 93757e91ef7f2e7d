import math

import numpy as np
import pytest
import torch

from hjepa_dist_metrics import ConfigError, MetricCollection, TrainingStability
from hjepa_dist_metrics.metrics.optimization.stability import SPIKE_BOUND, slope_at_end, spike_scores
from tests.helpers.ranks import run_ranks


def fed(losses, window=50, count=1):
    metric = TrainingStability(window)
    for loss in losses:
        metric.update(loss, count)
    return metric


def read(metric):
    return {tag.removeprefix("stability/"): float(value) for tag, value in metric.compute().items()}


def test_a_parabola_has_the_slope_of_its_newest_point():
    x = np.arange(80.0)
    losses = 5.0 - 0.1 * x + 0.001 * x**2
    values = read(fed(losses, window=30))
    assert values["loss_trend_slope"] == pytest.approx(-0.1 + 0.002 * 79, rel=1e-9)
    assert values["loss_smoothness"] == pytest.approx(losses[-30:].std(), rel=1e-12)
    assert values["loss_max_spike"] == pytest.approx(losses[-30:].max() / losses[-30:].min(), rel=1e-6)
    assert slope_at_end(np.array([1.0])) == 0.0
    assert slope_at_end(np.array([1.0, 3.0])) == pytest.approx(2.0)


def test_the_spike_score_is_that_of_the_losses_before():
    losses = np.random.default_rng(0).normal(1.0, 0.01, 20)
    losses[-1] = 3.0
    before = losses[:-1]
    mad = np.median(np.abs(before - np.median(before)))
    values = read(fed(losses))
    assert values["spike_score"] == pytest.approx((3.0 - np.median(before)) / (1.4826 * mad), rel=1e-9)
    assert values["spike_count"] == 1


def test_spikes_and_nan_do_not_hide_the_next_spike():
    losses = np.random.default_rng(1).normal(1.0, 0.01, 40)
    losses[[15, 20, 25, 39]] = [9.0, math.nan, math.inf, 9.0]
    scores = spike_scores(losses)
    assert scores[15] > SPIKE_BOUND
    assert scores[39] == pytest.approx(scores[15], rel=0.5)
    values = read(fed(losses))
    assert (values["spike_count"], values["nonfinite_steps"]) == (2, 2)
    assert values["first_nonfinite_step"] == 20
    assert values["worst_spike_score"] == pytest.approx(np.nanmax(scores))
    calm = losses[np.isfinite(losses)]
    assert values["loss_smoothness"] == pytest.approx(calm.std(), rel=1e-12)


def test_a_falling_or_constant_loss_has_no_spikes():
    for losses in (np.linspace(5, 0.01, 50), np.full(50, 0.25), np.zeros(50), -np.linspace(0, 5, 50)):
        assert read(fed(losses))["spike_count"] == 0


def test_only_nan_and_a_single_step():
    values = read(fed([math.nan] * 3))
    assert values["nonfinite_steps"] == 3
    assert math.isnan(values["spike_score"])
    assert "loss_smoothness" not in values
    assert read(fed([0.5]))["loss_smoothness"] == 0.0
    assert TrainingStability().compute() == {}


def test_the_validation_ratio():
    metric = fed([2.0, 4.0])
    assert "val_train_loss_ratio" not in read(metric)
    metric.validate(6.0)
    assert read(metric)["val_train_loss_ratio"] == pytest.approx(2.0)


@pytest.mark.parametrize("scale", [1e-200, 1e-20, 1e200])
def test_losses_of_any_size(scale):
    losses = np.random.default_rng(5).uniform(1.0, 2.0, 20)
    metric, plain = fed(scale * losses), fed(losses)
    for one, value in ((metric, scale), (plain, 1.0)):
        one.validate(1.8 * value)
    got, expected = read(metric), read(plain)
    degree = dict.fromkeys(("loss_smoothness", "loss_trend_slope", "worst_spike_height"), scale)
    for name, value in expected.items():
        assert got[name] == pytest.approx(degree.get(name, 1.0) * value, rel=1e-9), name


def test_a_loss_of_zero_has_no_ratio():
    metric = fed([0.0] * 10)
    metric.validate(1.0)
    assert not {"val_train_loss_ratio", "loss_max_spike"} & set(read(metric))


def test_a_spike_anywhere_within_the_reach_is_seen_and_the_shape_stays_that_of_the_window():
    losses = np.random.default_rng(2).normal(1.0, 0.01, 150)
    losses[52] = 5.0
    metric = TrainingStability(window=50, reach=150)
    for loss in losses:
        metric.update(loss)
    before = losses[2:52]  # the fifty before
    mad = np.median(np.abs(before - np.median(before)))
    values = read(metric)
    assert values["worst_spike_score"] == pytest.approx((5.0 - np.median(before)) / (1.4826 * mad), rel=1e-9)
    assert values["loss_max_spike"] == pytest.approx(5.0 / losses.min(), rel=1e-6)
    assert values["loss_smoothness"] == pytest.approx(losses[-50:].std(), rel=1e-12)
    with pytest.raises(ConfigError, match="the window of 50 steps, got reach=20"):
        TrainingStability(reach=20)


@pytest.mark.parametrize(("before", "after"), [(20, 50), (50, 20), (20, 20)])
def test_a_resumed_run_may_log_at_another_frequency(before, after):
    losses = np.random.default_rng(3).normal(1.0, 0.01, 45)
    first, second = TrainingStability(10, before), TrainingStability(10, after)
    for loss in losses[:33]:
        first.update(loss)
    second.load_state_dict(first.state_dict())
    for loss in losses[33:]:
        second.update(loss)
    known = losses[max(45 - after, 33 - before, 0) :]
    values = read(second)
    assert values["worst_spike_score"] == pytest.approx(np.nanmax(spike_scores(known, 10)), rel=1e-12)
    assert values["loss_max_spike"] == pytest.approx(known.max() / known.min(), rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_loss_of_a_step_is_the_mean_over_all_samples(world_size):
    rng = np.random.default_rng(world_size)
    losses, counts = rng.random((70, world_size)), rng.integers(0, 5, (70, world_size))
    counts[:, 0] += 1
    losses[counts == 0] = math.nan  # a mean over nothing

    def body(context):
        metric = TrainingStability(window=16)
        for step in range(70):
            metric.update(losses[step, context.rank], int(counts[step, context.rank]))
        values = MetricCollection({"m": metric}, context).compute()
        return {tag: float(value) for tag, value in values.items()}

    job = np.where(counts > 0, losses * counts, 0.0).sum(1) / counts.sum(1)
    expected = {tag: float(value) for tag, value in fed(job, window=16).compute().items()}
    for values in run_ranks(world_size, body):
        assert values == pytest.approx(expected, rel=1e-9)


def test_tensors_and_a_window_of_one_step():
    metric = TrainingStability(window=2)
    metric.update(torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True), torch.tensor(4))
    assert read(metric)["spike_score"] == 0.0
    with pytest.raises(ConfigError, match="at least two steps, got window=1"):
        TrainingStability(window=1)


def test_a_rank_that_ended_early_says_nothing_of_later_steps():
    def body(context):
        metric = TrainingStability(window=4)
        for step in range([10, 6][context.rank]):
            metric.update(float(step), step=step)
        values = MetricCollection({"m": metric}, context).compute()
        return {tag: float(value) for tag, value in values.items()}

    expected = {tag: float(v) for tag, v in fed(np.arange(10.0), window=4).compute().items()}
    assert run_ranks(2, body) == [expected] * 2


def test_a_loaded_metric_goes_on_numbering():
    metric, other = fed([5.0, 4.0, 3.0], window=2), TrainingStability(window=2)
    other.load_state_dict(metric.state_dict())
    other.update(1.0)
    assert read(other)["loss_smoothness"] == pytest.approx(1.0)
