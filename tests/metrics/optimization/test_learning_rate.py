import pytest
import torch
from torch import nn

from hjepa_dist_metrics import DesyncError, LearningRate, MetricCollection, ReplicatedScalars
from tests.helpers.ranks import run_ranks, try_ranks


def optimizer(*rates):
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def test_every_group_and_the_first_as_base():
    metric = LearningRate(optimizer(0.1, torch.tensor(0.02)))
    metric.update()
    values = {tag: float(value) for tag, value in metric.compute().items()}
    assert values == pytest.approx(
        {
            "learning_rate/base_lr": 0.1,
            "learning_rate/param_group_0": 0.1,
            "learning_rate/param_group_1": 0.02,
        },
        rel=1e-6,
    )


def test_the_stage_follows_the_course_of_the_rate():
    metric = LearningRate(optimizer(0.0))
    stages = []
    for rate in [0.1, 0.2, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]:
        metric.optimizers[0].param_groups[0]["lr"] = rate
        metric.update()
        stages.append(metric.compute().get("learning_rate/warmup_stage"))
    assert stages[0] is None
    assert [int(float(stage)) for stage in stages[1:]] == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]


def test_a_plateau_after_the_warmup_and_a_constant_rate_are_the_main_stage():
    for rates, expected in (([1, 2, 2, 2, 2], [0, 0, 0, 1]), ([1, 1, 1, 1, 1], [1, 1, 1, 1])):
        metric = LearningRate(optimizer(0.0))
        stages = []
        for rate in rates:
            metric.optimizers[0].param_groups[0]["lr"] = float(rate)
            metric.update()
            stages.append(metric.compute().get("learning_rate/warmup_stage"))
        assert [int(float(stage)) for stage in stages[1:]] == expected


def test_the_stage_goes_on_from_a_checkpoint():
    rates = [0.1, 0.2, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    whole, first = LearningRate(optimizer(0.0)), LearningRate(optimizer(0.0))

    def stage(metric, rate):
        metric.optimizers[0].param_groups[0]["lr"] = rate
        metric.update()
        return float(metric.compute()["learning_rate/warmup_stage"]) if rate != rates[0] else None

    expected = [stage(whole, rate) for rate in rates]
    assert [stage(first, rate) for rate in rates[:5]] == expected[:5]
    first.reset()
    second = LearningRate(optimizer(0.0))
    second.stages.load_state_dict(first.stages.state_dict())
    assert [stage(second, rate) for rate in rates[5:]] == expected[5:]
    assert expected[-1] == 2.0


def test_it_is_never_summed_over_ranks():
    def body(context):
        metric = LearningRate(optimizer(0.3))
        metric.update()
        return float(MetricCollection({"lr": metric}, context).compute()["learning_rate/base_lr"])

    assert run_ranks(3, body) == [0.3] * 3


def test_ranks_that_disagree_are_named_on_every_rank():
    def body(context):
        metric = LearningRate(optimizer(0.3 if context.rank != 2 else 0.1))
        metric.update()
        return MetricCollection({"lr": metric}, context).compute()

    errors = try_ranks(3, body)
    assert all(isinstance(error, DesyncError) for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert "0.1 on rank 2" in str(errors[0])
    assert "lr" in str(errors[0])


def test_replicated_scalars():
    metric = ReplicatedScalars(["train/ema_momentum", "a/b"])
    assert metric.compute() == {}
    metric.update({"a/b": torch.tensor(2.0), "train/ema_momentum": 0.99})
    metric.update({"a/b": 3, "train/ema_momentum": 0.995})
    assert {t: float(v) for t, v in metric.compute().items()} == {"a/b": 3.0, "train/ema_momentum": 0.995}
