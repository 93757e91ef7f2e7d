"""Observers of a user's own: their arguments, cadence, metrics, rules and checkpoints."""

from __future__ import annotations

import json

import pytest
import torch

from hjepa_dist_metrics import (
    ConfigError,
    DistributedMetric,
    Evidence,
    Observer,
    TrainingMonitor,
    WeightedMean,
)
from hjepa_dist_metrics.states import Max, Replicated
from tests.monitor.test_monitor import config, problem


class Entropy(Observer):
    """Average the entropy of logits; warn where it is near nothing."""

    takes = ("logits",)
    also = ("temperature",)

    def __init__(self):
        self.steps = []

    def observe(self, logits, temperature=1.0):
        self.steps.append(self.scope.step)
        entropy = torch.distributions.Categorical(logits=logits / temperature).entropy()
        mean = self.scope.metric("entropy", WeightedMean, lambda: WeightedMean("text/entropy"))
        mean.update(entropy.mean(), entropy.numel())

    def rules(self):
        def sure(numbers):
            low = numbers.get("text/entropy", 1.0) < 0.1
            return [Evidence("text/entropy", numbers["text/entropy"], "below 0.1")] if low else []

        return {"overconfident": sure}

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])


def monitored(tmp_path, **settings):
    model, optimizer = problem()
    patience = {"alerts": {"patience": 1}}
    return TrainingMonitor(model, optimizer, config(tmp_path, sync="inline", **patience, **settings))


def test_an_observer_sees_its_arguments_on_the_steps_of_its_family(tmp_path):
    observer = Entropy()
    with monitored(tmp_path, log_frequency=2) as monitor:
        monitor.add_observer(observer)
        for _ in range(5):
            monitor.step(samples=4, logits=torch.zeros(4, 8))
        monitor.step(samples=4)
        assert monitor.latest["text/entropy"] == pytest.approx(torch.tensor(8.0).log().item())
        assert [alert.rule for alert in monitor.alerts] == []
        monitor.step(samples=4, logits=torch.tensor([[50.0, 0.0]]), temperature=0.5)
        assert [alert.rule for alert in monitor.alerts] == ["overconfident"]
    assert observer.steps == [0, 2, 4, 6]


def test_an_observer_goes_on_from_a_checkpoint(tmp_path):
    first, second = Entropy(), Entropy()
    with monitored(tmp_path / "a") as monitor:
        monitor.add_observer(first)
        monitor.step(samples=1, logits=torch.zeros(1, 2))
        state = monitor.state_dict()
    with monitored(tmp_path / "b") as monitor:
        monitor.add_observer(second)
        monitor.load_state_dict(state)
        assert second.steps == first.steps == [0]


def test_an_argument_that_nobody_takes_is_an_error(tmp_path):
    with (
        monitored(tmp_path) as monitor,
        pytest.raises(ConfigError, match="step got logits, which no observer"),
    ):
        monitor.step(samples=1, logits=torch.zeros(1, 2))


def test_two_observers_of_one_class_are_an_error(tmp_path):
    with monitored(tmp_path) as monitor:
        monitor.add_observer(Entropy())
        with pytest.raises(ConfigError, match="an observer 'Entropy' already"):
            monitor.add_observer(Entropy())


@pytest.mark.parametrize("state", [{"format": 1}, {}, None])
def test_a_checkpoint_of_another_format_is_one_clear_line(tmp_path, state):
    with (
        monitored(tmp_path) as monitor,
        pytest.raises(ConfigError, match="expected a monitor's checkpoint of"),
    ):
        monitor.load_state_dict(state)


def test_earlier_names_still_work_and_say_so(tmp_path):
    with monitored(tmp_path) as monitor:
        with pytest.warns(DeprecationWarning, match="add_alias"):
            monitor.also_as({"loss/total": "mine/loss"})
        with pytest.warns(DeprecationWarning, match="reset_loss_history"):
            monitor.new_objective()
        monitor.step(samples=1, losses=0.5)
        assert monitor.latest["mine/loss"] == 0.5


def test_the_learning_rate_is_the_one_that_the_optimizer_used(tmp_path):
    model, optimizer = problem()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with TrainingMonitor(model, optimizer, config(tmp_path, sync="inline")) as monitor:
        for _ in range(3):
            used = optimizer.param_groups[0]["lr"]
            optimizer.step()
            schedule.step()
            monitor.step(samples=1)
            assert monitor.latest["learning_rate/base_lr"] == used


def test_a_metric_is_computed_at_once_and_nothing_is_written(tmp_path):
    with monitored(tmp_path, log_frequency=100) as monitor:
        mean = WeightedMean("mine/mean")
        monitor.add_metric("mean", mean, family="epoch")
        monitor.step(samples=1)
        mean.update(3.0, 2)
        assert monitor.compute("mean") == {"mine/mean": 3.0}
        assert "mine/mean" not in monitor.latest


class Longest(DistributedMetric):
    """Keep extremes of what it is given, and compute numbers even of nothing."""

    def __init__(self):
        self.add_state("longest", Max())
        self.add_state("shared", Replicated())

    def update(self, lengths):
        self.longest.update(lengths)

    def compute_from(self, states):
        return {"mine/longest": states["longest"].value, "mine/shared": states["shared"].value}


def longest_of_one_rank(folder):
    model, optimizer = problem()
    with TrainingMonitor(model, optimizer, config(folder, sync="inline", log_frequency=1)) as monitor:
        longest = Longest()
        monitor.add_metric("longest", longest)
        latest = []
        for step in range(3):
            if step == 1 and monitor.context.is_main:
                longest.update(torch.tensor([3.0, 7.0]))
            monitor.step(samples=1)
            latest.append(monitor.latest.get("mine/longest"))
    return latest, [record["step"] for record in read_jsonl_of(folder) if "mine/longest" in record]


def read_jsonl_of(folder):
    return [json.loads(line) for path in folder.rglob("*.jsonl") for line in path.read_text().splitlines()]


@pytest.mark.parametrize("world_size", [1, 3])
def test_nothing_is_written_of_what_saw_nothing(tmp_path, gloo, world_size):
    (latest, steps), *others = gloo(world_size).run(longest_of_one_rank, tmp_path)
    assert latest == [None, 7.0, 7.0]
    assert steps == [1]
    assert all(rank_latest == latest for rank_latest, _ in others)
